"""The one-machine adapters keep the ports' contract, and what is particular to a SQLite file."""

from __future__ import annotations

import functools
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.errors import Conflict, NotFound, Permanent, Temporary
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Status
from retrain_trigger.sqlite import Objects
from tests.trigger.contract import Opener, PortsContract, expects_temporary
from tests.trigger.world import NOW, Ports, new_uid, sqlite_ports


class TestSqlite(PortsContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return functools.partial(sqlite_ports, tmp_path / "state" / "ledger.db")


@pytest.fixture
def ledger(tmp_path: Path) -> LocalLedger:
    return LocalLedger(Objects(tmp_path / "ledger.db"), new_uid)


def test_a_ledger_of_a_newer_aegis_is_temporary(tmp_path: Path, ledger: LocalLedger) -> None:
    ledger.create("default", "churn", Status(), NOW)
    objects = Objects(tmp_path / "ledger.db")
    stored = objects.get("ManagedModel", "churn.default")
    assert stored is not None
    objects.replace("ManagedModel", "churn.default", {**stored.doc, "status": {"formatVersion": 2}}, stored.version)
    with pytest.raises(Temporary, match="newer"):
        ledger.read("churn.default")


def test_a_field_that_a_newer_version_added_is_left_alone_by_reading(tmp_path: Path, ledger: LocalLedger) -> None:
    ledger.create("default", "churn", Status(attempts=2), NOW)
    objects = Objects(tmp_path / "ledger.db")
    stored = objects.get("ManagedModel", "churn.default")
    assert stored is not None
    status = {**stored.doc["status"], "mood": "good"}
    objects.replace("ManagedModel", "churn.default", {**stored.doc, "status": status}, stored.version)
    found = ledger.read("churn.default")
    assert found is not None
    assert found.status.attempts == 2


def test_an_owners_policy_is_kept_by_the_triggers_writes(ledger: LocalLedger) -> None:
    ledger.set_spec("default", "churn", {"cooldown": "1h"}, NOW)
    record = ledger.read("churn.default")
    assert record is not None
    ledger.write(record, Status(attempts=1), pending=False)
    ledger.set_spec("default", "churn", {"cooldown": "2h"}, NOW)
    record = ledger.read("churn.default")
    assert record is not None
    assert (record.policy.cooldown.total_seconds(), record.status.attempts) == (7200, 1)


def test_a_policy_that_changes_under_a_decision_is_a_conflict(ledger: LocalLedger) -> None:
    ledger.set_spec("default", "churn", {}, NOW)
    record = ledger.read("churn.default")
    assert record is not None
    ledger.set_spec("default", "churn", {"suspend": True}, NOW)
    with pytest.raises(Conflict):
        ledger.write(record, Status(), pending=False)


def test_a_bad_policy_is_refused_with_every_fault_and_not_stored(ledger: LocalLedger) -> None:
    with pytest.raises(Permanent) as caught:
        ledger.set_spec("default", "churn", {"cooldown": "soon", "maxAttempts": 0, "colour": "red"}, NOW)
    assert set(caught.value.faults) == {"spec.cooldown", "spec.maxAttempts", "spec.colour"}
    assert ledger.read("churn.default") is None


def test_a_request_makes_the_record_pending_and_is_read(ledger: LocalLedger) -> None:
    made = ledger.create("default", "churn", Status(), NOW)
    ledger.write(made, Status(), pending=False)
    ledger.request("churn.default", "t1", "ada", "new data")
    assert list(ledger.pending()) == ["churn.default"]
    record = ledger.read("churn.default")
    assert record is not None
    assert record.request is not None
    assert (record.request.token, record.request.by, record.request.why) == ("t1", "ada", "new data")


def test_a_request_for_an_unknown_model_is_not_found(ledger: LocalLedger) -> None:
    with pytest.raises(NotFound):
        ledger.request("churn.default", "t1", "ada", "")


def test_a_file_that_is_no_database_is_temporary_and_works_once_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, but a text that is longer than its header" * 9)
    ports = sqlite_ports(path)
    _each_call_is_temporary(ports)
    path.unlink()
    assert ports.ledger.read("churn.default") is None


def test_a_directory_that_cannot_be_made_is_temporary(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _each_call_is_temporary(sqlite_ports(tmp_path / "file" / "ledger.db"))


def test_a_file_that_is_locked_for_too_long_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrain_trigger.sqlite.BUSY_TIMEOUT_S", 0.05)
    ports = sqlite_ports(tmp_path / "ledger.db")
    made = ports.ledger.create("default", "churn", Status(), NOW)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        expects_temporary(lambda: ports.ledger.write(made, Status(attempts=1), pending=False))
        assert ports.ledger.read("churn.default") == made, "readers never wait for a writer"
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert ports.ledger.write(made, Status(attempts=1), pending=False).status.attempts == 1


def test_a_claim_is_on_disk_when_the_write_returns(tmp_path: Path) -> None:
    ports = sqlite_ports(tmp_path / "ledger.db")
    ports.ledger.create("default", "churn", Status(attempts=1), NOW)
    connection = Objects(tmp_path / "ledger.db")._connection()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: a power cut loses no commit"
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_document_is_the_one_that_kubernetes_would_hold(tmp_path: Path, ledger: LocalLedger) -> None:
    made = ledger.create("default", "churn", Status(attempts=1), NOW)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        ((kind, name, doc),) = connection.execute("SELECT kind, name, doc FROM objects").fetchall()
    connection.close()
    assert (kind, name) == ("ManagedModel", "churn.default")
    assert json.loads(doc) == {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": "churn.default", "uid": made.uid, "creationTimestamp": "2026-03-01T12:00:00.000Z"},
        "spec": {"environment": "default", "model": "churn"},
        "status": {"formatVersion": 1, "attempts": 1, "failures": 0, "sequence": 0},
    }


def _each_call_is_temporary(ports: Ports) -> None:
    expects_temporary(lambda: ports.ledger.read("churn.default"))
    expects_temporary(lambda: ports.ledger.create("default", "churn", Status(), NOW))
    expects_temporary(lambda: list(ports.ledger.pending()))
    expects_temporary(lambda: ports.ledger.count())
    expects_temporary(lambda: ports.budgets.read())
    expects_temporary(lambda: ports.workflows.get("w"))
    expects_temporary(lambda: ports.workflows.of_model("churn.default"))


def test_reading_with_a_stale_record_never_writes(ledger: LocalLedger) -> None:
    made = ledger.create("default", "churn", Status(), NOW)
    with pytest.raises(Conflict):
        ledger.write(replace(made, version="99"), Status(), pending=False)
