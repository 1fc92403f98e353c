"""What a write of the ledger tells people as Kubernetes Events: each transition once, and no repeats."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aegis.errors import AlreadyExists, Temporary
from retrain_trigger import announce
from retrain_trigger.announce import Announcer, News, document, news
from retrain_trigger.model import Condition, Policy, Record, Row, Status
from tests.trigger.contract import full_status
from tests.trigger.world import NOW

LATER = NOW + timedelta(minutes=5)
AT, AT_LATER = "2026-03-01T12:00:00.000Z", "2026-03-01T12:05:00.000Z"
RECORD = Record(
    name="churn.default", uid="u-1", version="7", environment="default", model="churn", policy=Policy(), status=Status()
)


def row(kind: str, reason: str, message: str = "", *, count: int = 1, workflow: str | None = None) -> Row:
    return Row(kind=kind, reason=reason, message=message, first=NOW, last=LATER, count=count, workflow=workflow)


def condition(kind: str, reason: str, *, holds: bool = True, message: str = "in words") -> Condition:
    return Condition(type=kind, status=str(holds), reason=reason, message=message, last_transition_time=LATER)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (
            row("Submitted", "Drift", "version 7 drifts", workflow="aegis-churn-1"),
            News("Drift", "retrain submitted: version 7 drifts", warning=False, at=AT, workflow="aegis-churn-1"),
        ),
        (row("Hold", "Cooldown", "too recent"), News("Cooldown", "held: too recent", warning=False, at=AT)),
        (row("Hold", "Cooldown"), News("Cooldown", "held", warning=False, at=AT)),
        (row("Rejected", "Invalid", "dataset_uri"), News("Invalid", "alert refused: dataset_uri", True, AT)),
        (row("Finished", "Promoted"), News("RetrainPromoted", "retrain ended", warning=False, at=AT)),
        (row("Finished", "Rejected", "worse"), News("RetrainRejected", "retrain ended: worse", False, AT)),
        *(
            (row("Finished", bad), News(f"Retrain{bad}", "retrain ended", warning=True, at=AT))
            for bad in ("Failed", "Lost", "BadData", "TrainerFailed", "Cancelled")
        ),
        (row("Request", "AlreadyRunning", "by ada"), News("AlreadyRunning", "request: by ada", False, AT)),
    ],
    ids=lambda value: f"{value.kind} {value.reason}" if isinstance(value, Row) else "",
)
def test_a_new_row_of_the_history_is_told(new: Row, told: News) -> None:
    assert news(Status(), Status(history=(new,))) == [told]


def test_what_was_told_is_not_told_again() -> None:
    before = Status(history=(row("Submitted", "Drift"), row("Hold", "InFlight")))
    after = replace(before, history=(*before.history, row("Finished", "Lost")), attempts=1)
    assert [told.reason for told in news(before, after)] == ["RetrainLost"]
    assert news(after, after) == []


def test_a_repeat_that_only_counts_on_is_no_news() -> None:
    before = Status(history=(row("Hold", "Cooldown", "next at 1"),))
    after = Status(history=(replace(row("Hold", "Cooldown", "next at 2", count=2), last=LATER + timedelta(hours=1)),))
    assert news(before, after) == []


def test_the_same_hold_that_begins_again_later_is_news() -> None:
    before = Status(history=(row("Hold", "Cooldown"), row("Submitted", "Drift")))
    again = replace(row("Hold", "Cooldown"), first=LATER)
    assert [told.at for told in news(before, replace(before, history=(*before.history, again)))] == [AT_LATER]


def test_rows_that_left_the_history_are_no_news() -> None:
    full = full_status()
    assert news(full, replace(full, history=full.history[1:])) == []


@pytest.mark.parametrize("kind", ["NeedsHuman", "Stuck"])
def test_a_condition_that_needs_a_person_is_a_warning(kind: str) -> None:
    told = News("AttemptsSpent", f"{kind}: in words", warning=True, at=AT_LATER)
    need, quiet = condition(kind, "AttemptsSpent"), condition(kind, "No", holds=False, message="")
    assert news(Status(), Status(conditions=(need,))) == [told]
    assert news(Status(conditions=(quiet,)), Status(conditions=(need,))) == [told]
    assert news(Status(conditions=(need,)), Status(conditions=(need,))) == []
    assert news(Status(conditions=(need,)), Status(conditions=(replace(need, message="in other words"),))) == []
    assert news(Status(conditions=(need,)), Status(conditions=(quiet,))) == [], "that it is over nobody has to act on"
    other = condition(kind, "RetrainsFail")
    assert [told.reason for told in news(Status(conditions=(need,)), Status(conditions=(other,)))] == ["RetrainsFail"]


@pytest.mark.parametrize("kind", ["Drifting", "Retraining"])
def test_other_conditions_are_not_told_for_the_history_has_them(kind: str) -> None:
    assert news(Status(), Status(conditions=(condition(kind, "AlertsFiring"),))) == []


def test_an_event_is_named_by_what_it_says() -> None:
    told = News("Drift", "retrain submitted", warning=False, at=AT, workflow="aegis-churn-1")
    one, same = document(RECORD, "aegis", told), document(replace(RECORD, version="8"), "aegis", told)
    assert one["metadata"] == same["metadata"], "whoever tells it, and whenever"
    others = [
        document(replace(RECORD, uid="u-2"), "aegis", told),
        document(RECORD, "aegis", replace(told, at=AT_LATER)),
        document(RECORD, "aegis", replace(told, reason="Requested")),
        document(RECORD, "aegis", replace(told, workflow="aegis-churn-2")),
    ]
    assert len({doc["metadata"]["name"] for doc in (one, *others)}) == 5


def test_an_event_says_about_what_and_when() -> None:
    doc = document(RECORD, "aegis", News("RetrainLost", "x" * 2000, warning=True, at=AT, workflow="w"))
    about = doc["involvedObject"]
    assert (about["kind"], about["name"], about["namespace"], about["uid"]) == (
        "ManagedModel", "churn.default", "aegis", "u-1",
    )  # fmt: skip
    assert (doc["type"], doc["count"], doc["firstTimestamp"], doc["lastTimestamp"]) == ("Warning", 1, AT, AT)
    assert len(doc["message"]) == 1024, "the API server takes no longer one"
    assert doc["metadata"]["name"].startswith("churn.default.")


class Told:
    """Stands for the client: notes what is written, or fails."""

    def __init__(self, *errors: Exception) -> None:
        self.documents: list[dict[str, Any]] = []
        self.goes_on = threading.Event()
        self._errors = list(errors)

    def call(self, _method: str, _path: str, *, body: dict[str, Any]) -> None:
        self.goes_on.wait(10)
        if self._errors:
            raise self._errors.pop(0)
        self.documents.append(body)


def announcer(client: Told) -> Announcer:
    return Announcer(client, "aegis")  # type: ignore[arg-type]  # it has the one method that counts


def test_an_event_that_exists_or_fails_does_not_hold_up_the_next() -> None:
    client = Told(AlreadyExists("told before"), Temporary("no answer"))
    client.goes_on.set()
    tell = announcer(client)
    tell(RECORD, Status(history=tuple(row("Hold", reason) for reason in ("A", "B", "C"))))
    tell._waiting.join()
    assert [doc["reason"] for doc in client.documents] == ["C"]


def test_more_events_than_can_wait_are_dropped_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(announce, "MAX_WAITING", 2)
    client = Told()
    tell = announcer(client)
    tell(RECORD, Status(history=tuple(row("Hold", str(number)) for number in range(9))))
    assert "an Event was dropped" in caplog.text
    client.goes_on.set()
    tell._waiting.join()
    assert 2 <= len(client.documents) <= 3, "those that wait, and the one that is being written"
