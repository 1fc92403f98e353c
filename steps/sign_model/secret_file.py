"""Secrets in files: one bounded read, and no file that everybody on the machine could read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from aegis.errors import SIGNING_DENIED, Permanent


def read(path: Path, name: str, limit: int, *, private: bool = True) -> bytes:
    """The whole file, at most `limit` bytes; `Permanent` (77) otherwise. `name` is what errors call it.

    `private` refuses a file that others than its owner and group may touch: a Secret mounted with its default mode is
    such a file, so set defaultMode 0440 and fsGroup.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(limit + 1)
    except OSError as error:
        raise Permanent("signing key", {name: error.strerror or "cannot be read"}, exit_code=SIGNING_DENIED) from error
    if private and mode & stat.S_IRWXO:
        raise Permanent("signing key", {name: f"mode {mode & 0o777:04o} lets everyone in"}, exit_code=SIGNING_DENIED)
    if len(data) > limit:
        raise Permanent("signing key", {name: f"more than {limit} bytes"}, exit_code=SIGNING_DENIED)
    return data
