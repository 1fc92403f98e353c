"""A trigger of the product over a SQLite file, with a clock that tests step, and requests to its routes."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aegis import events
from aegis.http import Function, Request, Response
from retrain_trigger.function import RetrainTrigger, Settings, ledger_state
from retrain_trigger.local import LocalBudgets, LocalLedger, LocalWorkflows
from retrain_trigger.model import Record, object_name
from retrain_trigger.ports import Budgets, Ledger, Workflows
from retrain_trigger.sqlite import Objects
from retrain_trigger.trigger import Limits, Sources, Trigger

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PREFIX = "s3://data/"


def drift(
    model: str = "churn",
    *,
    seen: datetime = NOW,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    fingerprint: str = "00000000000000aa",
    version: str = "7",
    **more: Any,
) -> events.DriftEvent:
    """A drift event that fires, or with `ends_at` one that ended."""
    return events.DriftEvent(
        firing=ends_at is None,
        source="/alertmanager/test",
        environment=more.pop("environment", "default"),
        model=model,
        version=version,
        fingerprint=fingerprint,
        starts_at=starts_at or seen - timedelta(minutes=1),
        ends_at=ends_at,
        seen=seen,
        **more,
    )


@dataclass(frozen=True)
class Ports:
    """The three ports over one store."""

    ledger: Ledger
    budgets: Budgets
    workflows: Workflows


def new_uid() -> str:
    return str(uuid.uuid4())


def sqlite_ports(path: Path) -> Ports:
    objects = Objects(path)
    return Ports(LocalLedger(objects, new_uid), LocalBudgets(objects), LocalWorkflows(objects, new_uid))


LIMITS = Limits(prefixes=(PREFIX,), create_unknown=True)


@dataclass
class World:
    """One ledger file and the triggers that share it."""

    path: Path
    now: datetime = NOW
    limits: Limits = LIMITS
    ports: Ports = field(init=False)

    def __post_init__(self) -> None:
        self.ports = sqlite_ports(self.path)
        self._tokens = itertools.count(1)

    @property
    def objects(self) -> Objects:
        return Objects(self.path)

    def sources(self) -> Sources:
        return Sources(now=lambda: self.now, token=lambda: f"claim-{next(self._tokens)}", pause=lambda _: None)

    def trigger(self, ports: Ports | None = None) -> Trigger:
        ports = ports or self.ports
        return Trigger(ports.ledger, ports.budgets, ports.workflows, self.limits, self.sources())

    def function(self, trigger: Trigger | None = None, **settings: Any) -> Function:
        """The routes; by default for callers on loopback, who need no seal."""
        own: dict[str, Any] = {"ledger": self.path, "trust_loopback": True, "create_unknown": True, **settings}
        ready = Settings(**own)
        return RetrainTrigger(ready, trigger or self.trigger(), self.sources(), ledger_state(ready)).function

    def record(self, model: str = "churn", environment: str = "default") -> Record:
        record = self.ports.ledger.read(object_name(environment, model))
        assert record is not None
        return record

    def workflow_names(self) -> list[str]:
        return self.objects.names("Workflow")

    def end(self, workflow: str, outcome: str = "Promoted", **outputs: str) -> None:
        """End a Workflow, as the runner would."""
        objects = self.objects
        stored = objects.get("Workflow", workflow)
        assert stored is not None
        found = {"outcome": outcome, **{name.replace("_", "-"): value for name, value in outputs.items()}}
        status = {
            "phase": "Succeeded",
            "finishedAt": events.rfc3339(self.now),
            "outputs": {"parameters": [{"name": name, "value": value} for name, value in found.items()]},
        }
        objects.replace("Workflow", workflow, {**stored.doc, "status": status}, stored.version)

    def forget(self, kind: str, name: str) -> None:
        """Delete an object behind the product's back."""
        import sqlite3

        with sqlite3.connect(self.path) as connection:
            connection.execute("DELETE FROM objects WHERE kind = ? AND name = ?", (kind, name))
        connection.close()


# --- requests ----------------------------------------------------------------------------------------------------


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def ask(
    function: Function,
    method: str = "POST",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    peer: str = "127.0.0.1",
) -> Response:
    """One request to the routes, without a host."""
    return asyncio.run(function.handle(Request(method, path, dict(headers or {}), chunks(body), peer)))


def post(
    function: Function,
    event: events.DriftEvent | events.CloudEvent,
    *,
    key: bytes | None = None,
    structured: bool = False,
    path: str = "/",
    peer: str = "127.0.0.1",
    **headers: Any,
) -> Response:
    """POST one event; `key` seals a drift event."""
    own = events.to_cloudevent(event, key) if isinstance(event, events.DriftEvent) else event
    encoded, body = events.encode(own, structured=structured)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(function, "POST", path, {**encoded, **named}, body, peer=peer)


def wake_up(kind: str = "dev.knative.sources.ping") -> events.CloudEvent:
    return events.CloudEvent(type=kind, source="/test", id="wake-1", data=b"{}")


def resealed(event: events.DriftEvent, key: bytes, **changes: Any) -> events.CloudEvent:
    """An event that was changed after it was sealed."""
    return replace(events.to_cloudevent(event, key), **changes)
