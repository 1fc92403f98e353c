"""The one-machine adapters: ledger, budget and Workflows as rows of one SQLite table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary
from aegis.events import rfc3339

from .budget import Budget
from .model import (
    REQUESTED_BY,
    REQUESTED_WHY,
    RETRAIN_LABEL,
    Record,
    Status,
    from_document,
    new_document,
    object_name,
    parsed,
    to_doc,
)
from .sqlite import Objects
from .workflow import MODEL_LABEL, model_label

MODELS, BUDGET, WORKFLOWS = "ManagedModel", "Budget", "Workflow"


class LocalLedger:
    """ManagedModels in the table."""

    def __init__(self, objects: Objects, new_uid: Callable[[], str]) -> None:
        self._objects = objects
        self._new_uid = new_uid

    def read(self, name: str) -> Record | None:
        stored = self._objects.get(MODELS, name)
        return None if stored is None else from_document(stored.doc, str(stored.version))

    def create(self, environment: str, model: str, status: Status, now: datetime) -> Record:
        doc = new_document(environment, model, self._new_uid(), now)
        doc["status"] = to_doc(status)
        try:
            stored = self._objects.create(MODELS, doc["metadata"]["name"], doc, pending=True)
        except AlreadyExists as exc:
            raise Conflict(str(exc)) from exc
        return from_document(doc, str(stored.version))

    def write(self, record: Record, status: Status, *, pending: bool) -> Record:
        stored = self._objects.get(MODELS, record.name)
        if stored is None or str(stored.version) != record.version:
            raise Conflict(f"{record.name} was changed by somebody else")
        doc = {**stored.doc, "status": to_doc(status)}
        written = self._objects.replace(MODELS, record.name, doc, stored.version, pending=pending)
        return replace(record, status=status, version=str(written.version))

    def pending(self) -> Iterable[str]:
        return self._objects.names(MODELS, pending_only=True)

    def count(self) -> int:
        return len(self._objects.names(MODELS))

    def records(self) -> list[Record]:
        """All records, for people."""
        return [from_document(stored.doc, str(stored.version)) for stored in self._objects.list(MODELS)]

    def set_spec(self, environment: str, model: str, spec: dict[str, Any], now: datetime) -> None:
        """What `kubectl apply` is on a cluster: create or replace an owner's policy."""
        name = object_name(environment, model)
        stored = self._objects.get(MODELS, name)
        doc = new_document(environment, model, self._new_uid(), now) if stored is None else stored.doc
        doc["spec"] = {"environment": environment, "model": model, **spec}
        from_document(doc, "0")  # refuses a bad policy, naming every fault
        if stored is None:
            self._objects.create(MODELS, name, doc)
        else:
            self._objects.replace(MODELS, name, doc, stored.version, pending=stored.pending)

    def request(self, name: str, token: str, by: str, why: str) -> None:
        """What `kubectl label` is on a cluster: ask for a retrain. Raises NotFound, Conflict."""
        stored = self._objects.get(MODELS, name)
        if stored is None:
            raise NotFound(f"no model {name} is known")
        metadata = dict(stored.doc["metadata"])
        metadata["labels"] = {**metadata.get("labels", {}), RETRAIN_LABEL: token}
        metadata["annotations"] = {**metadata.get("annotations", {}), REQUESTED_BY: by, REQUESTED_WHY: why}
        self._objects.replace(MODELS, name, {**stored.doc, "metadata": metadata}, stored.version, pending=True)


class LocalBudgets:
    """The budget in the table."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self) -> tuple[Budget, str]:
        stored = self._objects.get(BUDGET, "budget")
        if stored is None:
            return Budget(), "0"
        try:
            return parsed(Budget, stored.doc, "budget"), str(stored.version)
        except Permanent as exc:
            # No event's fault: until a person mends or deletes it, nothing may count as decided.
            raise Temporary(f"the budget cannot be read: {exc}") from exc

    def write(self, budget: Budget, version: str) -> None:
        if version != "0":
            self._objects.replace(BUDGET, "budget", to_doc(budget), int(version))
            return
        try:
            self._objects.create(BUDGET, "budget", to_doc(budget))
        except AlreadyExists as exc:
            raise Conflict(str(exc)) from exc


class LocalWorkflows:
    """Workflows in the table; the local runner executes them."""

    def __init__(self, objects: Objects, new_uid: Callable[[], str]) -> None:
        self._objects = objects
        self._new_uid = new_uid

    def create(self, manifest: dict[str, Any], now: datetime) -> str:
        metadata = {**manifest["metadata"], "uid": self._new_uid(), "creationTimestamp": rfc3339(now)}
        self._objects.create(WORKFLOWS, metadata["name"], {**manifest, "metadata": metadata}, pending=True)
        return str(metadata["uid"])

    def get(self, name: str) -> dict[str, Any] | None:
        stored = self._objects.get(WORKFLOWS, name)
        return None if stored is None else stored.doc

    def of_model(self, managed_model: str) -> list[dict[str, Any]]:
        docs = (stored.doc for stored in self._objects.list(WORKFLOWS))
        label = model_label(managed_model)
        return [doc for doc in docs if (doc["metadata"].get("labels") or {}).get(MODEL_LABEL) == label]
