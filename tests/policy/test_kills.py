"""A process dies, or a store fails after doing its work, between any two calls: nothing is lost, nothing doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import Temporary
from retrain_trigger.trigger import Trigger
from tests.faults.boundaries import hit

from .world import DAY, HOUR, MINUTE, SECOND, Killed, World, drift, ended


def story(world: World, act: Callable[[Callable[[Trigger], Any]], None]) -> Iterator[None]:
    """A day with two outcomes, a backoff, a person and a resolve. Yields where the world is looked at."""

    def event(alert: int = 1, **more: Any) -> None:
        told = drift(world.now, alert=alert, version="unknown", **more)
        act(lambda trigger: trigger.event(told))

    def minutes(count: int) -> None:
        for _ in range(count):
            world.now += 61 * SECOND
            act(lambda trigger: trigger.reconcile())

    def end(outcome: str) -> None:
        (doc,) = world.open()
        world.now += HOUR
        world.set_workflow(ended(doc, outcome, world.now))
        minutes(2)

    event()
    minutes(2)
    yield
    end("Failed")
    yield
    world.now += 10 * MINUTE  # the backoff ends: reconcile submits
    minutes(3)
    yield
    end("Rejected")
    event(2)
    world.ask("please")
    minutes(3)
    yield
    end("Promoted")
    event(2, ends_at=world.now)
    minutes(1)
    world.now += 6 * HOUR
    event(3)
    minutes(3)
    yield
    end("Cancelled")
    yield


def tell(world: World, fault: Callable[[], BaseException] | None, at: int) -> int:
    """Tell the story with a fault at one moment between calls. Returns how many such moments there are."""
    count = 0

    def hook(moment: str, port: str, method: str) -> None:
        nonlocal count
        count += 1
        if count == at and fault is not None:
            what = fault()
            hit("trigger", f"{port}.{method}", f"{'killed' if isinstance(what, Killed) else 'no answer'} {moment}")
            raise what

    def act(what: Callable[[Trigger], Any]) -> None:
        while True:
            try:
                what(world.start(hook))
            except (Killed, Temporary):
                world.now += SECOND  # whoever called comes again
                continue
            return

    for _ in story(world, act):
        assert len(world.open()) <= 1
    return count


def outline(world: World) -> object:
    status = world.status
    rows = [(row.kind, row.reason, row.workflow) for row in status.history if row.kind in ("Submitted", "Finished")]
    return (
        [doc["metadata"]["name"] for doc in world.workflows()],
        rows,
        (status.sequence, status.attempts, status.failures, status.tokens),
        [(alert.fingerprint, alert.ends_at is None) for alert in status.evidence],
    )


@pytest.mark.parametrize("fault", [Killed, lambda: Temporary("no answer")], ids=["killed", "no answer"])
def test_a_fault_between_any_two_calls_loses_nothing_and_doubles_nothing(
    tmp_path: Path, fault: Callable[[], BaseException]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = World(tmp_path / "whole")
    moments = tell(whole, None, 0)
    wanted = outline(whole)
    assert len(whole.workflows()) == 4
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        world = World(folder)
        tell(world, fault, moment)
        assert outline(world) == wanted, f"a fault at moment {moment} of {moments}"


def test_a_kill_after_the_claim_leaves_it_to_reconcile(tmp_path: Path) -> None:
    world = World(tmp_path)

    def die_before_create(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "workflows", "create"):
            raise Killed

    with pytest.raises(Killed):
        world.start(die_before_create).event(drift(world.now))
    assert world.fire().decision.reason == "InFlight"
    world.now += 59 * SECOND
    world.reconcile()
    assert world.workflows() == []  # its creator may still be at it
    world.now += 2 * SECOND
    world.reconcile()
    assert len(world.workflows()) == 1
    assert world.status.retrain is not None
    assert world.status.retrain.phase == "Submitted"


def test_a_claim_whose_workflow_cannot_be_made_within_an_hour_has_failed(tmp_path: Path) -> None:
    world = World(tmp_path)

    def refuse(moment: str, _port: str, method: str) -> None:
        if (moment, method) == ("before", "create") and _port == "workflows":
            raise Temporary("the API server refuses")

    world.trigger = world.start(refuse)
    assert world.fire().workflow is not None
    renewals = set()
    for _ in range(59):
        world.now += MINUTE
        world.reconcile()
        retrain = world.status.retrain
        assert retrain is not None
        assert retrain.phase == "Claimed"
        renewals.add(retrain.claimed_at)
    assert len(renewals) > 20
    world.wait(3 * MINUTE, every=61 * SECOND)
    retrain = world.status.retrain
    assert retrain is not None
    assert (retrain.outcome, retrain.outcome_reason) == ("Failed", "NotCreated")
    assert world.status.failures == 1
    world.trigger = world.start()
    world.wait(15 * MINUTE)
    assert len(world.workflows()) == 1


def test_a_creator_that_was_slow_for_more_than_a_minute_gives_up(tmp_path: Path) -> None:
    world = World(tmp_path)

    def slow(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("after", "ledger", "write"):
            world.now += 61 * SECOND

    world.start(slow).event(drift(world.now))
    assert world.workflows() == []
    world.reconcile()
    assert len(world.workflows()) == 1


def test_a_creator_slower_than_the_claim_lives_does_not_cause_a_second_workflow(tmp_path: Path) -> None:
    world = World(tmp_path)

    def hour_long_create(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "workflows", "create"):
            held, world.trigger = world.trigger, world.start(refuse)
            world.wait(62 * MINUTE, every=61 * SECOND)
            world.trigger = held

    def refuse(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "workflows", "create"):
            raise Temporary("the API server refuses")

    world.start(hour_long_create).event(drift(world.now))
    retrain = world.status.retrain
    assert retrain is not None
    assert retrain.outcome_reason == "NotCreated"
    assert len(world.open()) == 1
    world.wait(HOUR)
    assert len(world.workflows()) == 1  # found before a second one was made, and taken over
    world.end("Promoted")
    assert world.status.retrain is not None
    assert world.status.retrain.outcome == "Promoted"


def test_a_workflow_of_another_claim_under_the_name_costs_only_the_number(tmp_path: Path) -> None:
    world = World(tmp_path)

    def squat(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "workflows", "create") and not world.workflows():
            name = world.status.retrain.workflow if world.status.retrain else ""
            world.argo.create({"metadata": {"name": name}, "spec": {}, "status": {"phase": "Succeeded"}}, world.now)

    world.start(squat).event(drift(world.now))
    assert world.status.sequence == 2
    world.wait(2 * MINUTE)
    assert [doc["metadata"]["name"][-2:] for doc in world.workflows()] == ["-1", "-2"]
    assert world.status.retrain is not None
    assert world.status.retrain.phase == "Submitted"


def test_a_request_is_not_lost_with_its_number(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.spec()
    world.ask("mine")
    reserved: list[str] = []

    def squat(moment: str, port: str, method: str) -> None:
        if (moment, port, method) == ("before", "workflows", "create") and not reserved:
            reserved.append(world.status.retrain.workflow if world.status.retrain else "")
            world.argo.create({"metadata": {"name": reserved[0]}, "spec": {}}, world.now)

    world.start(squat).reconcile()
    world.wait(2 * MINUTE)
    assert len(world.workflows()) == 2
    assert world.status.retrain is not None
    assert world.status.retrain.requested_by == "ann"


@pytest.mark.parametrize("by_owner", [False, True], ids=["made by an alert", "applied by its owner"])
def test_a_deleted_ledger_forgets_nothing_recent(tmp_path: Path, by_owner: bool) -> None:
    world = World(tmp_path)
    world.fire()
    world.forget("ManagedModel", "churn.default")
    if by_owner:
        world.spec(cooldown="2h")
    assert world.fire().decision.reason == "InFlight"
    assert len(world.workflows()) == 1
    world.end("Rejected")
    assert world.fire().decision.reason == "Cooldown"
    assert world.status.attempts == 1
    world.wait(DAY)
    assert {name[-2:] for name in (doc["metadata"]["name"] for doc in world.workflows())} == {"-1"}
    world.fire()
    assert [doc["metadata"]["labels"]["aegis.dev/sequence"] for doc in world.workflows()] in (["1", "2"], ["2", "1"])
