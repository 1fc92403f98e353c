"""Whether a roll-out by a person is seen: the champion's serial as the trigger reads it from the signed pointer."""

from __future__ import annotations

import importlib.util
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis import pointer, storage
from aegis.errors import USAGE, Permanent
from aegis.pointer import Pointer
from retrain_trigger import champion
from retrain_trigger.champion import champion_serial, in_time
from retrain_trigger.function import from_env
from tests.signing.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def crown(world: World, serial: int, model: str = "digits") -> None:
    new = Pointer(model, "default", serial, "ab" * 32, "cd" * 32, "file:///p", "r", "1", "uid", "2026-01-01T00:00:00Z")
    where = pointer.path_of("default", "digits")
    entry = world.store.head(where)
    world.store.swap(where, pointer.seal(new, world.signer), entry.version if entry else None)


def test_the_serial_is_that_of_the_verified_pointer(world: World) -> None:
    serial = champion_serial(world.uri, world.trusted_dir, {})
    assert serial("default", "digits") is None
    for number in (1, 2):
        crown(world, number)
        assert serial("default", "digits") == str(number)


def test_a_pointer_that_cannot_be_trusted_or_read_is_no_roll_out(world: World) -> None:
    crown(world, 1, model="other")
    assert champion_serial(world.uri, world.trusted_dir, {})("default", "digits") is None
    crown(world, 2)
    for uri, trusted in (
        (world.uri, world.root / "nowhere"),
        (world.uri, None),
        ("", world.trusted_dir),
        ("ftp://host/models", world.trusted_dir),
    ):
        assert champion_serial(uri, trusted, {})("default", "digits") is None


def test_one_client_does_for_all_reads_and_none_is_made_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = storage.open_store

    def counted(uri: str, **more: Any) -> storage.Store:
        opened.append(uri)
        return real(uri, **more)

    monkeypatch.setattr(storage, "open_store", counted)
    serial = champion_serial(world.uri, world.trusted_dir, {})
    assert opened == []
    crown(world, 1)
    assert [serial("default", "digits") for _ in range(3)] == ["1"] * 3
    assert opened == [world.uri]


# --- a store that takes its time ---


@pytest.fixture
def deaf_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Takes every connection and never answers."""
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    others = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for thread in set(threading.enumerate()) - others:
        thread.join(30)  # its connection is gone: it says so in the log, but not in another test's


def test_a_bucket_that_hangs_costs_a_moment_once_and_then_nothing_for_a_while(
    world: World, deaf_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(champion, "WITHIN_S", 0.3)
    env = {"AWS_ENDPOINT_URL": deaf_bucket, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    serial = champion_serial("s3://models/all", world.trusted_dir, env)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "aegis"):
        assert [serial("default", "digits") for _ in range(20)] == [None] * 20
    assert time.monotonic() - began < 5, "one wait of 0.3 s, and a slow machine"
    (warned,) = caplog.records
    assert "in time" in warned.message


def test_a_store_that_was_slow_is_asked_again_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    asked: list[str] = []

    def read(_environment: str, model: str) -> str | None:
        asked.append(model)
        if len(asked) == 1:
            hangs.wait(10)
        return "7"

    monkeypatch.setattr(champion, "WITHIN_S", 0.05)
    monkeypatch.setattr(champion, "REST_S", 1000.0)
    serial = in_time(read)
    assert serial("default", "a") is None
    assert serial("default", "b") is None
    assert asked == ["a"], "left alone"
    hangs.set()
    monkeypatch.setattr(champion, "WITHIN_S", 10.0)
    now = time.monotonic() + 1001
    monkeypatch.setattr("retrain_trigger.champion.time.monotonic", lambda: now)
    assert serial("default", "c") == "7"


def test_a_fault_of_the_reader_is_logged_and_no_roll_out(caplog: pytest.LogCaptureFixture) -> None:
    def read(_environment: str, _model: str) -> str | None:
        raise ImportError("no such package")

    with caplog.at_level(logging.ERROR, "aegis"):
        assert in_time(read)("default", "digits") is None
    assert [record.exc_info is not None for record in caplog.records] == [True]


# --- a lean image ---


@pytest.mark.parametrize(
    ("uri", "without", "fault"),
    [
        ("file:///models", "cryptography", True),
        ("s3://models/all", "boto3", True),
        ("gs://models/all", "google", True),
        ("gs://models/all", "boto3", False),
        ("s3://models/all", "google", False),
        ("", "cryptography", False),
    ],
)
def test_packages_that_a_pointer_needs_are_missed_at_the_start_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, without: str, fault: bool
) -> None:
    real = importlib.util.find_spec

    def lean(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] != without:
            return real(name, package)
        if "." in name:
            raise ModuleNotFoundError(name)
        return None

    monkeypatch.setattr(importlib.util, "find_spec", lean)
    monkeypatch.setattr("retrain_trigger.function.setup_logging", lambda _level: None)  # it is the whole process's
    env = {
        "AEGIS_LEDGER": str(tmp_path / "ledger.db"),
        "AEGIS_TRUST_LOOPBACK": "true",
        "AEGIS_MODELS_URI": uri,
        "AEGIS_TRUSTED_KEYS": str(tmp_path / "trusted"),
    }
    try:
        from_env(env)
    except Permanent as exc:
        assert fault
        assert exc.exit_code == USAGE  # noqa: PT017  # either end may be right
        assert "extra `sign`" in exc.faults["AEGIS_MODELS_URI"]  # noqa: PT017
    else:
        assert not fault
