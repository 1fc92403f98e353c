"""Eight trigger processes on one ledger file, and a storm of everything that Alertmanager is known to send at once."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aegis import events
from aegis.events import DriftEvent
from retrain_trigger.model import Record
from tests.support import until
from tests.trigger.host import Host, trigger_host
from tests.trigger.world import World, drift, wake_up

PROCESSES = 8
MODELS = ("churn", "fraud", "ranker", "price", "Eta_2")
Delivery = tuple[int, DriftEvent]
STEADY, FLAPPING, CANARY = "00000000000000a1", "00000000000000a2", "00000000000000a3"


def storm(rng: random.Random, now: datetime, rounds: int) -> list[DriftEvent]:
    """Events of five models: one alert that fires all the time with moving starts, one that flaps and resolves
    (the resolve sometimes first), one of a second version; every event in one to four copies, shuffled."""
    made: list[DriftEvent] = []
    for number in range(rounds):
        for model in MODELS:
            started = now - timedelta(minutes=30) + timedelta(seconds=number)
            steady = drift(model, seen=now, starts_at=started - timedelta(milliseconds=rng.randrange(900)),
                           fingerprint=STEADY)  # fmt: skip
            flap = drift(model, seen=now, starts_at=started, fingerprint=FLAPPING, severity="critical")
            canary = drift(model, seen=now, starts_at=started, fingerprint=CANARY, version="8")
            ended = replace(flap, firing=False, ends_at=started + timedelta(milliseconds=500))
            wanted = (steady, flap, ended, canary)
            made += [event for event in wanted for _ in range(rng.randint(1, 4))]
    rng.shuffle(made)
    return made


@dataclass
class Tally:
    """What was answered, by kind of event and reason."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    redelivered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: DriftEvent, reason: str) -> None:
        with self.lock:
            self.answers["steady" if event.fingerprint == STEADY else "other", reason] += 1

    def again(self) -> None:
        with self.lock:
            self.redelivered += 1

    def reasons(self, kind: str) -> set[str]:
        return {reason for found, reason in self.answers if found == kind}


class Sender:
    """A Broker's dispatcher: delivers each event until it is answered 2xx, to any of the hosts."""

    def __init__(self, ports: Sequence[int], tally: Tally, rng: random.Random) -> None:
        self._ports = ports
        self._tally = tally
        self._rng = rng
        self._open: dict[int, http.client.HTTPConnection] = {}

    def deliver(self, event: DriftEvent) -> None:
        headers, body = events.encode(events.to_cloudevent(event))
        for _ in range(500):
            answered = self._post(self._rng.choice(self._ports), headers, body)
            if answered is not None:
                self._tally.add(event, answered)
                return
            self._tally.again()
        raise AssertionError("500 deliveries of one event failed")

    def _post(self, port: int, headers: dict[str, str], body: bytes) -> str | None:
        connection = self._open.get(port) or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._open[port] = connection
        try:
            connection.request("POST", "/", body, {**headers, "prefer": "return=representation"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            del self._open[port]
            threading.Event().wait(0.02)  # a dispatcher's backoff
            return None
        assert response.status in (200, 503), (response.status, answer)
        return None if response.status == 503 else str(json.loads(answer)["reason"])

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()


def deliver_all(hosts: Sequence[Host], wanted: Sequence[DriftEvent], *, senders: int, seed: int) -> Tally:
    tally = Tally()
    shares = [wanted[n::senders] for n in range(senders)]
    ports = [host.port for host in hosts]

    def work(number: int) -> None:
        sender = Sender(ports, tally, random.Random(seed + number))
        try:
            for event in shares[number]:
                sender.deliver(event)
        finally:
            sender.close()

    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(work, range(senders)))
    return tally


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Eight processes that all open the new ledger at the same moment."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(trigger_host(tmp_path / "ledger.db", tmp_path / f"log-{n}")) for n in range(PROCESSES)
        ]
        yield [host.ready() for host in running]


def records(world: World) -> list[Record]:
    return [world.record(model) for model in MODELS]


