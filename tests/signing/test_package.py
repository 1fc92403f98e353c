"""Packages and pointers: what is fetched, what is malformed, and that every fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis import manifest, package, pointer
from aegis.errors import VERIFICATION_FAILED, Permanent
from aegis.package import MODEL_SIG, PROVENANCE, TAR_SIG
from aegis.signature import Untrusted
from sign_model import keys
from sign_model.verify import verify_directory
from tests.signing.tampering import Tamper, champion, flipped, listed, parameters, resigned, seal
from tests.signing.world import World


def fetch(world: World) -> pointer.Champion | None:
    return pointer.fetch_champion(
        world.store, world.trusted, world.environment, world.model, world.root / "out" / "champion"
    )


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


def missing(name: str) -> Tamper:
    return lambda _world, folder: (folder / name).unlink()


def linked(name: str) -> Tamper:
    def tamper(world: World, folder: Path) -> None:
        (folder / name).rename(world.root / "moved")
        (folder / name).symlink_to(world.root / "moved")

    return tamper


# What is no attack, as nothing of it could be taken for a package. Attacks are in test_attacks.
MALFORMED: dict[str, Tamper] = {
    **{f"{name} missing": missing(name) for name in (package.TAR, *package.SMALL)},
    "a statement without a subject": resigned(MODEL_SIG, lambda s: s["subject"].clear()),
    "a provenance without parameters": resigned(PROVENANCE, lambda s: s["predicate"].clear()),
    "a provenance with a model that is no text": resigned(PROVENANCE, lambda s: parameters(s).update(model=["digits"])),
    "a provenance as model.sig": lambda _world, folder: shutil.copy(folder / PROVENANCE, folder / MODEL_SIG),
    "an empty statement": resigned(MODEL_SIG, lambda s: s.clear()),
    "an empty provenance": resigned(PROVENANCE, lambda s: s.clear()),
    "an empty result.json": lambda _world, folder: (folder / package.RESULT).write_bytes(b"{}"),
    "a digest that is none": resigned(MODEL_SIG, lambda s: s["predicate"]["resources"][0].update(digest="00")),
    "a traversal in the list": resigned(MODEL_SIG, listed(lambda resources: resources[0].update(name="../MLmodel"))),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_package_is_refused_and_nothing_is_left(what: str, world: World) -> None:
    folder = champion(world)
    MALFORMED[what](world, folder)
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
    for name in (MODEL_SIG, TAR_SIG, PROVENANCE):
        flipped(name, 300)(world, folder)
    (folder / "signer.pub").unlink()
    faults = verify_directory(folder, world.trusted, min_serial=1)
    assert {fault.split(":")[0] for fault in faults} == {MODEL_SIG, TAR_SIG, PROVENANCE, "signer.pub", "pointer"}


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


POINTERS: dict[str, Callable[[World], object]] = {
    "a package that is not there": lambda world: seal(world, tar_sha256="00" * 32),
    "serial zero": lambda world: seal(world, serial=0),
    "a serial that is true": lambda world: seal(world, serial=True),
    "no JSON": lambda world: world.pointer_file().write_bytes(b"x"),
}


@pytest.mark.parametrize("what", POINTERS)
def test_a_malformed_pointer_is_refused(what: str, world: World) -> None:
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
