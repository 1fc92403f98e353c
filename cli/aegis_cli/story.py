"""What people read: models in a table, one model's story in time order. Foreign text is escaped, always."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from aegis.events import rfc3339
from retrain_trigger.model import ROWS, Record, Retrain, Row, to_doc

from .cluster import Place

JUDGED = ("Promoted", "Rejected")
"""Outcomes after which there is a model card."""


def shown(text: object) -> str:
    """Text that cannot steer a terminal: control, bidi and other invisible characters are spelled as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns, as wide as they need to be."""
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def models(records: Sequence[Record]) -> str:
    """A line a model: does it drift, does it retrain, and if not, why."""
    if not records:
        return "No model is known yet: send an alert (`aegis send NAME`), or register one (docs/policy.md)."
    rows: list[Sequence[object]] = [
        ("MODEL", "ENVIRONMENT", "DRIFTING", "RETRAINING", "WHY", "ATTEMPTS", "LAST OUTCOME")
    ]
    for record in records:
        status = record.status
        drifting, retraining, human = (status.condition(c) for c in ("Drifting", "Retraining", "NeedsHuman"))
        why = human if human and human.holds else retraining
        rows.append(
            (
                record.model,
                record.environment,
                drifting.status if drifting else "False",
                retraining.status if retraining else "False",
                (("needs a person: " if why is human else "") + why.reason) if why else "",
                f"{status.attempts}/{record.policy.max_attempts}",
                status.retrain.outcome or status.retrain.phase if status.retrain else "-",
            )
        )
    return table(rows)


def as_json(record: Record, place: Place) -> dict[str, Any]:
    """Everything that is known, for scripts."""
    return {
        "name": record.name,
        "environment": record.environment,
        "model": record.model,
        "status": to_doc(record.status),
        "workflow": _workflow(record, place),
    }


def why(record: Record, place: Place) -> str:
    """One model's story: what stands, what happened and why, and where each thing can be looked at."""
    status = record.status
    lines = [f"{record.model} in {record.environment}", ""]
    for condition in status.conditions:
        if condition.holds or condition.type == "Retraining":
            state = condition.type if condition.holds else "Not retraining"
            since = f"since {_time(condition.last_transition_time)}"
            lines.append(f"  {state}: {condition.reason}: {condition.message} ({since})")
    if status.next_eligible_at:
        lines.append(f"  Next retrain not before {_time(status.next_eligible_at)}, unless a person asks")
    lines += [f"  Attempts used: {status.attempts} of {record.policy.max_attempts}", "", "What happened"]
    lines += [f"  {line}" for row in status.history for line in _row(row)] or ["  nothing yet"]
    firing = [alert for alert in status.evidence if alert.seen]
    if firing:
        lines += ["", "Alerts"]
        lines += [
            f"  {alert.fingerprint}  version {alert.version}  {alert.severity}"
            + (f"  {alert.feature}" if alert.feature else "")
            + f"  began {_time(alert.starts_at)}, last seen {_time(alert.seen)}"
            + (f", resolved {_time(alert.ends_at)}" if alert.ends_at else "")
            for alert in firing
            if alert.seen
        ]
    if status.retrain:
        lines += [
            "",
            "The last retrain",
            *(f"  {line}" for line in _chain(record, status.retrain, place)),
        ]
    return "\n".join(map(shown, lines))


def _row(row: Row) -> list[str]:
    times = f" ({row.count} times, last {_time(row.last)})" if row.count > 1 else ""
    head = f"{_time(row.first)}  {ROWS.get(row.kind, row.kind)}: {row.reason}{times}"
    return [head, *([f"{'':21}{row.message}"] if row.message else [])]


def _chain(record: Record, retrain: Retrain, place: Place) -> list[str]:
    """From the registered version back to the alert, a line a link."""
    reason = f": {retrain.outcome_reason}" if retrain.outcome_reason else ""
    links: list[tuple[str, object]] = [("outcome", f"{retrain.outcome or retrain.state or retrain.phase}{reason}")]
    if retrain.explanation:
        links.append(("because", retrain.explanation))
    if retrain.registered_version:
        links.append(("model version", f"{record.model} version {retrain.registered_version}"))
    if retrain.run_id:
        mlflow = place.mlflow()
        links.append(("MLflow run", f"{mlflow}/#/runs/{retrain.run_id}" if mlflow else retrain.run_id))
    if retrain.run_id and retrain.outcome in JUDGED and (card := place.report(retrain.run_id)):
        links.append(("report", card))
    links.append(("Workflow", f"{retrain.workflow} (uid {retrain.uid})"))
    nodes = ((_workflow(record, place) or {}).get("status") or {}).get("nodes", {}).values()
    ran = [node for node in nodes if node.get("type") in ("Pod", "Suspend")]
    ran.sort(key=lambda node: str(node.get("finishedAt") or "~"))
    steps = [f"{node.get('templateName')} {node.get('phase')}" for node in ran]
    if steps:
        links.append(("steps", ", ".join(steps)))
    links.append(("decision", retrain.reason))
    if retrain.event_id:
        links += [("drift event", retrain.event_id), ("alert fingerprint", retrain.fingerprint)]
    if retrain.dataset_uri:
        links.append(("data", retrain.dataset_uri))
    if logs := place.logs(retrain.workflow):
        links.append(("logs", logs))
    return [f"{name + ':':19}{value}" for name, value in links]


def _workflow(record: Record, place: Place) -> dict[str, Any] | None:
    return place.workflows().get(record.status.retrain.workflow) if record.status.retrain else None


def _time(moment: datetime) -> str:
    return rfc3339(moment)[:19].replace("T", " ")
