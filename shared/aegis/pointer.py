"""Which package of a model is the champion: a signed object, moved by compare-and-set.

There is one for each environment and model. It is the truth; registry aliases follow it. Its serial only ever
grows, so a reader can refuse an older one. Nothing here registers, trains or serves.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from aegis import package, signature
from aegis.errors import NotFound, Temporary
from aegis.names import SHA256
from aegis.package import Package
from aegis.signature import Keys, Signer, Untrusted
from aegis.storage import Store

PAYLOAD_TYPE = "application/vnd.aegis.pointer.v1+json"
"""Not in-toto: a signed statement can't be passed off as a pointer, nor a pointer as a statement."""
MAX_POINTER = 64 << 10


MARK = re.compile(rf"{SHA256.pattern}@[1-9][0-9]{{0,15}}", re.ASCII)
"""What `Pointer.mark` gives."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """The champion of one model in one environment. `workflow` is the UID of the run that made its package."""

    model: str
    environment: str
    serial: int
    tar_sha256: str
    root_digest: str
    package: str
    run_id: str
    model_version: str
    workflow: str
    promoted_at: str

    @property
    def mark(self) -> str:
        """Which champion and which time: `<tar sha256>@<serial>`. After a rollback the same archive is another one."""
        return f"{self.tar_sha256}@{self.serial}"


@dataclass(frozen=True, slots=True)
class Champion:
    """A verified champion and the directory that its files are in."""

    pointer: Pointer
    package: Package
    directory: Path


def path_of(environment: str, model: str) -> str:
    """Where the pointer lies below the store of models."""
    return f"champions/{environment}/{model}/pointer.json"


def seal(pointer: Pointer, signer: Signer) -> bytes:
    """The pointer as it is stored."""
    return signature.sign_json(asdict(pointer), PAYLOAD_TYPE, signer)


def unseal(data: bytes, keys: Keys) -> Pointer:
    """A stored pointer, its signature verified; `Untrusted` (76) otherwise."""
    document, _ = signature.verify_json(data, PAYLOAD_TYPE, keys)
    wanted = {field.name: int if field.name == "serial" else str for field in fields(Pointer)}
    if document.keys() != wanted.keys() or any(type(document[name]) is not kind for name, kind in wanted.items()):
        raise Untrusted("not a pointer")
    pointer = Pointer(**document)
    if pointer.serial < 1 or not SHA256.fullmatch(pointer.tar_sha256):
        raise Untrusted("not a pointer")
    return pointer


def read(store: Store, keys: Keys, environment: str, model: str) -> tuple[Pointer, str] | None:
    """The pointer and its version for `Store.swap`, verified; None where there is none yet."""
    where = path_of(environment, model)
    # The version is taken first: if a swap comes between, ours then fails instead of overwriting it.
    entry = store.head(where)
    if entry is None:
        return None
    try:
        pointer = unseal(store.read(where, limit=MAX_POINTER), keys)
    except NotFound as error:
        raise Temporary(f"{where} went away while it was read") from error
    except Untrusted as error:
        raise Untrusted("the pointer is refused", {where: str(error)}) from error
    if (pointer.environment, pointer.model) != (environment, model):
        raise Untrusted("the pointer is refused", {where: f"is for {pointer.environment}/{pointer.model}"})
    return pointer, entry.version


def fetch_champion(store: Store, keys: Keys, environment: str, model: str, target: Path) -> Champion | None:
    """Follow the pointer, verify its package to the last byte, extract the model into `target`.

    `target` is absent or empty before, filled by one rename, untouched on refusal. None: no champion yet.
    """
    found = read(store, keys, environment, model)
    if found is None:
        return None
    pointer, _ = found
    wanted = pointer.root_digest
    try:
        held = package.fetch(store, keys, environment, model, pointer.tar_sha256, target, root_digest=wanted)
    except NotFound as error:
        raise Untrusted("the pointer's package is not there", {pointer.package: str(error)}) from error
    return Champion(pointer, held, target)
