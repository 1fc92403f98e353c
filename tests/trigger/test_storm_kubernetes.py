"""Eight trigger processes on one API server: the storm that they survive on one file, and more models than the budget
has places for."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from aegis import events
from retrain_trigger.kubernetes import Client
from tests.cluster.control_plane import ControlPlane
from tests.trigger.cluster import ClusterWorld, host_of
from tests.trigger.host import Host
from tests.trigger.test_storm import MODELS, PROCESSES, check_five, deliver_all, storm
from tests.trigger.world import drift, wake_up

BUDGET = 8
MORE = [f"model-{number}" for number in range(12)]


@dataclass
class Eight:
    world: ClusterWorld
    hosts: list[Host]

    def wake(self, rng: random.Random) -> None:
        """Let one of them reconcile."""
        headers, body = events.encode(wake_up())
        assert rng.choice(self.hosts).request("POST", "/", body, headers)[0] in (204, 503)


@pytest.fixture(scope="module")
def eight(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eight]:
    home = tmp_path_factory.mktemp("eight")
    world = ClusterWorld(Client(control_plane.kubeconfig(home / "kubeconfig")), "storm").made()
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(host_of(control_plane, world, home / f"log-{n}", budget=str(BUDGET)))
            for n in range(PROCESSES)
        ]
        yield Eight(world, [host.ready() for host in hosts])


def test_a_storm_on_eight_processes_makes_five_workflows_and_no_wrong_hold(eight: Eight) -> None:
    wanted = storm(random.Random(7), datetime.now(UTC), rounds=16)
    stop, rng = threading.Event(), random.Random(3)

    def ping() -> None:  # reconcile goes on all the while
        while not stop.wait(0.2):
            eight.wake(rng)

    with ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(ping)
        try:
            tally = deliver_all(eight.hosts, wanted, senders=16, seed=1)
        finally:
            stop.set()
        pinging.result(30)
    check_five(eight.world)  # type: ignore[arg-type]  # it asks for what both worlds have
    assert sum(tally.answers.values()) == len(wanted)
    submitted = tally.answers["steady", "Drift"] + tally.answers["other", "Drift"]
    assert submitted == len(MODELS), "exactly one answer a model says that it submitted"
    assert tally.reasons("steady") <= {"Drift", "InFlight"}, tally.answers
    assert tally.reasons("other") <= {"Drift", "InFlight", "NotFiring"}, tally.answers


def test_more_models_at_once_than_the_budget_has_places_for_wait_in_line(eight: Eight) -> None:
    """Five places of eight are taken; twelve models want the three that are left, each on all eight processes."""
    now, rng = datetime.now(UTC), random.Random(9)
    wanted = [drift(model, seen=now, severity="critical") for model in MORE for _ in range(4)]
    rng.shuffle(wanted)
    tally = deliver_all(eight.hosts, wanted, senders=16, seed=4)
    for _ in range(4):
        eight.wake(rng)  # for those whom contention kept from asking
    world = eight.world
    budget, _ = world.ports.budgets.read()
    assert len(world.workflow_names()) == len(budget.reservations) == BUDGET
    assert set(world.workflow_names()) == set(budget.reservations)
    assert tally.answers["other", "Drift"] <= BUDGET - len(MODELS)
    assert tally.reasons("other") <= {"Drift", "InFlight", "BudgetSpent", "BudgetContention"}, tally.answers
    waiting = {model for model in MORE if world.record(model).status.retrain is None}
    assert budget.waiting.keys() == {f"{model}.default" for model in waiting}
    assert len(waiting) == len(MORE) - (BUDGET - len(MODELS))
    for model in waiting:
        assert world.record(model).status.waits.keys() == {"BudgetSpent"}, "a person is asked after a day of it"
