"""Threads of one process that want places in the budget at the same moment share the writes of its document."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.errors import Conflict, Temporary
from retrain_trigger.budget import Budget
from retrain_trigger.ports import Budgets
from tests.support import until
from tests.trigger.world import NOW, World, drift

MODELS = [f"model-{number}" for number in range(6)]


class Slow:
    """A budget whose first write waits until all others have asked; then it may fail."""

    def __init__(self, inner: Budgets, error: Exception | None = None) -> None:
        self.writes = 0
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self._inner, self._error = inner, error

    def read(self) -> tuple[Budget, str]:
        return self._inner.read()

    def write(self, budget: Budget, version: str) -> None:
        self.writes += 1
        if self.writes == 1:
            self.begun.set()
            assert self.goes_on.wait(20)
        elif self._error is not None:
            raise self._error
        self._inner.write(budget, version)


def told(world: World, budgets: Slow, severities: dict[str, str]) -> dict[str, str]:
    """What each model was told when all asked while the first one's reservation was being written."""
    trigger = world.trigger(replace(world.ports, budgets=budgets))
    found: dict[str, str] = {}

    def ask(model: str) -> None:
        event = drift(model, dataset_uri="s3://data/new", severity=severities.get(model, "warning"))
        try:
            found[model] = trigger.event(event).decision.reason
        except Temporary as exc:
            found[model] = str(exc)

    with ThreadPoolExecutor(len(MODELS)) as pool:
        first = pool.submit(ask, MODELS[0])
        assert budgets.begun.wait(20)
        others = [pool.submit(ask, model) for model in MODELS[1:]]
        until(lambda: len(trigger._asking) == len(others), "all the others ask", within_s=20)
        budgets.goes_on.set()
        for done in (first, *others):
            done.result(20)
    return found


def test_who_asks_during_a_write_shares_the_next_one(tmp_path: Path) -> None:
    world = World(tmp_path / "ledger.db", limits=replace(World(tmp_path / "x.db").limits, budget=20))
    budgets = Slow(world.ports.budgets)
    assert told(world, budgets, {}) == dict.fromkeys(MODELS, "Drift")
    assert budgets.writes == 2
    assert set(world.ports.budgets.read()[0].reservations) == set(world.workflow_names())
    assert len(world.workflow_names()) == len(MODELS)


def test_the_most_severe_of_those_that_share_a_write_come_first_and_the_budget_holds(tmp_path: Path) -> None:
    world = World(tmp_path / "ledger.db", limits=replace(World(tmp_path / "x.db").limits, budget=3))
    found = told(world, Slow(world.ports.budgets), {MODELS[-1]: "critical", MODELS[-2]: "critical"})
    assert [model for model in MODELS if found[model] == "Drift"] == [MODELS[0], *MODELS[-2:]]
    budget, _ = world.ports.budgets.read()
    assert len(budget.reservations) == len(world.workflow_names()) == 3
    assert budget.waiting.keys() == {f"{model}.default" for model in MODELS[1:-2]}


def test_a_write_that_fails_fails_for_all_that_share_it_and_nothing_is_claimed(tmp_path: Path) -> None:
    world = World(tmp_path / "ledger.db")
    found = told(world, Slow(world.ports.budgets, Temporary("no answer")), {})
    assert found.pop(MODELS[0]) == "Drift"
    assert set(found.values()) == {"the budget was not written: no answer"}
    assert len(world.workflow_names()) == 1
    for model in MODELS[1:]:  # who is told 503 comes again
        assert world.trigger().event(drift(model)).decision.reason == "Drift"
    assert set(world.ports.budgets.read()[0].reservations) == set(world.workflow_names())


def test_conflicts_without_end_are_a_hold_for_all_that_share_the_write(tmp_path: Path) -> None:
    world = World(tmp_path / "ledger.db")
    found = told(world, Slow(world.ports.budgets, Conflict("another process")), {})
    assert found.pop(MODELS[0]) == "Drift"
    assert set(found.values()) == {"BudgetContention"}
    world.now = NOW
    assert world.trigger().reconcile() == {"submit": 5, "hold": 1}


def test_an_unknown_fault_leaves_nobody_waiting(tmp_path: Path) -> None:
    world = World(tmp_path / "ledger.db")
    budgets = Slow(world.ports.budgets, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        told(world, budgets, {})
    trigger = world.trigger(replace(world.ports, budgets=world.ports.budgets))
    assert trigger.event(drift("another")).decision.reason == "Drift"
