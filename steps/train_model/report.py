"""Show what the gate found, for people: metrics, tags and the model card, in the run and beside the outputs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from typing import Any

from train_model import card, dataset
from train_model.attempt import Attempt
from train_model.card import Card, Drift
from train_model.tracking import Run
from train_model.verdict import Judged, Verdict

FOLDER = "report"
"""Below the step's outputs."""
_DRIFTED, _BINS, _SLICES = 8, 50, 100


def show(attempt: Attempt, run: Run | None, judged: Judged, env: Mapping[str, str]) -> None:
    """Write the report to `AEGIS_OUT/report`; with a run, log it there and close the run."""
    record, curves = dataset.record(attempt.model_dir), run.curves() if run else {}
    made = Card(
        attempt.model, judged, attempt.gate.margin, facts(attempt, judged, record, env, run), drifted(record), curves
    )
    folder = attempt.out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in card.files(made).items():
        (folder / name).write_text(content, encoding="utf-8")
    if run is None:
        return
    said = {"aegis.verdict": "Accepted" if judged.verdict.accept else "Rejected", "aegis.reason": judged.verdict.reason}
    said |= {"aegis.explanation": judged.explanation, "aegis.model_digest": judged.digest}
    run.log({}, measures(judged.verdict), said)
    run.folder(folder)
    run.end("FINISHED")


def measures(verdict: Verdict) -> dict[str, float]:
    """The verdict's numbers as metrics of the run; those that there are."""
    found: dict[str, float | None] = {"eval_rows": verdict.rows, "p_value": verdict.p, "level": verdict.level}
    found |= {f"challenger_{verdict.metric}": verdict.challenger, f"champion_{verdict.metric}": verdict.champion}
    found |= {"change": verdict.change[0] if verdict.change else None}
    found |= {f"slice_change/{part.name.replace('/', '_')}": part.change for part in verdict.slices[:_SLICES]}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def facts(
    attempt: Attempt, judged: Judged, record: Mapping[str, Any], env: Mapping[str, str], run: Run | None
) -> dict[str, str]:
    """Where the model comes from, from the alert to the bytes."""
    event = attempt.event
    known = {
        "model": attempt.model,
        "environment": attempt.environment,
        "version that drifted": attempt.version,
        "alert": event.get("fingerprint", ""),
        "drift event": event.get("event_id", ""),
        "decision": event.get("reason", ""),
        "workflow": attempt.workflow,
        "workflow uid": attempt.workflow_uid,
        "MLflow run": run.run_id if run else "",
        "trainer": attempt.trainer.module or " ".join(attempt.trainer.command) or "default",
        "trainer image": env.get("AEGIS_TRAINER_IMAGE", ""),
        "seed": attempt.seed,
        "rows learned from": record.get("rows", ""),
        "evaluation data": attempt.evaluation_uri or "held-out rows of the same data",
        "digest of the model": judged.digest,
        "environment of the training": "environment.txt, and the tags of the run in MLflow" if run else "",
    }
    for number, source in enumerate(dataset.sources(attempt.model_dir), 1):
        known |= {f"data {number}": source.uri, f"digest of data {number}": source.digest}
    return {name: str(value) for name, value in known.items() if str(value)}


def drifted(record: Mapping[str, Any]) -> tuple[Drift, ...]:
    """The features that moved, as fetch left them; what has not their form is left out."""
    found = record.get("drifted")
    parts = [_drift(item) for item in (found if isinstance(found, list) else [])[:_DRIFTED]]
    return tuple(part for part in parts if part)


def _drift(item: Any) -> Drift | None:
    try:
        old, new = (tuple(float(share) for share in item[name][:_BINS]) for name in ("old", "new"))
        part = Drift(str(item["name"]), float(item["distance"]), float(item["low"]), float(item["high"]), old, new)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    numbers = (*old, *new, (part.high - part.low) / 2, part.low, part.high, part.distance)
    good = len(old) == len(new) > 0 and all(map(math.isfinite, numbers)) and part.low <= part.high
    return part if good and all(0 <= share <= 1 for share in (*old, *new)) else None
