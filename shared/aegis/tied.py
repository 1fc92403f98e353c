"""A command that ends with all that it started: when it is over, and when the thread that started it is gone.

For what runs somebody's code: the local runner, and the steps that train and predict.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Who is killed can't end what it started, and a step's own children may lead sessions of their own. So a program of
# its own stays between: it adopts every orphan below it, and once the step is over, or the kernel tells it that the
# thread which started it is gone, it ends all of them.
_LAUNCH = """\
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None)
before = signal.pthread_sigmask(signal.SIG_BLOCK, {*signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP})
libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
libc.prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(137)
step = os.fork()
if step == 0:
    libc.prctl(1, signal.SIGKILL)
    for kind, limit in zip((resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE), sys.argv[2:5]):
        if limit:
            resource.setrlimit(kind, (int(limit), int(limit)))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        os.execvp(sys.argv[5], sys.argv[5:])
    except OSError as exc:
        print(f"can't run {sys.argv[5]}: {exc.strerror}", flush=True)
    os._exit(127)
code = None
while code is None:
    if signal.sigwait({signal.SIGCHLD, signal.SIGUSR1}) == signal.SIGUSR1:
        code = -signal.SIGKILL
    while code is None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == step:
            code = os.waitstatus_to_exitcode(status)
        elif pid == 0:
            break
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
    try:
        os.wait()
    except ChildProcessError:
        os._exit(code if code >= 0 else 128 - code)
"""


def tied(argv: Sequence[str], *limits: int | None) -> list[str]:
    """The command with a program before it that does so, on Linux; elsewhere the command as it is.

    Up to three `limits`, in bytes: the memory of each process, each file, each core dump. The exit code after signal n
    is 128 + n.
    """
    if sys.platform != "linux":
        return list(argv)
    bounds = ["" if limit is None else str(limit) for limit in (*limits, None, None, None)[:3]]
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *bounds, *argv]
