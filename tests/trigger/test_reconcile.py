"""One reconcile for many models: none keeps the others waiting, neither by its trouble nor by its place."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import Temporary
from retrain_trigger.budget import Budget, Waiting
from retrain_trigger.model import Record
from retrain_trigger.trigger import Trigger
from tests.trigger.world import NOW, Ports, World, drift

MODELS = ("a", "b", "c", "d")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "ledger.db")
    for model in MODELS:
        world.trigger().event(drift(model))
    for name in world.workflow_names():
        world.end(name, "Rejected")
    return world


class Seen:
    """A ledger that notes whom reconcile looks at, and fails as `trouble` says."""

    def __init__(self, world: World, trouble: Callable[[str], None] = lambda _name: None) -> None:
        self._ledger, self._trouble = world.ports.ledger, trouble
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def read(self, name: str) -> Record | None:
        if not self.names or self.names[-1] != name:
            self.names.append(name)
        self._trouble(name)
        return self._ledger.read(name)


def watched(world: World, trouble: Callable[[str], None] = lambda _name: None) -> tuple[Trigger, Seen]:
    seen = Seen(world, trouble)
    return world.trigger(Ports(seen, world.ports.budgets, world.ports.workflows)), seen


def slice_of(models: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= models


def looked_at(trigger: Trigger, seen: Seen, models: int) -> list[str]:
    seen.names.clear()
    trigger.reconcile(until=slice_of(models))
    return [name.partition(".")[0] for name in seen.names]


# --- fair ---


def test_a_slice_that_is_too_short_is_gone_on_with_in_the_next_call(world: World) -> None:
    trigger, seen = watched(world)
    assert [looked_at(trigger, seen, 2) for _ in range(4)] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]


def test_what_was_left_is_counted(world: World) -> None:
    assert world.trigger().reconcile(until=slice_of(1)) == {"hold": 1, "left": 3}


def test_a_model_that_appears_meanwhile_is_not_last_for_ever(world: World) -> None:
    trigger, seen = watched(world)
    looked_at(trigger, seen, 3)
    world.trigger().event(drift("b2"))
    assert set(looked_at(trigger, seen, 2)) == {"b2", "d"}


def waits(world: World, **severities: str) -> None:
    """These models wait for budget, the first for the longest."""
    waiting = {
        f"{model}.default": Waiting(severity=severity, since=NOW + timedelta(seconds=place), refreshed=NOW)
        for place, (model, severity) in enumerate(severities.items())
    }
    world.ports.budgets.write(Budget(waiting=waiting), world.ports.budgets.read()[1])


def test_who_waits_for_budget_comes_first_by_severity_and_then_age(world: World) -> None:
    waits(world, d="warning", b="warning", c="critical")
    trigger, seen = watched(world)
    assert [looked_at(trigger, seen, 9) for _ in "ab"] == [["c", "d", "b", "a"]] * 2


def test_who_waits_for_budget_does_not_starve_the_others(world: World) -> None:
    waits(world, d="warning", b="warning", c="critical")
    trigger, seen = watched(world)
    assert [looked_at(trigger, seen, 2) for _ in range(4)] == [["c", "d"], ["b", "a"], ["c", "d"], ["b", "a"]]


# --- apart from each other ---


def damaged_status(world: World) -> None:
    stored = world.objects.get("ManagedModel", "b.default")
    assert stored is not None
    doc = {**stored.doc, "status": {**stored.doc["status"], "attempts": "many", "history": [{"kind": 1}]}}
    world.objects.replace("ManagedModel", stored.name, doc, stored.version, pending=True)


def no_json(world: World) -> None:
    with sqlite3.connect(world.path) as connection:
        connection.execute("UPDATE objects SET doc = substr(doc, 1, 99) WHERE name = 'b.default'")
    connection.close()


@pytest.mark.parametrize("damage", [damaged_status, no_json])
def test_a_damaged_ledger_stops_its_own_model_only_and_is_named(
    world: World, damage: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(world)
    with caplog.at_level(logging.ERROR, "aegis"):
        assert world.trigger().reconcile() == {"hold": 3, "invalid": 1}
    (logged,) = caplog.records
    assert vars(logged)["managed_model"] == "b.default"
    if damage is damaged_status:
        assert "status.attempts" in vars(logged)["error"]
        assert "status.history" in vars(logged)["error"]
    for model in "acd":
        retrain = world.record(model).status.retrain
        assert retrain is not None
        assert retrain.outcome == "Rejected"


@pytest.mark.parametrize(
    ("error", "result"),
    [(RuntimeError("a bug"), "failed"), (KeyError("x"), "failed"), (ImportError("no such package"), "failed"),
     (Temporary("no answer"), "again")],
    ids=repr,
)  # fmt: skip
def test_unknown_trouble_of_one_model_is_logged_and_stops_no_other(
    world: World, error: Exception, result: str, caplog: pytest.LogCaptureFixture
) -> None:
    def trouble(name: str) -> None:
        if name == "a.default":
            raise error

    trigger, seen = watched(world, trouble)
    with caplog.at_level(logging.WARNING, "aegis"):
        assert trigger.reconcile() == {"hold": 3, result: 1}
    assert len(set(seen.names)) == 4
    (logged,) = caplog.records
    assert vars(logged)["managed_model"] == "a.default"
    assert (logged.exc_info is not None) == (result == "failed"), "what nobody foresaw needs its traceback"


def test_a_damaged_budget_is_nobodys_decision(world: World) -> None:
    objects = world.objects
    stored = objects.get("Budget", "budget")
    assert stored is not None
    doc = {"waiting": {"a.default": {"severity": "loud", "since": "2026-03-01T00:00:00Z", "refreshed": "soon"}}}
    objects.replace("Budget", "budget", doc, stored.version)
    with pytest.raises(Temporary, match="budget"):
        world.trigger().reconcile()
    fresh = replace(drift("new"), seen=world.now)
    with pytest.raises(Temporary, match=r"budget\.waiting"):
        world.trigger().event(fresh)
    assert len(world.workflow_names()) == 4
