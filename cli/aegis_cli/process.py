"""One step's process on this machine: start it, bound its log, end it with everything that it started.

Never a shell. A child gets exactly the environment that it is handed, and dies with who started it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aegis.errors import Permanent
from aegis.tied import tied

LOG_LIMIT = 1 << 20
"""Bytes of output kept a container, from its beginning; of what follows only the end is."""
TAIL = 2048
"""Bytes of the end of the output that go into a node's message: what Kubernetes takes of a log."""
GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL. Steps write atomically, so they need no more to leave things clean."""
TICK_S = 0.05
"""How often a running process is looked at for a deadline or a stop; its own end wakes us at once."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: exit code (128 + n after signal n), the end of its output, why we ended it."""

    exit_code: int
    tail: str
    stopped: str | None = None


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    stop: Callable[[], str | None],
) -> Ended:
    """Run a command to its end, or until `stop()` gives a reason. Its output goes to `log`.

    Raises Permanent if it can't be started at all (a NUL in a value, too large an environment).
    """
    try:
        child = subprocess.Popen(  # noqa: S603  # a list from the template, never a shell
            tied(argv), env=dict(env), cwd=cwd, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, ValueError) as exc:  # ValueError: a NUL byte or an unpaired surrogate in a value
        raise Permanent(f"can't start {argv[0]}: {exc}") from exc
    assert child.stdout is not None  # noqa: S101  # for the type checker: stdout is a pipe
    try:
        with child.stdout as output, log.open("wb", buffering=0) as file:
            kept = _Kept(file)
            reason = _follow(child, output, kept, stop)
            tail = kept.close()
    finally:
        _signal(child.pid, signal.SIGKILL)  # also what it started and left: a pod's end would end that too
        exit_code = child.wait()  # only now is its number free again
    return Ended(exit_code if exit_code >= 0 else 128 - exit_code, tail, reason)


def _follow(
    child: subprocess.Popen[bytes], output: IO[bytes], kept: _Kept, stop: Callable[[], str | None]
) -> str | None:
    reason: str | None = None
    kill_at = float("inf")
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while not _is_over(child.pid):
            kept.write(_next(selector, output))
            if reason is None and (reason := stop()) is not None:
                _signal(child.pid, signal.SIGTERM)
                kill_at = time.monotonic() + GRACE_S
            if time.monotonic() > kill_at:
                _end(child.pid)
        _signal(child.pid, signal.SIGKILL)  # so that nobody else holds the pipe open
        while chunk := _next(selector, output):
            kept.write(chunk)
    return reason


def _is_over(pid: int) -> bool:
    """Say whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _next(selector: selectors.BaseSelector, output: IO[bytes]) -> bytes:
    """Return the next output; nothing after a tick without any."""
    if not selector.get_map():  # it closed its output but runs on
        time.sleep(TICK_S)
        return b""
    if not selector.select(TICK_S):
        return b""
    chunk = os.read(output.fileno(), 65536)
    if not chunk:
        selector.unregister(output)
    return chunk


class _Kept:
    """The first part of a log, written as it comes, and its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._room = LOG_LIMIT
        self._dropped = 0
        self._tail = b""

    def write(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-TAIL:]
        self._file.write(chunk[: self._room])
        self._dropped += len(chunk[self._room :])
        self._room = max(0, self._room - len(chunk))

    def close(self) -> str:
        if self._dropped:
            self._file.write(b"\n... %d bytes left out ...\n" % max(0, self._dropped - TAIL))
            self._file.write(self._tail[-self._dropped :])
        return self._tail.decode(errors="replace").strip()


def _end(group: int) -> None:
    """End a process that does not listen; on Linux by who stands between, which then ends all below it."""
    if sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGUSR1)
    else:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
