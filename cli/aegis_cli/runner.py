"""Take up Workflows on one machine, as Argo's controller does on a cluster. Executes none itself (`workflow_run`).

A Workflow is a row of kind `Workflow` in the objects table, marked pending until it has ended. Its status goes
back into the row after each node: a killed runner goes on at the first node that has not finished.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from aegis.errors import NotFound, Permanent, Temporary
from aegis.events import parse_time
from retrain_trigger.sqlite import Document, Objects, Stored

from .workflow_run import ENDED, KIND, Halt, Host, Run, Settings, end, timestamp, update
from .workflow_template import WorkflowTemplate, items, parse

log = logging.getLogger(__name__)


def load(path: Path) -> WorkflowTemplate:
    """Read a WorkflowTemplate from its file. Raises Permanent with every fault."""
    try:
        return parse(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as exc:
        raise Permanent(f"{path} can't be read: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Runner:
    """Takes up the rows that are due. One a state directory, guarded by a lock."""

    objects: Objects
    template: WorkflowTemplate
    state_dir: Path
    """Each Workflow has `runs/<name>/<node>/` here, with `<container>.log`, its volumes and artifacts."""
    config: Mapping[str, Mapping[str, str]]
    """ConfigMaps by name."""
    secrets: Mapping[str, Mapping[str, str]]
    """Secrets by name."""
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    path: str = os.defpath
    """The PATH of every step."""
    on_end: Callable[[Document], None] | None = None
    """Called with the document of each Workflow that ended, in the thread that ran it."""

    def run_pending(self) -> int:
        """Run all that is due to its end or to an approval; return how many Workflows were taken up."""
        return self._loop(threading.Event(), until_idle=True)

    def serve(self, stop: threading.Event) -> None:
        """Run what comes until `stop` is set; running steps are then ended, and run again at the next start.

        Raises Permanent if another runner works in this state directory.
        """
        self._loop(stop, until_idle=False)

    def _loop(self, stop: threading.Event, *, until_idle: bool) -> int:
        host = Host(
            self.objects, self.template, self.state_dir / "runs", self.config, self.secrets,
            self.settings, self.clock, self.path, stop,
        )  # fmt: skip
        taken = 0
        running: dict[Future[None], str] = {}
        with _alone(host.runs), ThreadPoolExecutor(self.settings.parallel, "workflow") as pool:
            while True:
                due = self._due(host, set(running.values()))
                for name in due[: self.settings.parallel - len(running)]:
                    running[pool.submit(self._run, host, name)] = name
                    taken += 1
                if not running and (stop.is_set() or until_idle):
                    return taken
                done = wait(running, self.settings.poll_s, FIRST_COMPLETED).done if running else set()
                for future in done:
                    del running[future]
                    future.result()
                if not (running or done):
                    stop.wait(self.settings.poll_s)

    def _run(self, host: Host, name: str) -> None:
        try:
            doc = Run(host, name).execute()
        except Halt:
            return
        except NotFound as exc:
            log.warning("a workflow was deleted while it ran: %s", exc)
            return
        except Temporary as exc:
            log.warning("workflow %s is left as it is for now: %s", name, exc)
            host.stopping.wait(self.settings.poll_s)
            return
        except Exception as exc:
            # The outermost boundary of a run: a fault of ours ends it in sight, or it would come again for ever.
            log.exception("workflow %s can't be run", name)
            doc = end(host, name, "Error", f"the runner failed: {exc!r}")
        try:
            self._sweep(host.runs)
            self._forget()
        except Temporary as exc:
            log.warning("what is left of old workflows stays for now: %s", exc)
        if self.on_end is not None:
            self.on_end(doc)

    def _due(self, host: Host, busy: set[str]) -> list[str]:
        """Return the rows to take up: by priority, then age; one of a model at a time."""
        due: list[str] = []
        if host.stopping.is_set():
            return due
        holders: dict[object, str] = {}
        try:
            rows = [row for row in self.objects.list(KIND, pending_only=True) if _phase(row.doc) not in ENDED]
            for row in sorted(rows, key=_queue):
                holder = holders.setdefault(_mutex(row), row.name)
                if holder != row.name and _phase(row.doc) != "Pending":
                    self._wait_for(row.name, holder)
                elif holder == row.name and row.name not in busy and not _asks(row.doc, host):
                    due.append(row.name)
        except Temporary as exc:
            log.warning("the rows can't be read: %s", exc)
        return due

    def _wait_for(self, name: str, holder: str) -> None:
        def change(doc: Document) -> None:
            message = f"waits for {holder}, which retrains the same model"
            doc.setdefault("status", {}).update(phase="Pending", message=message)

        update(self.objects, name, change)

    def _sweep(self, runs: Path) -> None:
        """Remove the oldest directories of Workflows that ended."""
        pending = {row.name for row in self.objects.list(KIND, pending_only=True)}
        ended = [run for run in runs.iterdir() if run.is_dir() and run.name not in pending]
        ended.sort(key=lambda run: run.stat().st_mtime)
        for run in ended[: max(0, len(ended) - self.settings.keep_runs)]:
            shutil.rmtree(run, ignore_errors=True)

    def _forget(self) -> None:
        """Delete the Workflows whose time to live after their end is over, as Argo does."""
        for row in self.objects.list(KIND):
            ended = row.doc.get("status", {}).get("finishedAt")
            lives = (row.doc["spec"].get("ttlStrategy") or {}).get("secondsAfterCompletion")
            if row.pending or not ended or type(lives) is not int:
                continue
            if parse_time(ended) + timedelta(seconds=lives) < self.clock():
                self.objects.delete(KIND, row.name, row.version)


def approve(objects: Objects, workflow: str, *, by: str, now: datetime) -> None:
    """Release a Workflow that waits for a person, as `argo resume` does. Raises NotFound, Permanent, Temporary."""
    _answer(objects, workflow, "Succeeded", f"approved by {by}", now)


def reject(objects: Objects, workflow: str, *, by: str, why: str, now: datetime) -> None:
    """Fail a Workflow that waits for a person. Raises NotFound, Permanent, Temporary."""
    _answer(objects, workflow, "Failed", f"rejected by {by}: {why}", now)


def stop(objects: Objects, workflow: str) -> None:
    """Cancel a Workflow, as `argo stop` does. Raises NotFound, Permanent (it has ended), Temporary."""

    def change(doc: Document) -> None:
        if _phase(doc) in ENDED:
            raise Permanent(f"workflow {workflow} has ended")
        doc["spec"]["shutdown"] = "Stop"

    update(objects, workflow, change)


def _answer(objects: Objects, workflow: str, phase: str, message: str, now: datetime) -> None:
    def change(doc: Document) -> None:
        asked = [node for node in _nodes(doc) if node["type"] == "Suspend" and node["phase"] == "Running"]
        if not asked or _phase(doc) in ENDED:
            raise Permanent(f"workflow {workflow} doesn't wait for a person")
        for node in asked:
            node.update(phase=phase, message=message, finishedAt=timestamp(now))

    update(objects, workflow, change)


def _asks(doc: Document, host: Host) -> bool:
    """Say whether only a person can move this Workflow on."""
    asked = [node for node in _nodes(doc) if node["type"] == "Suspend" and node["phase"] == "Running"]
    under_way = [node for node in _nodes(doc) if node["type"] == "Pod" and node["phase"] == "Running"]
    return bool(asked) and not under_way and not doc["spec"].get("shutdown") and not host.overdue(doc)


def _phase(doc: Document) -> str:
    return str(doc.get("status", {}).get("phase", ""))


def _nodes(doc: Document) -> list[dict[str, Any]]:
    return list(doc.get("status", {}).get("nodes", {}).values())


def _mutex(row: Stored) -> object:
    values = {p.get("name"): p.get("value") for p in items(row.doc["spec"], "arguments", "parameters")}
    key = values.get("environment"), values.get("model")
    return row.name if None in key else str(key)


def _queue(row: Stored) -> tuple[bool, int, str, str]:
    """Order by: under way, priority, age, name."""
    started = "startedAt" in row.doc.get("status", {})
    return (
        not started,
        -int(row.doc["spec"].get("priority", 0)),
        str(row.doc["metadata"].get("creationTimestamp", "")),
        row.name,
    )


@contextmanager
def _alone(runs: Path) -> Iterator[None]:
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with the process
        except BlockingIOError as exc:
            raise Permanent(f"another runner works in {runs}") from exc
        yield
