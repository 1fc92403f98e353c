"""Packages: what stock tools verify, and what tampering of any kind comes to."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aegis import manifest, package, pointer, signature
from aegis.errors import VERIFICATION_FAILED, Permanent
from aegis.signature import IN_TOTO, Untrusted
from sign_model import keys
from sign_model.verify import verify_directory
from tests.signing.world import NOW, World

MODEL_SIGNING = Path(sys.executable).with_name("model_signing")


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


def fetch(world: World) -> pointer.Champion | None:
    return pointer.fetch_champion(
        world.store, world.trusted, world.environment, world.model, world.root / "out" / "champion"
    )


def stock(model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [MODEL_SIGNING, "verify", "key", model, "--signature", folder / "model.sig"]
    command += ["--public_key", folder / "signer.pub", "--no-ignore-git-paths"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_stock_command_accepts_the_fetched_model_and_refuses_one_byte_more(world: World) -> None:
    model = world.make_model("wild")
    (model / "ünïcode names").mkdir()
    (model / "ünïcode names" / ("n" * 120)).write_bytes(b"")
    folder = world.folder(world.signed(model).tar_sha256)
    assert verify_directory(folder, world.trusted, target=world.root / "copy") == []
    done = stock(world.root / "copy", folder)
    assert (done.returncode, "succeeded" in done.stdout) == (0, True), done.stderr
    with (world.root / "copy" / "MLmodel").open("ab") as stream:
        stream.write(b"\0")
    assert stock(world.root / "copy", folder).returncode != 0


def test_the_root_digest_is_the_subject_of_the_stock_signer(world: World) -> None:
    model = world.make_model()
    command: list[str | Path] = [
        MODEL_SIGNING,
        "sign",
        "key",
        model,
        "--private_key",
        world.root / "keys" / "signing.pem",
    ]
    command += ["--signature", world.root / "stock.sig", "--no-ignore-git-paths"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    bundle = json.loads((world.root / "stock.sig").read_bytes())
    statement = json.loads(signature._bytes(bundle["dsseEnvelope"]["payload"]))
    assert statement["subject"][0]["digest"]["sha256"] == manifest.root_digest(manifest.walk(model))


def test_a_champion_is_fetched_with_what_was_signed_about_it(world: World) -> None:
    folder = champion(world)
    found = fetch(world)
    assert found is not None
    assert manifest.root_digest(manifest.walk(found.directory)) == found.package.root_digest
    assert found.pointer.tar_sha256 == folder.name
    assert found.package.external["event_id"] == "event-1"
    assert [path.name for path in (world.root / "out").iterdir()] == ["champion"]


def test_no_pointer_means_no_champion(world: World) -> None:
    assert fetch(world) is None


def rewrite(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def flipped(name: str) -> Callable[[World, Path], object]:
    return lambda _world, folder: rewrite(folder / name, flip)


def missing(name: str) -> Callable[[World, Path], object]:
    return lambda _world, folder: (folder / name).unlink()


def other_package(world: World, **origin: str) -> Path:
    """A package of other bytes, or of another model or environment, by the same key."""
    elsewhere = World(_made(world.root / "elsewhere"))
    shutil.copytree(world.trusted_dir, elsewhere.trusted_dir, dirs_exist_ok=True)
    elsewhere.signer = world.signer
    elsewhere.model, elsewhere.environment = origin.get("model", "digits"), origin.get("environment", "default")
    signed = elsewhere.signed(elsewhere.make_model("model", origin.get("text", "weights")))
    return elsewhere.folder(signed.tar_sha256)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def swap_in(name: str, **origin: str) -> Callable[[World, Path], object]:
    return lambda world, folder: shutil.copy(other_package(world, **origin) / name, folder / name)


def resigned(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[World, Path], object]:
    """A statement altered and signed again by the trusted key: only what it says can give it away."""

    def tamper(world: World, folder: Path) -> None:
        statement, _ = signature.verify_json((folder / name).read_bytes(), IN_TOTO, world.trusted)
        change(statement)
        (folder / name).write_bytes(signature.sign_json(statement, IN_TOTO, world.signer))

    return tamper


def untrusted(world: World, folder: Path) -> None:
    stranger = keys.ensure(world.root / "stranger.pem")
    packed = manifest.pack(world.root / "model-weights", io.BytesIO())
    for name, data in package.sign(packed, world.origin(), stranger).items():
        (folder / name).write_bytes(data)


def second_key(world: World, folder: Path) -> None:
    other = keys.ensure(world.root / "keys" / "second.pem", world.trusted_dir)
    (folder / TAR_SIG).write_bytes(signature.sign_file(folder.name, other))


def linked(name: str) -> Callable[[World, Path], object]:
    def tamper(world: World, folder: Path) -> None:
        (folder / name).rename(world.root / "moved")
        (folder / name).symlink_to(world.root / "moved")

    return tamper


SIG, PROVENANCE, TAR_SIG = "model.sig", "provenance.sigstore.json", "model.tar.sigstore.json"


def resources(change: Callable[[list[dict[str, str]]], object]) -> Callable[[World, Path], object]:
    def alter(statement: dict[str, Any]) -> None:
        change(statement["predicate"]["resources"])
        files = [manifest.File(item["name"], 0, item["digest"]) for item in statement["predicate"]["resources"]]
        statement["subject"][0]["digest"]["sha256"] = manifest.root_digest(files)

    return resigned(SIG, alter)


def build(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]["externalParameters"]
    return found


TAMPERING: dict[str, Callable[[World, Path], object]] = {
    **{f"a byte flipped in {name}": flipped(name) for name in (package.TAR, *package.SMALL) if name != package.RESULT},
    **{f"{name} missing": missing(name) for name in (package.TAR, *package.SMALL)},
    "a byte more in the tar": lambda _world, folder: rewrite(folder / package.TAR, lambda data: data.append(0)),
    "the tar of another build": swap_in(package.TAR, text="other"),
    "the model.sig of another build": swap_in(SIG, text="other"),
    "the tar signature of another build": swap_in(TAR_SIG, text="other"),
    "the provenance of another build": swap_in(PROVENANCE, text="other"),
    "the provenance of another model": swap_in(PROVENANCE, model="letters"),
    "the provenance of another environment": swap_in(PROVENANCE, environment="staging"),
    "the model.sig of another model": swap_in(SIG, model="letters"),
    "result.json of another build": swap_in(package.RESULT, text="other"),
    "an untrusted key": untrusted,
    "one file by another trusted key": second_key,
    "a statement with a subject more": resigned(SIG, lambda s: s["subject"].append(s["subject"][0])),
    "a statement without a subject": resigned(SIG, lambda s: s["subject"].clear()),
    "a provenance with a subject more": resigned(PROVENANCE, lambda s: s["subject"].append(s["subject"][0])),
    "a provenance with a subject less": resigned(PROVENANCE, lambda s: s["subject"].pop()),
    "a provenance for another tar": resigned(PROVENANCE, lambda s: s["subject"][0]["digest"].update(sha256="00" * 32)),
    "a provenance for another model digest": resigned(
        PROVENANCE, lambda s: s["subject"][1]["digest"].update(sha256="00" * 32)
    ),
    "a provenance that names another model": resigned(PROVENANCE, lambda s: build(s).update(model="letters")),
    "a provenance that names another environment": resigned(
        PROVENANCE, lambda s: build(s).update(environment="staging")
    ),
    "a provenance of another kind": resigned(PROVENANCE, lambda s: s.update(predicateType="https://x/v1")),
    "a provenance without parameters": resigned(PROVENANCE, lambda s: s["predicate"].clear()),
    "a provenance as model.sig": lambda _world, folder: shutil.copy(folder / PROVENANCE, folder / SIG),
    "an empty statement": resigned(SIG, lambda s: s.clear()),
    "an empty provenance": resigned(PROVENANCE, lambda s: s.clear()),
    "an empty result.json": lambda _world, folder: (folder / package.RESULT).write_bytes(b"{}"),
    "another serialization": resigned(SIG, lambda s: s["predicate"]["serialization"].update(ignore_paths=["MLmodel"])),
    "links allowed": resigned(SIG, lambda s: s["predicate"]["serialization"].update(allow_symlinks=True)),
    "another root digest": resigned(SIG, lambda s: s["subject"][0]["digest"].update(sha256="00" * 32)),
    "a file added to the list": resources(lambda r: r.append({**r[0], "name": "zzz"})),
    "a file removed from the list": resources(lambda r: r.pop()),
    "a file renamed in the list": resources(lambda r: r[0].update(name="MLmodeL")),
    "a traversal in the list": resources(lambda r: r[0].update(name="../MLmodel")),
    "an absolute path in the list": resources(lambda r: r[0].update(name="/MLmodel")),
    "a file twice in the list": resources(lambda r: r.insert(0, r[0])),
    "a .git file in the list": resources(lambda r: r.insert(0, {**r[0], "name": ".git/hooks"})),
    "a digest that is none": resources(lambda r: r[0].update(digest="00")),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_a_package_that_was_tampered_with_is_refused_and_nothing_is_left(what: str, world: World) -> None:
    folder = champion(world)
    TAMPERING[what](world, folder)
    assert verify_directory(folder, world.trusted, model="digits", environment="default", target=world.root / "x")
    with pytest.raises(Permanent) as caught:
        fetch(world)
    assert caught.value.exit_code == VERIFICATION_FAILED
    assert not [*(world.root / "out").iterdir()]
    assert not (world.root / "x").exists()


@pytest.mark.parametrize("name", [package.TAR, *package.SMALL])
def test_a_package_directory_with_a_link_is_refused(name: str, world: World) -> None:
    folder = champion(world)
    linked(name)(world, folder)
    assert [fault for fault in verify_directory(folder, world.trusted) if fault.startswith(f"{name}:")]


def test_every_fault_of_a_package_is_listed(world: World) -> None:
    folder = champion(world)
    for name in (SIG, TAR_SIG, PROVENANCE):
        rewrite(folder / name, flip)
    (folder / "signer.pub").unlink()
    faults = verify_directory(folder, world.trusted, min_serial=1)
    assert {fault.split(":")[0] for fault in faults} == {SIG, TAR_SIG, PROVENANCE, "signer.pub", "pointer"}


def test_a_package_of_another_model_or_environment_is_refused(world: World) -> None:
    folder = champion(world)
    faults = verify_directory(folder, world.trusted, model="letters", environment="staging")
    assert {fault.split(":")[0] for fault in faults} == {"model", "environment"}


def test_the_pointer_must_name_the_package_and_be_new_enough(world: World) -> None:
    first = champion(world)
    second = champion(world, "better")
    assert verify_directory(second, world.trusted, pointer_file=world.pointer_file(), min_serial=1) == []
    faults = verify_directory(
        first, world.trusted, pointer_file=world.pointer_file(), min_serial=2, target=world.root / "x"
    )
    assert not (world.root / "x").exists()
    assert [fault.split()[1] for fault in faults] == ["names", "serial"]


def seal(world: World, **changes: object) -> None:
    found = world.pointer()
    assert found is not None
    changed = pointer.Pointer(**{**asdict(found), **changes})
    world.pointer_file().write_bytes(pointer.seal(changed, world.signer))


def misplaced(world: World) -> None:
    (folder,) = world.root.glob("models/packages/*/*/*")
    folder.rename(folder.with_name("00" * 32))
    seal(world, tar_sha256="00" * 32)


POINTERS: dict[str, Callable[[World], object]] = {
    "a byte flipped": lambda world: rewrite(world.pointer_file(), flip),
    "another model": lambda world: seal(world, model="letters"),
    "another environment": lambda world: seal(world, environment="staging"),
    "another root digest": lambda world: seal(world, root_digest="00" * 32),
    "a package that is not there": lambda world: seal(world, tar_sha256="00" * 32),
    "a package under another's digest": misplaced,
    "a path as a digest": lambda world: seal(world, tar_sha256="../../x"),
    "serial zero": lambda world: seal(world, serial=0),
    "a serial that is true": lambda world: seal(world, serial=True),
    "a statement": lambda world: shutil.copy(
        next(world.root.glob("models/packages/*/*/*")) / SIG, world.pointer_file()
    ),
    "no JSON": lambda world: world.pointer_file().write_bytes(b"x"),
}


@pytest.mark.parametrize("what", POINTERS)
def test_a_pointer_that_was_tampered_with_is_refused(what: str, world: World) -> None:
    champion(world)
    POINTERS[what](world)
    with pytest.raises(Untrusted) as caught:
        fetch(world)
    assert caught.value.exit_code == VERIFICATION_FAILED
    assert not [*(world.root / "out").iterdir()]


def test_a_pointer_by_a_revoked_key_is_refused(world: World) -> None:
    champion(world)
    for path in world.trusted_dir.iterdir():
        path.unlink()
    keys.ensure(world.root / "keys" / "next.pem", world.trusted_dir)
    with pytest.raises(Untrusted, match="not trusted"):
        fetch(world)
