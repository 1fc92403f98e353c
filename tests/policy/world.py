"""A trigger over its real one-machine adapters, with a clock that a test steps and Workflows that a test ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from aegis.events import DriftEvent, rfc3339
from retrain_trigger.local import MODELS, WORKFLOWS, LocalBudgets, LocalLedger, LocalWorkflows
from retrain_trigger.model import Record, Status
from retrain_trigger.ports import Budgets, Ledger, Workflows
from retrain_trigger.sqlite import Objects
from retrain_trigger.trigger import Answer, Limits, Sources, Trigger

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PREFIX = "s3://data/"
NAME = "churn.default"
EXIT_CODES = {"BadData": 65, "TrainerFailed": 70, "Failed": 75}


def drift(
    seen: datetime,
    *,
    alert: int = 1,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    model: str = "churn",
    version: str = "v1",
    severity: str = "warning",
    dataset_uri: str | None = "s3://data/new",
) -> DriftEvent:
    """A firing event of alert number `alert`, or with `ends_at` its resolve."""
    return DriftEvent(
        firing=ends_at is None,
        source="/alertmanager/test",
        environment="default",
        model=model,
        version=version,
        fingerprint=f"{alert:016x}",
        starts_at=starts_at or (ends_at or seen) - MINUTE,
        ends_at=ends_at,
        seen=seen,
        severity=severity,
        dataset_uri=dataset_uri,
        feature=f"feature-{alert}",
    )


class Killed(BaseException):
    """The process died here."""


class Watched:
    """A port with a hook before and after each call: hook(moment, port, method)."""

    def __init__(self, port: object, name: str, hook: Callable[[str, str, str], None]) -> None:
        self._port, self._name, self._hook = port, name, hook

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._port, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._hook("before", self._name, method)
            result = call(*args, **kwargs)
            self._hook("after", self._name, method)
            return result

        return watched


@dataclass
class Ports:
    """The three ports over one store, each call seen by a hook."""

    ledger: Ledger
    budgets: Budgets
    workflows: Workflows

    def watched(self, hook: Callable[[str, str, str], None]) -> Ports:
        return Ports(
            cast(Ledger, Watched(self.ledger, "ledger", hook)),
            cast(Budgets, Watched(self.budgets, "budgets", hook)),
            cast(Workflows, Watched(self.workflows, "workflows", hook)),
        )

    def trigger(
        self,
        limits: Limits,
        now: Callable[[], datetime],
        token: Callable[[], str],
        pointer: Callable[[str, str], str | None] = lambda _environment, _model: None,
    ) -> Trigger:
        sources = Sources(now=now, token=token, pause=lambda _attempt: None)
        return Trigger(self.ledger, self.budgets, self.workflows, limits, sources, pointer)


def ended(doc: dict[str, Any], outcome: str, at: datetime, *, reason: str = "", pointer: str = "") -> dict[str, Any]:
    """A Workflow's document after it ended so."""
    status: dict[str, Any] = {"finishedAt": rfc3339(at)}
    if outcome in EXIT_CODES:
        code = {"exitCode": str(EXIT_CODES[outcome])}
        node = {"phase": "Failed", "outputs": code, "templateName": "train", "type": "Pod"}
        status |= {"phase": "Failed", "nodes": {"train": node}}
    elif outcome == "Cancelled":
        return {**doc, "spec": {**doc["spec"], "shutdown": "Terminate"}, "status": {**status, "phase": "Failed"}}
    else:
        status["phase"] = "Succeeded"
    said = {"outcome": f"{outcome}:{reason}" if reason else outcome, "pointer": pointer, "explanation": "as it went"}
    status["outputs"] = {"parameters": [{"name": name, "value": value} for name, value in said.items() if value]}
    return {**doc, "status": status}


