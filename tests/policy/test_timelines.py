"""Days in the life of one model, told as they happen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from .world import DAY, HOUR, MINUTE, World, drift


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def live(world: World, time: timedelta, outcomes: Iterator[str], *alerts: dict[str, Any], repeat: timedelta) -> int:
    """Let alerts repeat while Workflows run for an hour each. Returns how many retrains began."""
    before = len(world.workflows())
    next_repeat, end = world.now, world.now + time
    while world.now < end:
        if world.now >= next_repeat:
            for alert in alerts:
                world.fire(**alert)
            next_repeat += repeat
        if world.open():
            world.end(next(outcomes), took=HOUR)
        else:
            world.wait(10 * MINUTE)
    return len(world.workflows()) - before


def always(outcome: str) -> Iterator[str]:
    while True:
        yield outcome


def test_one_alert_that_fires_for_two_days_with_4h_repeats(world: World) -> None:
    starts_at = world.now - MINUTE
    alert = {"alert": 1, "starts_at": starts_at}
    assert live(world, 2 * DAY, always("Promoted"), alert, repeat=4 * HOUR) == 1
    assert world.human() == "WaitingForRollout"


def test_one_alert_for_two_days_whose_version_nobody_knows_trains_until_the_attempts_are_spent(world: World) -> None:
    alert = {"alert": 1, "starts_at": world.now, "version": "unknown"}
    assert live(world, 2 * DAY, always("Promoted"), alert, repeat=4 * HOUR) == 3
    assert world.human() == "AttemptsSpent"


def test_a_one_shot_curl_never_resolved_is_one_retrain_ever(world: World) -> None:
    world.fire(version="unknown")
    world.end("Promoted")
    world.wait(20 * DAY, every=HOUR)
    assert len(world.workflows()) == 1
    assert world.human() is None
    assert world.objects.names("ManagedModel", pending_only=True) == []


@pytest.mark.parametrize("outcome", ["Rejected", "BadData", "TrainerFailed", "Cancelled"])
def test_a_one_shot_curl_is_one_retrain_also_when_it_did_not_help(world: World, outcome: str) -> None:
    world.fire()
    world.end(outcome)
    world.wait(5 * DAY, every=HOUR)
    assert len(world.workflows()) == 1


def test_two_features_of_one_model_of_which_one_resolves_during_cooldown(world: World) -> None:
    world.fire(1, version="unknown")
    assert world.fire(2, version="unknown").decision.reason == "InFlight"
    world.end("Promoted")
    world.wait(HOUR)
    starts_at = world.now
    world.fire(1, version="unknown")
    world.fire(2, version="unknown", starts_at=starts_at)
    world.wait(2 * HOUR)
    world.resolve(1, version="unknown")
    world.wait(4 * HOUR)  # the cooldown ends: the second feature still fires
    assert len(world.workflows()) == 2
    assert world.status.retrain is not None
    assert world.status.retrain.fingerprint == f"{2:016x}"


def test_a_canary_with_two_versions_firing_in_turn_for_a_day(world: World) -> None:
    began = len(world.workflows())
    for turn in range(24):
        world.fire(alert=turn % 2 + 1, version=f"v{turn % 2 + 1}", starts_at=world.now - MINUTE)
        if world.open():
            world.end("Promoted", took=40 * MINUTE)
        world.wait(20 * MINUTE)
        world.resolve(alert=turn % 2 + 1, version=f"v{turn % 2 + 1}")
    # One retrain for the first version; the other began to fire after its end and gets one; both then wait.
    assert len(world.workflows()) - began == 2
    assert world.status.retrain is not None
    assert {"v1", "v2"} <= set(world.status.superseded_versions)


def test_two_rejections(world: World) -> None:
    alert: dict[str, Any] = {"alert": 1, "starts_at": world.now}
    outcomes = iter(["Rejected", "Rejected", "Promoted"])
    assert live(world, 9 * HOUR, outcomes, alert, repeat=HOUR) == 2
    assert (world.status.attempts, world.human()) == (2, None)
    assert live(world, 12 * HOUR, outcomes, alert, repeat=HOUR) == 1
    assert world.fire(**alert).decision.reason == "WaitingForRollout"


def test_the_runner_is_down_for_a_day(world: World) -> None:
    world.fire()
    world.phase("Pending")
    for _ in range(24):
        world.wait(HOUR)
        assert world.fire().decision.reason == "InFlight"
    assert world.human() == "Queued"
    assert len(world.workflows()) == 1
    world.phase("Running")
    assert world.human() is None
    world.end("Promoted")
    assert world.fire().decision.reason == "Cooldown"
    assert len(world.workflows()) == 1


def test_an_old_redelivery_never_trains(world: World) -> None:
    first = drift(world.now)
    world.trigger.event(first)
    world.end("Rejected")
    world.wait(7 * HOUR)
    assert world.trigger.event(first).decision.reason == "NotFiring"  # seen 8 h ago
    world.wait(2 * HOUR)
    assert world.trigger.event(first).decision.reason == "Stale"
    assert len(world.workflows()) == 1


def test_a_redelivery_from_before_the_end_of_a_retrain_is_no_new_evidence(world: World) -> None:
    world.spec(cooldown="1h")
    first = drift(world.now)
    world.trigger.event(first)
    world.end("Rejected")
    world.wait(2 * HOUR)
    assert world.trigger.event(first).decision.reason == "NoNewEvidence"


def test_a_human_request_during_a_retrain_is_already_running(world: World) -> None:
    world.fire()
    world.ask("once")
    world.reconcile()
    assert world.status.tokens == ("once",)
    assert [row.reason for row in world.status.history if row.kind == "Request"] == ["AlreadyRunning"]
    world.end("Promoted")
    world.wait(2 * DAY, every=HOUR)
    assert len(world.workflows()) == 1
