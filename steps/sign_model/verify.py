"""Check a package directory: signatures, what they bind, every byte of the archive, and the pointer to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from aegis import manifest, package, pointer, signature
from aegis.errors import Permanent
from aegis.signature import Keys


def verify_directory(
    directory: Path,
    keys: Keys,
    *,
    model: str | None = None,
    environment: str | None = None,
    pointer_file: Path | None = None,
    min_serial: int | None = None,
    target: Path | None = None,
) -> list[str]:
    """Every fault of a package, as sentences; empty if it holds. Only then the model appears at `target`.

    Model and environment are checked where given. `min_serial` needs the pointer: only that has the serial.
    """
    faults: list[str] = []
    small: dict[str, bytes] = {}
    for name in package.SMALL:
        try:
            small[name] = _read(directory / name, signature.MAX_BUNDLE)
        except OSError as error:
            faults.append(f"{name}: {error.strerror}")
    held = None
    try:
        held = package.check(small, keys, tar_sha256=None, model=model, environment=environment)
    except Permanent as error:
        faults += [f"{name}: {what}" for name, what in error.faults.items() if what != "is missing"]
    if pointer_file is not None:
        try:
            found = pointer.unseal(_read(pointer_file, pointer.MAX_POINTER), keys)
        except (OSError, Permanent) as error:
            faults.append(f"pointer: {error.strerror if isinstance(error, OSError) else error}")
        else:
            if held and found.tar_sha256 != held.tar_sha256:
                faults.append(f"pointer: names package {found.tar_sha256}")
            if held and (found.environment, found.model) != (held.environment, held.model):
                faults.append(f"pointer: is for {found.environment}/{found.model}")
            if min_serial is not None and found.serial < min_serial:
                faults.append(f"pointer: serial {found.serial} is older than {min_serial}")
    elif min_serial is not None:
        faults.append("pointer: missing, so its serial is unknown")
    if held:
        try:
            with os.fdopen(_open(directory / package.TAR), "rb") as tar:
                manifest.unpack(tar, held.files, held.tar_sha256, None if faults else target)
        except OSError as error:
            faults.append(f"{package.TAR}: {error.strerror}")
        except Permanent as error:
            faults.append(f"{package.TAR}: {error}")
    return faults


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor


def _read(path: Path, limit: int) -> bytes:
    with os.fdopen(_open(path), "rb") as stream:
        return stream.read(limit + 1)
