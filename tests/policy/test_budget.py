"""Who may submit when not all may."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aegis.errors import Conflict
from retrain_trigger.budget import Budget, grant
from retrain_trigger.model import Status

from .world import HOUR, MINUTE, MODELS, NAME, START, Killed, World, drift


def ask(
    budget: Budget, model: str, severity: str = "warning", *, at: timedelta = timedelta(0), limit: int = 1
) -> tuple[bool, Budget]:
    return grant(budget, f"{model}-1", model, 1, severity, START + at, limit=limit)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.limits = replace(world.limits, budget=1)
    world.trigger = world.start()
    return world


def test_the_most_severe_goes_first_and_then_the_oldest() -> None:
    _, budget = ask(Budget(), "first")
    began = {"young": ("info", 30), "old": ("warning", 35), "new": ("warning", 40), "bad": ("critical", 45)}
    order: list[str] = []
    for minute in range(30, 300, 5):
        for model, (severity, since) in began.items():
            if model not in order and minute >= since:
                granted, budget = ask(budget, model, severity, at=minute * MINUTE)
                order += [model] if granted else []
    assert order == ["bad", "old", "new", "young"]


def test_asking_twice_takes_one_place() -> None:
    _, budget = ask(Budget(), "a", limit=2)
    granted, budget = ask(budget, "a", limit=2)
    assert granted
    assert len(budget.reservations) == 1
    assert ask(budget, "b", limit=2)[0]


def test_an_old_reservation_used_at_last_counts_from_its_use() -> None:
    _, budget = ask(Budget(), "a")
    granted, budget = ask(budget, "a", at=9 * MINUTE)
    assert granted
    assert not ask(budget, "b", at=61 * MINUTE)[0]


def test_who_no_longer_asks_is_forgotten() -> None:
    _, budget = ask(Budget(), "a")
    _, budget = ask(budget, "bad", "critical", at=30 * MINUTE)
    assert ask(budget, "small", "info", at=HOUR)[0]


def test_the_list_of_those_who_wait_is_bounded() -> None:
    _, budget = ask(Budget(), "a")
    for number in range(150):
        _, budget = ask(budget, f"m{number}")
    assert len(budget.waiting) == 100


def test_a_reservation_without_a_claim_expires_after_ten_minutes(world: World) -> None:
    def die(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("after", "budgets", "write"):
            raise Killed

    with pytest.raises(Killed):
        world.start(die).event(drift(world.now))
    world.now += 9 * MINUTE
    assert world.fire(model="other").decision.reason == "BudgetSpent"
    world.now += MINUTE
    assert world.fire(model="other").workflow is not None


def test_a_claimed_reservation_does_not_expire(world: World) -> None:
    world.fire()
    world.now += 11 * MINUTE
    assert world.fire(model="other").decision.reason == "BudgetSpent"
    world.now += 50 * MINUTE
    assert world.fire(model="other").workflow is not None


@pytest.mark.parametrize("trouble", ["deleted", "invalid", "newer"])
def test_the_trouble_of_one_model_stops_no_other(world: World, trouble: str) -> None:
    world.fire()
    stored = world.objects.get(MODELS, NAME)
    assert stored is not None
    if trouble == "deleted":
        world.forget(MODELS, NAME)
    else:
        part = {"spec": {"suspend": 3}} if trouble == "invalid" else {"status": {"formatVersion": 9}}
        world.objects.replace(MODELS, NAME, {**stored.doc, **part}, stored.version, pending=True)
    world.now += 11 * MINUTE
    assert world.fire(model="other").decision.reason == "BudgetSpent"


def test_contention_is_a_hold_that_reconcile_ends(world: World) -> None:
    def contend(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "budgets", "write"):
            raise Conflict("somebody was quicker")

    answer = world.start(contend).event(drift(world.now))
    assert answer.decision.reason == "BudgetContention"
    assert world.status.evidence
    world.reconcile()
    assert len(world.workflows()) == 1


def test_a_refused_submission_leaves_no_claim(world: World) -> None:
    world.fire(model="other")
    world.fire()
    assert (world.status.retrain, world.status.sequence) == (None, 0)
    assert world.status.waits == {"BudgetSpent": world.now}
    assert Status().waits == {}


def test_a_claim_that_was_refused_by_the_budget_is_made_in_time(world: World) -> None:
    world.fire(model="other")
    world.fire()
    world.wait(HOUR)
    assert len(world.workflows()) == 2