class World:
    """One model, one trigger, one SQLite file."""

    ledger_kind: type[LocalLedger] = LocalLedger

    def __init__(self, store: Path | Objects, limits: Limits | None = None) -> None:
        self.objects = Objects(store / "ledger.db") if isinstance(store, Path) else store
        self.now = START
        self.limits = limits or Limits(prefixes=(PREFIX,))
        self.pointer: str | None = None
        self.calls: list[str] = []
        self._counter = itertools.count(1)
        self.ledger = self.ledger_kind(self.objects, self.token)
        self.argo = LocalWorkflows(self.objects, self.token)
        self.budgets = LocalBudgets(self.objects)
        self.ports = Ports(self.ledger, self.budgets, self.argo)
        self.trigger = self.start()

    def token(self) -> str:
        return f"{next(self._counter):032x}"

    def start(self, hook: Callable[[str, str, str], None] | None = None, skew: timedelta = timedelta(0)) -> Trigger:
        """Another process of the trigger on the same file, its clock off by `skew`."""

        def note(moment: str, port: str, method: str) -> None:
            if moment == "before":
                self.calls.append(f"{port}.{method}")

        ports = self.ports.watched(hook or note)
        return ports.trigger(self.limits, lambda: self.now + skew, self.token, lambda _e, _m: self.pointer)

    def spec(self, model: str = "churn", **spec: Any) -> None:
        self.ledger.set_spec("default", model, spec, self.now)

    def fire(self, alert: int = 1, **more: Any) -> Answer:
        """The alert is seen and delivered now."""
        return self.trigger.event(drift(more.pop("seen", self.now), alert=alert, **more))

    def resolve(self, alert: int = 1, **more: Any) -> Answer:
        return self.fire(alert, ends_at=more.pop("ends_at", self.now), **more)

    def reconcile(self) -> dict[str, int]:
        counts = self.trigger.reconcile()
        assert "failed" not in counts, "an unknown fault, which the log has"
        return counts

    def wait(self, time: timedelta, every: timedelta = 10 * MINUTE) -> None:
        """Let time go by with a reconcile every so often."""
        end = self.now + time
        while self.now < end:
            self.now = min(self.now + every, end)
            self.reconcile()

    def record(self, name: str = NAME) -> Record:
        record = self.ledger.read(name)
        assert record is not None
        return record

    @property
    def status(self) -> Status:
        return self.record().status

    def human(self, name: str = NAME) -> str | None:
        """Why a person is needed, or None."""
        condition = self.record(name).status.condition("NeedsHuman")
        return condition.reason if condition is not None and condition.holds else None

    def workflows(self) -> list[dict[str, Any]]:
        return [stored.doc for stored in self.objects.list(WORKFLOWS)]

    def open(self) -> list[dict[str, Any]]:
        """Workflows that have not ended."""
        over = ("Succeeded", "Failed", "Error")
        return [doc for doc in self.workflows() if (doc.get("status") or {}).get("phase") not in over]

    def set_workflow(self, doc: dict[str, Any]) -> None:
        stored = self.objects.get(WORKFLOWS, doc["metadata"]["name"])
        assert stored is not None
        self.objects.replace(WORKFLOWS, stored.name, doc, stored.version, pending=stored.pending)

    def phase(self, phase: str, *, suspended: bool = False) -> None:
        """The one open Workflow is in this phase, perhaps at its suspend node."""
        (doc,) = self.open()
        nodes = {"approve": {"type": "Suspend", "phase": "Running"}} if suspended else {}
        self.set_workflow({**doc, "status": {"phase": phase, "nodes": nodes}})
        self.reconcile()

    def end(self, outcome: str, *, took: timedelta = HOUR, reason: str = "", pointer: str = "") -> None:
        """The one open Workflow ends after a while, and reconcile notices."""
        (doc,) = self.open()
        self.now += took
        if outcome == "Lost":
            self.forget(WORKFLOWS, doc["metadata"]["name"])
        else:
            self.set_workflow(ended(doc, outcome, self.now, reason=reason, pointer=pointer))
        self.reconcile()

    def forget(self, kind: str, name: str) -> None:
        """An object is deleted behind everybody's back."""
        rows = getattr(self.objects, "rows", None)
        if rows is not None:  # the simulator's table
            del rows[kind][name]
        else:
            self.objects._run("DELETE FROM objects WHERE kind = ? AND name = ?", kind, name)

    def replace_status(self, name: str = NAME, **changes: Any) -> None:
        """Put a ledger into a state that is long to reach."""
        record = self.record(name)
        self.ledger.write(record, replace(record.status, **changes), pending=True)

    def ask(self, token: str, name: str = NAME) -> None:
        """A person labels the object."""
        self.ledger.request(name, token, "ann", token)


__all__ = ["DAY", "HOUR", "MINUTE", "MODELS", "NAME", "SECOND", "START", "WORKFLOWS", "Killed", "World", "drift"]
