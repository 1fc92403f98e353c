"""Tampering with packages and pointers, and with the checks that find it."""

from __future__ import annotations

import base64
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aegis import manifest, pointer, signature
from aegis.signature import IN_TOTO, Untrusted
from sign_model import verify
from tests.signing.world import NOW, World

ENVELOPE = "dsseEnvelope"
Tamper = Callable[[World, Path], object]


class Check:
    """One check in the source: `old` in a function, and what a copy without it says instead."""

    def __init__(self, place: ModuleType | type, function: str, old: str, new: str) -> None:
        self.place, self.function, self.old, self.new = place, function, old, new

    def remove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put a mutated copy of the function where the function is; copies of copies add up."""
        now = getattr(self.place, self.function)
        module = sys.modules[now.__module__]
        source = getattr(now, "mutated", None) or textwrap.dedent(inspect.getsource(now))
        assert source.count(self.old) == 1, f"{self.function} has not once: {self.old}"
        source = source.replace(self.old, self.new)
        scope: dict[str, Any] = {}
        code = compile(f"from __future__ import annotations\n{source}", f"<mutated {self.function}>", "exec")
        exec(code, vars(module), scope)  # noqa: S102  a copy of our own source
        scope[self.function].mutated = source
        monkeypatch.setattr(self.place, self.function, scope[self.function])


class Flag(Check):
    """A flag among those that files are opened with."""

    def __init__(self, flag: int) -> None:
        self.flag = flag

    def remove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifest, "_OPEN", manifest._OPEN & ~self.flag)


def champion(world: World, text: str = "weights") -> Path:
    """A signed model that the pointer names; its package's folder."""
    signed = world.signed(world.make_model(f"model-{text}", text))
    made = pointer.Pointer(
        *(world.model, world.environment, 1, signed.tar_sha256, signed.root_digest, "", "", "1", "uid-1"),
        promoted_at=NOW.isoformat(),
    )
    world.pointer_file().parent.mkdir(parents=True, exist_ok=True)
    world.pointer_file().write_bytes(pointer.seal(made, world.signer))
    return world.folder(signed.tar_sha256)


def follow(world: World) -> Path:
    """Fetch the champion as a gate or an init container does."""
    found = pointer.fetch_champion(
        world.store, world.trusted, world.environment, world.model, world.root / "out" / "champion"
    )
    assert found is not None
    return found.directory


def accept(world: World, folder: Path, **policy: Any) -> Path:
    """Verify a folder as `aegis verify` does, and take its model out."""
    target = world.root / "accepted"
    if faults := verify.verify_directory(folder, world.trusted, target=target, **policy):
        assert not target.exists()
        raise Untrusted("; ".join(faults))
    return target


def rewrite(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flipped(name: str, place: int) -> Tamper:
    return lambda _world, folder: rewrite(folder / name, lambda data: data.__setitem__(place, data[place] ^ 1))


def letter(name: str, *fields: str) -> Tamper:
    """One letter of a text in a bundle is another; it stays base64, and DER where it was."""

    def tamper(_world: World, folder: Path) -> None:
        place = bundle = json.loads((folder / name).read_bytes())
        for field in fields[:-1]:
            place = place[int(field) if field.isdigit() else field]
        raw = bytearray(base64.b64decode(place[fields[-1]]))
        raw[20] ^= 1
        place[fields[-1]] = base64.b64encode(raw).decode()
        (folder / name).write_text(json.dumps(bundle))

    return tamper


def reworded(name: str, change: Callable[[dict[str, Any]], object]) -> Tamper:
    """A statement altered, its signature kept."""

    def tamper(_world: World, folder: Path) -> None:
        bundle = json.loads((folder / name).read_bytes())
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        (folder / name).write_text(json.dumps(bundle))

    return tamper


def resigned(name: str, change: Callable[[dict[str, Any]], object]) -> Tamper:
    """A statement altered and signed again by the trusted key: only what it says can give it away."""

    def tamper(world: World, folder: Path) -> None:
        statement, _ = signature.verify_json((folder / name).read_bytes(), IN_TOTO, world.trusted)
        change(statement)
        (folder / name).write_bytes(signature.sign_json(statement, IN_TOTO, world.signer))

    return tamper


def listed(change: Callable[[list[dict[str, str]]], object]) -> Callable[[dict[str, Any]], object]:
    """Another list of files, and the root digest that it gives."""

    def alter(statement: dict[str, Any]) -> None:
        change(statement["predicate"]["resources"])
        files = [manifest.File(item["name"], 0, item["digest"]) for item in statement["predicate"]["resources"]]
        statement["subject"][0]["digest"]["sha256"] = manifest.root_digest(files)

    return alter


def parameters(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]["externalParameters"]
    return found


def seal(world: World, **changes: object) -> None:
    found = world.pointer()
    assert found is not None
    changed = pointer.Pointer(**{**asdict(found), **changes})
    world.pointer_file().write_bytes(pointer.seal(changed, world.signer))
