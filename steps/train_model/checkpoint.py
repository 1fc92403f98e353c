"""`python -m train_model.checkpoint`: bring a trainer's checkpoints to the bucket while it works, and fetch's way back.

Runs beside the trainer, which has no bucket right. A pod that is evicted loses its volumes; the next try of the same
attempt goes on from the newest checkpoint if data and settings are the same. Sealed with the attempt's secret: whoever
else writes to the bucket must not choose what a training starts from.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aegis.errors import OK, NotFound, Permanent, Temporary
from aegis.storage import Store, open_store
from train_model import step
from train_model.attempt import Attempt

MAX_BYTES = 2 << 30
EVERY_S = 2.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
_HEAD = 1024
"""Bytes of an object before the file's own: JSON, filled up with spaces."""


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code: always 0, as Argo counts a sidecar's failure as the trainer's, and a checkpoint is only a help."""
    step.run("checkpoint", _follow, env, ("AEGIS_MODELS_URI", "AEGIS_CHECKPOINT"))
    return OK


def _follow(attempt: Attempt, env: Mapping[str, str]) -> str:
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    kept = Keeper(attempt, open_store(attempt.models_uri, env=env))
    last = False
    while not last:
        last = over.wait(EVERY_S)  # what was left in the last moment is brought too
        try:
            kept.look()
        except (Temporary, Permanent) as error:
            print(f"checkpoint: not kept: {error}", flush=True)
    return f"{kept.count} checkpoints were kept"


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    mark: tuple[int, int, int]


class Keeper:
    """Brings the newest file of a folder to the bucket, if it is not there yet."""

    def __init__(self, attempt: Attempt, store: Store) -> None:
        self._attempt, self._store = attempt, store
        self._folder = attempt.checkpoint or Path()
        self._mark: tuple[int, int, int] | None = None
        self.count = 0

    def look(self) -> None:
        """One look; `Temporary` or `Permanent` if the bucket will not have it."""
        found = _newest(self._folder)
        if found is None or found.mark == self._mark:
            return
        with tempfile.TemporaryDirectory(dir=self._attempt.tmp) as folder:
            sealed = Path(folder, "checkpoint")
            if not _seal(found, sealed, self._attempt, inputs_of(self._attempt)):
                return  # it was replaced meanwhile: the next look sees the new one
            place = _place(self._attempt)
            there = self._store.head(place)
            self._store.swap(place, sealed, there.version if there else None)
        self._mark = found.mark
        self.count += 1


def restore(attempt: Attempt, store: Store, inputs: str) -> str:
    """Put the newest checkpoint of this attempt where the trainer looks for it; what is to be said about it.

    One that was made from other data or settings, or sealed by somebody else, is left where it is.
    """
    if attempt.checkpoint is None:
        return ""
    attempt.checkpoint.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        sealed = Path(folder, "checkpoint")
        try:
            store.download(_place(attempt), sealed, limit=MAX_BYTES + _HEAD)
        except NotFound:
            return ""
        with sealed.open("rb") as file:
            head, body = file.read(_HEAD), Path(folder, "body")
            with body.open("wb") as out:
                digest = hashlib.sha256()
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    digest.update(chunk)
                    out.write(chunk)
        try:
            told = json.loads(head)
            name, seal = str(told["name"]), str(told["seal"])
        except (ValueError, KeyError, TypeError, RecursionError):
            name = seal = ""
        right = hmac.compare_digest(seal.encode(), _sealed(attempt, name, digest.hexdigest(), inputs).encode())
        if not right or not _NAME.fullmatch(name):
            return "a checkpoint of other data, or not of ours, is left aside: the training begins anew"
        body.replace(attempt.checkpoint / name)
    return f"the training goes on from the checkpoint {name}"


def inputs_of(attempt: Attempt) -> str:
    """The digest of what is trained on and how, from what fetch left; empty if that cannot be read."""
    try:
        return str(json.loads((attempt.data / "train" / "dataset.json").read_text())["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _place(attempt: Attempt) -> str:
    return f"checkpoints/{attempt.environment}/{attempt.model}/{attempt.workflow_uid}"


def _newest(folder: Path) -> _File | None:
    """The regular file that was changed last and whose name is plain; a hidden one is still being written."""
    found = []
    try:
        for path in folder.iterdir():
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode) and _NAME.fullmatch(path.name) and seen.st_size <= MAX_BYTES:
                found.append(_File(path, (seen.st_mtime_ns, seen.st_ino, seen.st_size)))
    except OSError:
        return None
    return max(found, key=lambda file: file.mark, default=None)


def _seal(found: _File, target: Path, attempt: Attempt, inputs: str) -> bool:
    """Write head and bytes to `target`; False if the file changed while it was read."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file, target.open("wb") as out:
        out.seek(_HEAD)
        size = 0
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
            size += out.write(chunk)
            if size > found.mark[2]:
                return False
        after = os.fstat(descriptor)
        if (after.st_mtime_ns, after.st_ino, after.st_size) != found.mark:
            return False
        name = found.path.name
        head = {"name": name, "seal": _sealed(attempt, name, digest.hexdigest(), inputs)}
        out.seek(0)
        out.write(json.dumps(head).encode().ljust(_HEAD))
    return True


def _sealed(attempt: Attempt, name: str, digest: str, inputs: str) -> str:
    text = json.dumps(["checkpoint", attempt.workflow_uid, inputs, name, digest])
    return hmac.new(attempt.secret.encode(), text.encode(), "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