def check_five(world: World) -> None:
    names = world.workflow_names()
    assert len(names) == len(MODELS), names
    for record in records(world):
        retrain = record.status.retrain
        assert retrain is not None
        assert (record.status.sequence, retrain.phase) == (1, "Submitted")
        assert retrain.workflow in names
        found = world.ports.workflows.get(retrain.workflow)
        assert found is not None
        assert found["metadata"]["uid"] == retrain.uid
    budget, _ = world.ports.budgets.read()
    assert set(budget.reservations) == set(names), "a reservation for each retrain, and none else"
    assert budget.waiting == {}


def test_a_storm_on_eight_processes_makes_five_workflows_and_no_wrong_hold(tmp_path: Path, hosts: list[Host]) -> None:
    now = datetime.now(UTC)
    wanted = storm(random.Random(7), now, rounds=44)
    assert len(wanted) >= 2000
    stop = threading.Event()

    def ping() -> None:  # reconcile goes on all the while
        headers, body = events.encode(wake_up())
        while not stop.wait(0.05):
            assert random.choice(hosts).request("POST", "/", body, headers)[0] in (204, 503)

    with ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(ping)
        try:
            tally = deliver_all(hosts, wanted, senders=16, seed=1)
        finally:
            stop.set()
        pinging.result(30)
    world = World(tmp_path / "ledger.db", now=datetime.now(UTC))
    check_five(world)
    assert sum(tally.answers.values()) == len(wanted)
    submitted = tally.answers["steady", "Drift"] + tally.answers["other", "Drift"]
    assert submitted == len(MODELS), "exactly one answer a model says that it submitted"
    assert tally.reasons("steady") <= {"Drift", "InFlight"}, tally.answers
    # A resolve that comes before its firing, and copies of an alert that already ended: nothing fires, rightly.
    assert tally.reasons("other") <= {"Drift", "InFlight", "NotFiring"}, tally.answers
    for record in records(world):
        assert {row.reason for row in record.status.history} <= {"Drift", "InFlight", "NotFiring"}
        conditions = {condition.type: condition.status for condition in record.status.conditions}
        assert conditions == {"Drifting": "True", "Retraining": "True", "NeedsHuman": "False", "Stuck": "False"}
        assert {alert.version for alert in record.status.evidence} == {"7", "8"}
        assert len(record.status.evidence) == 3


def test_kill_9_of_processes_in_the_storm_loses_nothing_and_doubles_nothing(tmp_path: Path, hosts: list[Host]) -> None:
    now = datetime.now(UTC)
    rng = random.Random(11)
    wanted = storm(rng, now, rounds=12)
    stop = threading.Event()
    killed = 0

    def kill_and_restart() -> None:
        nonlocal killed
        while not stop.wait(rng.uniform(0.02, 0.15)):
            victim = rng.choice(hosts)
            os.killpg(victim.pid, signal.SIGKILL)
            assert victim.process is not None
            victim.process.wait(10)
            killed += 1
            victim.start()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_and_restart)
        try:
            tally = deliver_all(hosts, wanted, senders=12, seed=2)
        finally:
            stop.set()
        killing.result(60)
    assert killed >= 3
    assert sum(tally.answers.values()) == len(wanted), "every event was answered in the end"
    # A creator that was killed after its claim: a minute later reconcile takes over.
    world = World(tmp_path / "ledger.db", now=datetime.now(UTC) + timedelta(seconds=61))
    world.trigger().reconcile()
    world.trigger().reconcile()
    check_five(world)


def test_eight_processes_that_start_on_no_ledger_agree_on_one(tmp_path: Path, hosts: list[Host]) -> None:
    """The first event of a model reaches all eight at once."""
    event = events.to_cloudevent(drift(seen=datetime.now(UTC)))
    headers, body = events.encode(event)
    ready = threading.Barrier(PROCESSES)

    def work(host: Host) -> int:
        ready.wait(10)
        answers: list[int] = []
        until(lambda: answers.append(host.request("POST", "/", body, headers)[0]) or answers[-1] != 503)  # type: ignore[func-returns-value]
        return answers[-1]

    with ThreadPoolExecutor(PROCESSES) as pool:
        answers = sorted(pool.map(work, hosts))
    assert answers == [200] + [204] * 7
    assert len(World(tmp_path / "ledger.db").workflow_names()) == 1
