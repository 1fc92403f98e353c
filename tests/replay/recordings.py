"""The recorded deliveries of real Alertmanagers, and the world in which they are played again.

A delivery goes through the receiver's routes, its mapping and the seal into the routes of the trigger over SQLite;
only the sockets are left out. The clock steps to the moment at which each was received.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from aegis import events
from aegis.errors import Temporary
from aegis.events import CloudEvent, parse_time, rfc3339
from aegis.http import Function, Request, SecretFile
from aegis.telemetry import Metrics
from alert_receiver.mapping import Config
from alert_receiver.receiver import Receiver, function
from alert_receiver.sink import REFUSALS, Refused
from retrain_trigger.local import LocalLedger
from tests.trigger.world import World, chunks, new_uid

CAPTURES = Path(__file__).resolve().parents[1] / "captures"


@dataclass(frozen=True)
class Delivery:
    """One POST of Alertmanager: when it was received, and its body."""

    at: datetime
    body: bytes


def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURES / "expected.json").read_text())
    return found


def deliveries(name: str) -> list[Delivery]:
    """The POSTs of a recording that carry a webhook body, in their order."""
    recording = json.loads((CAPTURES / f"{name}.json").read_text())
    return [
        Delivery(parse_time(entry["received_at"]), json.dumps(entry["request"]["body"]).encode())
        for entry in recording["deliveries"]
        if entry["request"]["method"] == "POST" and isinstance(entry["request"].get("body"), dict)
    ]


def stretched(wanted: Sequence[Delivery], factor: int) -> list[Delivery]:
    """The same deliveries with every time between them, and in their alerts, `factor` times as long."""
    start = wanted[0].at

    def move(moment: datetime) -> datetime:
        return start + (moment - start) * factor

    made = []
    for delivery in wanted:
        body = json.loads(delivery.body)
        for alert in body["alerts"]:
            for name in ("startsAt", "endsAt"):
                if not alert[name].startswith("0001"):
                    alert[name] = rfc3339(move(parse_time(alert[name])))
        made.append(Delivery(move(delivery.at), json.dumps(body).encode()))
    return made


class Wire:
    """The sink: the trigger's own routes. Keeps what was sent."""

    def __init__(self, trigger: Function) -> None:
        self._trigger = trigger
        self.sent: Counter[str] = Counter()

    async def send(self, event: CloudEvent) -> None:
        headers, body = events.encode(event)
        self.sent[event.type] += 1
        answer = await self._trigger.handle(Request("POST", "/", headers, chunks(body), "10.0.0.1"))
        if answer.status in REFUSALS:
            raise Refused("refused", {"sink": f"answered {answer.status}"})
        if not 200 <= answer.status < 300:
            raise Temporary(f"the sink answered {answer.status}")

    def state(self) -> str:
        return ""

    async def close(self) -> None: ...


class Replay:
    """A receiver and a trigger with one clock. `policy` is what the owner of every model wrote into its spec."""

    def __init__(self, home: Path, policy: Mapping[str, Any] | None = None) -> None:
        self.world = World(home / "ledger.db")
        # Policies are written beforehand, so the models are known; without one the trigger creates them itself.
        self._ledger = LocalLedger(self.world.objects, new_uid)
        self._policy = policy
        key = home / "key"
        key.write_bytes(b"the seal of the replay")
        self.wire = Wire(self.world.function(trust_loopback=False, seal_keys=(key,)))
        metrics = Metrics("receiver")
        receiver = Receiver(
            Config(), self.wire, metrics, seal_key=SecretFile(key), body_limit=4 << 20, concurrency=16,
            clock=lambda: self.world.now, entropy=lambda size: "ab" * size,
        )  # fmt: skip
        self._receiver = function(receiver, Config(), metrics)

    def play(self, wanted: Sequence[Delivery], models: Iterable[str], after_each: Callable[[], None]) -> None:
        """Deliver in order, each at its time, and reconcile once a minute in between and for ten minutes after."""
        self.world.now = wanted[0].at
        if self._policy is not None:
            for model in models:
                environment, _, name = model.partition("/")
                self._ledger.set_spec(environment, name, dict(self._policy), self.world.now)
        for delivery in wanted:
            self._pass_time(delivery.at, after_each)
            self._deliver(delivery)
            after_each()
        self._pass_time(self.world.now + timedelta(minutes=10), after_each)

    def _pass_time(self, to: datetime, after_each: Callable[[], None]) -> None:
        while self.world.now + timedelta(minutes=1) < to:
            self.world.now += timedelta(minutes=1)
            self.reconcile()
            after_each()
        self.world.now = to

    def _deliver(self, delivery: Delivery) -> None:
        headers = {"content-type": "application/json"}
        request = Request("POST", "/alertmanager", headers, chunks(delivery.body), "127.0.0.1")
        answer = asyncio.run(self._receiver.handle(request))
        assert answer.status == 200, answer.body

    def reconcile(self) -> None:
        self.world.trigger().reconcile()

    def reject_all(self) -> None:
        """Every retrain ends at once, Rejected, and the ledger hears of it."""
        for stored in self.world.objects.list("Workflow", pending_only=True):
            if "status" not in stored.doc:
                self.world.end(stored.name, "Rejected")
        self.reconcile()

    def retrains(self) -> dict[str, int]:
        """How many Workflows each model got, as `environment/model`."""
        found: Counter[str] = Counter()
        for stored in self.world.objects.list("Workflow"):
            values = {p["name"]: p["value"] for p in stored.doc["spec"]["arguments"]["parameters"]}
            found[f"{values['environment']}/{values['model']}"] += 1
        return dict(found)
