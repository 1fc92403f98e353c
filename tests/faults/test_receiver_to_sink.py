"""Every call of the receiver to its sink goes wrong in every way; the sender posts again, as Alertmanager does, until
it is answered 2xx. The sink is a real trigger process. Each model ends with exactly one Workflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.support import until
from tests.trigger.host import Host, receiver_host, trigger_host
from tests.trigger.world import World

MODELS = 3
TIMEOUT_S = 1.0


@dataclass
class Delivery:
    """Receiver → proxy → trigger, and the one ledger."""

    receiver: Host
    proxy: FaultProxy
    ledger: Path

    def payload(self, name: str, *, status: str = "firing") -> bytes:
        """One delivery with an alert for each of three models, whose names no other test uses."""
        now = datetime.now(UTC).isoformat()
        alerts = [
            {
                "status": status,
                "labels": {"alertname": "ModelDrift", "model_name": f"{name}-{number}", "severity": "warning"},
                "annotations": {},
                "startsAt": now,
            }
            for number in range(MODELS)
        ]
        return json.dumps({"version": "4", "status": status, "alerts": alerts}).encode()

    def deliver(self, body: bytes) -> list[int]:
        """POST until 2xx, as Alertmanager does in its flush; a receiver that died is started again, as by its
        orchestrator. Returns the answers, 0 for none."""
        answers: list[int] = []

        def once() -> bool:
            assert self.receiver.process is not None
            if self.receiver.process.poll() is not None:
                self.receiver.start().ready()
            try:
                headers = {"content-type": "application/json"}
                answers.append(self.receiver.request("POST", "/alertmanager", body, headers)[0])
            except OSError:
                answers.append(0)
                assert self.receiver.process is not None
                self.receiver.process.wait(10)
            return answers[-1] == 200

        until(once, within_s=40, what="a 200 for the delivery")
        assert set(answers[:-1]) <= {0, 503}, answers
        return answers

    def workflows(self, name: str) -> list[int]:
        found = World(self.ledger).workflow_names()
        return [sum(w.startswith(f"aegis-{name}-{number}-") for w in found) for number in range(MODELS)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivery]:
    home = tmp_path_factory.mktemp("path")
    with (
        trigger_host(home / "ledger.db", home / "trigger.log", budget="1000") as trigger,
        FaultProxy("receiver to sink", trigger.port) as proxy,
        receiver_host(proxy.url, home / "receiver.log", sink_timeout=f"{TIMEOUT_S:g}s", log_level="error") as receiver,
    ):
        trigger.ready()
        yield Delivery(receiver.ready(), proxy, home / "ledger.db")


@pytest.fixture
def path(running: Delivery) -> Iterator[Delivery]:
    yield running
    running.proxy.clear()


def again_adds_nothing(path: Delivery, name: str, body: bytes) -> None:
    """The next repeat: all three models have one Workflow before it and after it."""
    path.proxy.clear()
    assert path.workflows(name) == [1] * MODELS
    assert path.deliver(body) == [200]
    assert path.workflows(name) == [1] * MODELS


def test_without_a_fault(path: Delivery) -> None:
    body = path.payload("plain")
    assert path.deliver(body) == [200]
    again_adds_nothing(path, "plain", body)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_reset_connection_is_tried_again_at_once(path: Delivery, nth: int) -> None:
    name = f"reset{nth}"
    path.proxy.add(Fault(Kind.REFUSE, nth=nth))
    body = path.payload(name)
    assert path.deliver(body) == [200]
    again_adds_nothing(path, name, body)


@pytest.mark.parametrize("nth", [1, 3])
def test_a_sink_that_goes_on_refusing_is_503_until_it_stops(path: Delivery, nth: int) -> None:
    name = f"refused{nth}"
    path.proxy.add(Fault(Kind.REFUSE, nth=nth, times=12))
    body = path.payload(name)
    assert path.deliver(body)[0] == 503
    again_adds_nothing(path, name, body)


def test_a_sink_that_is_down_is_503_and_nothing_is_lost(path: Delivery) -> None:
    body = path.payload("down")
    path.proxy.down()
    try:
        answer = path.receiver.request("POST", "/alertmanager", body, {"content-type": "application/json"})
    finally:
        path.proxy.up()
    assert answer[0] == 503
    assert path.workflows("down") == [0] * MODELS
    path.deliver(body)
    again_adds_nothing(path, "down", body)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_500_after_the_work_doubles_nothing(path: Delivery, nth: int) -> None:
    name = f"late500{nth}"
    path.proxy.add(Fault(Kind.ERROR_AFTER, nth=nth))
    body = path.payload(name)
    assert path.deliver(body) == [503, 200]
    again_adds_nothing(path, name, body)


@pytest.mark.parametrize("nth", [1, 3])
def test_an_answer_after_the_receivers_patience_doubles_nothing(path: Delivery, nth: int) -> None:
    name = f"slow{nth}"
    path.proxy.add(Fault(Kind.DELAY, nth=nth, delay_s=TIMEOUT_S * 3))
    body = path.payload(name)
    assert path.deliver(body) == [503, 200]
    again_adds_nothing(path, name, body)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("kind", [Kind.KILL_BEFORE, Kind.KILL_AFTER], ids=["before", "after"])
def test_a_receiver_that_is_killed_has_not_answered_so_the_delivery_comes_again(
    path: Delivery, kind: Kind, nth: int
) -> None:
    name = f"{'before' if kind is Kind.KILL_BEFORE else 'after'}{nth}"
    path.proxy.add(Fault(kind, nth=nth, pid=lambda: path.receiver.pid))
    body = path.payload(name)
    assert path.deliver(body) == [0, 200]
    again_adds_nothing(path, name, body)
