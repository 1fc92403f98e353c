"""What a model that is being loaded cannot reach: sockets, other processes, other files. Linux on x86-64 and arm64.

Three locks that a process without privileges can put on. seccomp takes its sockets, Landlock (Linux 5.13, if built in)
its files but for those named and every process outside, and a step that holds credentials hides its own memory and
environment, as all run as the same user. Each says whether this system has it. Beside the pod's network policy, not
instead of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # of prctl
# Architecture, then the numbers of: socket, socketpair, io_uring_setup (its rings reach sockets), ptrace,
# process_vm_readv, process_vm_writev, pidfd_getfd (which reach other processes of the same user).
_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 425, 101, 310, 311, 438)),
    "aarch64": (0xC00000B7, (198, 199, 425, 117, 270, 271, 438)),
}
_GET_DUMPABLE, _SET_DUMPABLE = 3, 4  # of prctl
_RULESET, _RULE, _RESTRICT = 444, 445, 446  # calls of Landlock, the same on both architectures
_ON_FILES = 0b111 | 1 << 14  # execute, write, read, truncate
_READ, _WRITE = 0b1101, (1 << 13) - 1  # execute, read, list; and all that Landlock's first version knows
_EXISTING = 0b1110  # write and read what is there, list: for devices
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd")
"""What programs and libraries read of a system. Of /proc Landlock shows a process only itself and its children."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def no_sockets() -> bool:
    """Refuse the calls above from here on, for good; False where this system offers no such filter."""
    known = _CALLS.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, calls = known
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if platform.machine() == "x86_64":  # the x32 numbers are a second door to the same calls
        steps += [(0x35, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for call in calls:
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSE)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    refused = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    return not refused


def only(readable: Sequence[Path], writable: Sequence[Path]) -> bool:
    """Leave this thread and what it starts these files and folders, Python, its packages and the system's libraries,
    and no other process to read or to end; for good. False where this system offers no such lock."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_RULESET, None, 0, 1) if sys.platform == "linux" and platform.machine() in _CALLS else -1
    if version < 1:
        return False
    handled = _WRITE | (1 << 14 if version >= 3 else 0)
    rules = struct.pack("=QQQ", handled, 0, 3 if version >= 6 else 0)  # scoped: abstract sockets and signals
    ruleset = libc.syscall(_RULESET, rules, len(rules) if version >= 6 else 8, 0)
    python = (sys.prefix, sys.base_prefix, *sys.path, *os.get_exec_path())
    for paths, access in (
        ((*_SYSTEM, *python, *readable), _READ),
        (("/dev",), _EXISTING),
        (writable, handled),
    ):
        for path in filter(os.path.exists, map(str, paths)):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            given = access & (handled if stat.S_ISDIR(os.fstat(opened).st_mode) else _ON_FILES & handled)
            libc.syscall(_RULE, ruleset, 1, struct.pack("=Qi", given, opened), 0)
            os.close(opened)
    refused = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return not refused


@contextmanager
def hidden() -> Iterator[None]:
    """Meanwhile no process of the same user reads this one's memory, environment or descriptors through /proc; one that
    has the capability to trace (root outside of a container) still may. Children are seen again once they execute."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    before = libc.prctl(_GET_DUMPABLE, 0, 0, 0, 0) if libc else 0
    if libc:
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        if libc and before == 1:
            libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """`python -m train_model.sandbox WRITABLE... -- PROGRAM...`: become a program that writes nowhere else and sees no
    process outside, whose environment may hold more than its own. It may read, and use the network."""
    at = arguments.index("--")
    only([Path("/")], [Path("/dev/shm"), *map(Path, arguments[:at])])  # noqa: S108 - what multiprocessing shares
    try:
        os.execvp(arguments[at + 1], arguments[at + 1 :])  # noqa: S606 - a list, no shell
    except OSError as error:
        print(f"{arguments[at + 1]} cannot be run: {error.strerror}")
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
