"""Kubernetes Events about a ManagedModel: what `kubectl describe mm` shows. For people; nothing is decided by them.

They are written beside the ledger by one thread, at best effort: an Event that could not be written costs nobody a
retrain, and the ledger's history has the same rows.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from dataclasses import dataclass
from typing import Any

from aegis.errors import AlreadyExists, Permanent, Temporary
from aegis.events import rfc3339

from .kubernetes import Client
from .model import API_VERSION, ROWS, Condition, Record, Row, Status

log = logging.getLogger("aegis.trigger")

MAX_WAITING = 1000
"""Events not yet written. A storm beyond that loses Events, never memory or time."""
_BAD = frozenset({"Failed", "Lost", "BadData", "TrainerFailed", "Cancelled"})


@dataclass(frozen=True, slots=True)
class News:
    """One transition. `reason` is the history row's or the condition's."""

    reason: str
    message: str
    warning: bool
    at: str
    workflow: str | None = None


def news(before: Status, after: Status) -> list[News]:
    """What a write of the ledger changed, for people: new rows of the history, and conditions that need a person."""
    known = {(row.kind, row.reason, row.first) for row in before.history}
    found = [_of_row(row) for row in after.history if (row.kind, row.reason, row.first) not in known]
    for condition in after.conditions:
        old = before.condition(condition.type)
        if condition.type in ("NeedsHuman", "Stuck") and condition.holds and (old is None or _differs(old, condition)):
            at = rfc3339(condition.last_transition_time)
            found.append(News(condition.reason, f"{condition.type}: {condition.message}", warning=True, at=at))
    return found


def _differs(old: Condition, new: Condition) -> bool:
    return (old.status, old.reason) != (new.status, new.reason)


def _of_row(row: Row) -> News:
    warning = row.kind == "Rejected" or (row.kind == "Finished" and row.reason in _BAD)
    reason = f"Retrain{row.reason}" if row.kind == "Finished" else row.reason
    said = ROWS.get(row.kind, row.kind)
    message = f"{said}: {row.message}" if row.message else said
    return News(reason, message, warning, rfc3339(row.first), row.workflow)


def document(record: Record, namespace: str, told: News) -> dict[str, Any]:
    """The Event. Its name is made from what it says, so telling twice makes one."""
    digest = hashlib.sha256(repr((record.uid, told)).encode()).hexdigest()[:16]
    message = told.message + (f" ({told.workflow})" if told.workflow else "")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{record.name}.{digest}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": API_VERSION, "kind": "ManagedModel", "name": record.name, "namespace": namespace,
            "uid": record.uid, "resourceVersion": record.version,
        },
        "reason": told.reason,
        "message": message[:1024],
        "type": "Warning" if told.warning else "Normal",
        "source": {"component": "retrain-trigger"},
        "firstTimestamp": told.at,
        "lastTimestamp": told.at,
        "count": 1,
    }  # fmt: skip


class Announcer:
    """Writes Events from a thread of its own, started by the first one."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, record: Record, status: Status) -> None:
        """Tell what a write changed: `record` as it was, `status` as it is now."""
        for told in news(record.status, status):
            try:
                self._waiting.put_nowait(document(record, self._namespace, told))
            except queue.Full:
                log.warning("an Event was dropped", extra={"managed_model": record.name, "reason": told.reason})
                return
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            doc = self._waiting.get()
            try:
                self._client.call("POST", f"/api/v1/namespaces/{self._namespace}/events", body=doc)
            except AlreadyExists:
                pass
            except (Temporary, Permanent) as exc:
                log.warning("an Event was not written", extra={"event": doc["metadata"]["name"], "error": str(exc)})
            finally:
                self._waiting.task_done()
