"""Run somebody's code in a process of its own: no secrets, bounded time, memory, disk and output, no orphans.

The trainer and the predictions go through here. Not a jail: the pod is (network policy, read-only root, limits). What
is bounded here ends with a reason, where the pod's own limits would end it without a word.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from aegis.names import printable
from aegis.step import redact
from aegis.tied import tied

KEPT = ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
# One thread each: two that fight for a core are many times slower, and sums in another order are other weights.
PINNED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"PYTHONHASHSEED": "0"}
TAIL = 2000
SHOWN = 256 << 10
"""Characters of output that are passed on as they come; of what follows only the end is kept."""
LINE = 8192
MAX_FILES = 100_000
MAX_PROCESSES = 512
TICK_S, DISK_S = 0.2, 1.0


def environment(env: Mapping[str, str], home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child may know: how to find its programs, where to write, and `extra`."""
    kept = {name: env[name] for name in KEPT if name in env}
    return kept | PINNED | {"HOME": str(home), "TMPDIR": str(home)} | dict(extra or {})


class Log:
    """A child's output: goes on to ours line by line, without secrets, until it is too much; its end is kept."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._room = SHOWN
        self._kept = deque[str]()
        self._pipe, self._end = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Log:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """Where the child writes."""
        return self._end

    def close(self) -> None:
        """No more comes. Who still holds the pipe, and was not ended, is not waited for."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1
            self._thread.join(5)

    def tail(self) -> str:
        """The end of the output, complete after `close`."""
        return "\n".join(self._kept).strip()[-TAIL:]

    def _read(self) -> None:
        with open(self._pipe, "rb") as pipe:  # noqa: PTH123 - a descriptor has no path
            cut = False
            while self._room > 0 and (line := pipe.readline(LINE)):
                cut = self._line(line, cut)
            # The rest is only its end, and may be a gigabyte.
            end = b""
            while block := pipe.read1(1 << 16):
                end = (end + block)[-2 * LINE :]
        for number, line in enumerate(end.split(b"\n") if end else ()):
            self._line(line[-LINE + 1 :], number == 0 or len(line) >= LINE)

    def _line(self, line: bytes, cut: bool) -> bool:
        """Keep a line. Where it is cut, the word there is dropped: half a secret is not known for one."""
        words = line.decode(errors="replace").split(maxsplit=1)[1:] if cut else [line.decode(errors="replace")]
        cut = len(line) == LINE and not line.endswith(b"\n")
        words = words[0].rsplit(maxsplit=1)[:-1] if cut and words else words
        text = printable(redact("".join(words), self._env).rstrip("\r\n"))
        self._kept.append(text)
        while len(self._kept) > 1 and sum(map(len, self._kept)) > 2 * TAIL:
            self._kept.popleft()
        if self._room > 0:
            self._room -= len(text) + 1
            print(text if self._room > 0 else "... the rest of the output is not shown ...", flush=True)
        return cut


@contextmanager
def started(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    log: Log,
    output: int | None = None,
    *,
    cwd: Path | None = None,
    memory: int | None = None,
    disk: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, without a shell; whatever it started and left is killed at the end.

    `output` is where its stdout goes if not to the log. `memory` and `disk`, in bytes, bound each of its processes and
    each of its files from within; `watch` adds them up. Its exit code after signal n is 128 + n.
    """
    process = subprocess.Popen(  # noqa: S603 - a list, no shell
        tied([str(word) for word in command], memory, disk, 0),
        env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output or log.fileno(), stderr=log.fileno(),
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        end(process)
        process.wait()
        if process.stdout:
            process.stdout.close()


def module(name: str, *arguments: str | Path) -> list[str | Path]:
    """The command that runs one of our modules."""
    return [sys.executable, "-m", name, *arguments]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and all that it started, in whatever group that is by now."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGUSR1 if sys.platform == "linux" else signal.SIGKILL)  # to who stands between
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def below(root: int) -> list[int]:
    """The process ids of all descendants of a process, as far as the system shows them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - cheaper than paths, and often
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int(Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, left = list[int](), [root]
    while left:
        for pid in children.get(left.pop(), ()):
            found.append(pid)
            left.append(pid)
    return found


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may use: seconds, bytes of memory and of disk, all its processes together."""

    seconds: float
    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class Breach:
    """Which bound a child broke: a word for a ledger, and words for people."""

    reason: str
    said: str


def watch(
    process: subprocess.Popen[bytes], bounds: Bounds, folders: Sequence[Path], tick: Callable[[], None]
) -> Breach | None:
    """Wait until the child ends or breaks a bound. `tick` is called a few times a second; what it raises is raised."""
    began = time.monotonic()
    look = began
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TICK_S)
            return None
        tick()
        now = time.monotonic()
        if now - began > bounds.seconds:
            return Breach("Timeout", f"it did not end within {bounds.seconds:g} s")
        pids = below(process.pid)
        if len(pids) > MAX_PROCESSES:
            return Breach("TooManyProcesses", f"it started more than {MAX_PROCESSES} processes")
        if memory_of(pids) > bounds.memory:
            return Breach("OutOfMemory", f"it took more than {bounds.memory >> 20:,} MiB of memory")
        if now >= look:
            look = now + DISK_S
            if breach := disk_breach(folders, bounds.disk):
                return breach


def memory_of(pids: Sequence[int]) -> int:
    """Bytes that processes have in memory, what they share counted once."""
    return sum(_shared_once(pid) for pid in pids) if len(pids) > 1 else sum(_resident(pid) for pid in pids)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _shared_once(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def disk_breach(folders: Sequence[Path], limit: int) -> Breach | None:
    """Whether folders hold more than `limit` bytes on disk, or more files than anybody could mean."""
    files = size = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 - a path costs as much
                files += 1
                if files > MAX_FILES:
                    return Breach("DiskFull", f"it left more than {MAX_FILES:,} files")
    return Breach("DiskFull", f"it left more than {limit >> 20:,} MiB on disk") if size > limit else None


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Nine tenths of the container's memory in bytes; without a container's limit, half of the machine's."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            if (limit := int((cgroup / name).read_text())) < 1 << 60:
                return limit * 9 // 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def oom_kills(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How often the kernel killed a process of this container for memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in (cgroup / "memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
