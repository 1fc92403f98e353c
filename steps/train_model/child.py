"""Run somebody's code in a process of its own: an environment without secrets, bounded time, no orphans.

The trainer and the predictions go through here. Not a jail: the pod is (network policy, read-only root, limits);
memory and disk bounds within it come later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from aegis.names import printable
from aegis.step import redact

KEPT = ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
# One thread each: two that fight for a core are many times slower, and sums in another order are other weights.
PINNED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"PYTHONHASHSEED": "0"}
TAIL = 2000


def environment(env: Mapping[str, str], home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child may know: how to find its programs, where to write, and `extra`."""
    kept = {name: env[name] for name in KEPT if name in env}
    return kept | PINNED | {"HOME": str(home), "TMPDIR": str(home)} | dict(extra or {})


@contextmanager
def started(
    module: str,
    arguments: Sequence[str | Path],
    env: Mapping[str, str],
    log: BinaryIO,
    output: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module arguments` in its own process group; whatever of it still lives at the end is killed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(  # noqa: S603 - our interpreter, our module, no shell
        command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)
        process.wait()
        if process.stdout:
            process.stdout.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill all that is left of a child's process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def tail(log: BinaryIO, env: Mapping[str, str]) -> str:
    """The last lines of a child's log, without the secrets of `env` and with control characters replaced."""
    log.flush()
    log.seek(0, os.SEEK_END)
    log.seek(start := max(0, log.tell() - TAIL))
    text = log.read().decode(errors="replace")
    if start:
        text = "".join(text.split(maxsplit=1)[1:])  # the first word was cut, and half a secret is not known for one
    return "\n".join(map(printable, redact(text, env).strip().split("\n")))
