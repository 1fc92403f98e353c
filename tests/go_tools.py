"""Programs for the tests, built from pinned Go modules and kept under ~/.cache/aegis-tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path


def build(go: str, source: Path, package: str, flags: str, name: str) -> Path:
    """The program `name` of a module whose go.mod and go.sum pin all that it is made of; they name it in the cache.

    Builds what the cache lacks; of several processes one builds, the others wait.
    """
    text = b"".join((source / file).read_bytes() for file in ("go.mod", "go.sum")) + flags.encode()
    folder = _cache() / hashlib.sha256(text).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            made = folder / "making"
            command = [go, "build", "-trimpath", "-ldflags", flags, "-o", str(made), package]
            subprocess.run(command, cwd=source, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
            made.rename(binary)
    return binary


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "aegis-tests"
