"""Whether a roll-out by a person is seen: the champion's serial as the trigger reads it from the signed pointer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aegis import pointer
from aegis.pointer import Pointer
from retrain_trigger.function import Settings, champion_serial
from tests.signing.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def crown(world: World, serial: int, model: str = "digits") -> None:
    new = Pointer(model, "default", serial, "ab" * 32, "cd" * 32, "file:///p", "r", "1", "uid", "2026-01-01T00:00:00Z")
    where = pointer.path_of("default", "digits")
    entry = world.store.head(where)
    world.store.swap(where, pointer.seal(new, world.signer), entry.version if entry else None)


def settings(world: World) -> Settings:
    ledger = world.root / "ledger.db"
    return Settings(ledger=ledger, trust_loopback=True, models_uri=world.uri, trusted_keys=world.trusted_dir)


def test_the_serial_is_that_of_the_verified_pointer(world: World) -> None:
    serial = champion_serial(settings(world), {})
    assert serial("default", "digits") is None
    for number in (1, 2):
        crown(world, number)
        assert serial("default", "digits") == str(number)


def test_a_pointer_that_cannot_be_trusted_or_read_is_no_roll_out(world: World) -> None:
    crown(world, 1, model="other")
    assert champion_serial(settings(world), {})("default", "digits") is None
    crown(world, 2)
    for own in (
        replace(settings(world), trusted_keys=world.root / "nowhere"),
        replace(settings(world), trusted_keys=None),
        replace(settings(world), models_uri=""),
        replace(settings(world), models_uri="ftp://host/models"),
    ):
        assert champion_serial(own, {})("default", "digits") is None
