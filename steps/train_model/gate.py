"""`python -m train_model.gate`: does the challenger replace the champion? The answer comes from `verdict`.

The models predict in a child that knows no label and no credential; this process never loads one. Evaluation data
comes from the owner's evaluation URI, or else from rows that no training has seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis import manifest
from aegis.pointer import Champion
from aegis.step import write_outputs
from train_model import card, child, dataset, step, tracking
from train_model.attempt import Attempt
from train_model.readers import Rows
from train_model.verdict import Verdict, judge

MAX_ANSWER = 1 << 30


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code: 0 (accepted or rejected), 64, 65, 75 or 76."""
    return step.run("gate", _gate, env, ("AEGIS_MODELS_URI",))


def _gate(attempt: Attempt, env: Mapping[str, str]) -> str:
    digest = manifest.root_digest(manifest.walk(attempt.model_dir))  # before anything of it is loaded
    attempt.tmp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        work = Path(folder)
        champion = step.fetch_champion(attempt, env, work / "champion")
        rows, notes, lost = _evaluation(attempt, env, champion, work)
        models = [champion.directory] if champion else []
        answers, run = _ask(attempt, env, rows, [*models, attempt.model_dir], work)
    labels, predictions = texts(rows.labels.tolist()), [a if isinstance(a, str) else texts(a) for a in answers]
    result = _judge(attempt, rows, labels, predictions)
    if lost:
        why = "; ".join(["old knowledge cannot be judged: set evaluationUri, or bring the data back", *lost])
        result = replace(result, accept=False, explanation=f"{why}; {result.explanation}")
    explanation = "; ".join([result.explanation, *notes])
    outcome = "Accepted" if result.accept else "Rejected"
    outputs = {"verdict": "accept" if result.accept else "reject", "digest": digest, "outcome": outcome}
    outputs["champion"] = champion.pointer.mark if champion else ""  # a promotion after another is refused
    if run is not None:
        _show(attempt, run, result, explanation, labels, predictions, digest)
    write_outputs(attempt.out, outputs | {"explanation": explanation})
    return f"{outcome}: {explanation}"


def _evaluation(
    attempt: Attempt, env: Mapping[str, str], champion: Champion | None, work: Path
) -> tuple[Rows, list[str], list[str]]:
    """The rows that judge, what must be said about them, and old data that should be among them and cannot be had."""
    (work / "data").mkdir()
    notes, lost = list[str](), list[str]()
    if attempt.evaluation_uri:
        fetched = [dataset.fetch(attempt.evaluation_uri, attempt.prefixes, env, work / "data")]
        rows = fetched[0].rows
    else:
        old = dataset.remembered(champion)
        found = dataset.gather(attempt.dataset_uri, old, attempt.prefixes, env, work / "data")
        fetched, notes, lost = found.fetched, found.notes, found.lost
        rows = dataset.evaluation_rows(fetched)
        if champion and not old:
            notes.append("nothing says what the champion learned from: what the challenger forgot of it was not judged")
        notes.append("judged on held-out rows of the same data, which is weaker than an evaluation set of your own")
        if champion and dataset.record(champion.directory).get("evaluation"):
            notes.append("the champion once learned from some of them, which favours it")
        trained_on = {source.digest for source in dataset.sources(attempt.model_dir)}
        if fetched[-1].source.digest not in trained_on:
            # Harmless: a row is held out by its content alone, so none of these can have been trained on.
            notes.append("the data has changed since the training")
    dataset.check(fetched)
    return rows, notes, lost


def _ask(
    attempt: Attempt, env: Mapping[str, str], rows: Rows, models: Sequence[Path], work: Path
) -> tuple[list[list[Any] | str], tracking.Run | None]:
    """Each model's labels, or in words why there are none; and the run of MLflow, if one is to be shown to."""
    np.save(work / "X.npy", rows.features)
    (work / "columns.json").write_text(json.dumps(rows.columns))
    safe = child.environment(env, work)
    arguments = [work / "X.npy", work / "columns.json", *models]
    with (
        (work / "log").open("w+b") as log,
        child.started("train_model.predict", arguments, safe, log, subprocess.PIPE) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - for the type: it was asked for
        # The group, not the process: a fork that hangs would hold the pipe open for ever.
        late = threading.Timer(attempt.gate.timeout_seconds * len(models), child.end, [process])
        late.start()
        run = tracking.begin(attempt, tracking.identity(attempt)) if attempt.tracking_uri else None
        text = process.stdout.read(MAX_ANSWER)
        late.cancel()
        if said := child.tail(log, env):
            print(said)
    lines = text.split(b"\n")[: len(models)]
    return [_answer(line, len(rows)) for line in [*lines, *[b""] * (len(models) - len(lines))]], run


def _answer(line: bytes, rows: int) -> list[Any] | str:
    try:
        found = json.loads(line)
        labels = found.get("labels")
    except (ValueError, AttributeError, RecursionError):
        return "it gave no answer in time"
    if isinstance(labels, list) and len(labels) == rows:
        return labels
    return str(found.get("error", "it did not give one label a row"))[:500]


def texts(labels: Sequence[Any]) -> NDArray[np.str_]:
    """Labels in the one form in which they are compared: 3, 3.0 and "3" are the same."""
    return np.array([str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)[:64] for v in labels])


def _judge(
    attempt: Attempt, rows: Rows, labels: NDArray[np.str_], predictions: Sequence[NDArray[np.str_] | str]
) -> Verdict:
    """The verdict; a model that cannot predict is a rejection too, the champion as well as the challenger."""
    *before, challenger = predictions
    for name, answer in (("challenger", challenger), *(("champion", answer) for answer in before)):
        if isinstance(answer, str):
            return Verdict(False, f"the {name} cannot predict: {answer}", len(rows), 0.0, None, None, ())
    known = [p for p in predictions if not isinstance(p, str)]
    champion = known[0] if before else None
    return judge(labels, known[-1], champion, rows.slices, attempt.gate, attempt.seed)


def _show(
    attempt: Attempt,
    run: tracking.Run,
    result: Verdict,
    explanation: str,
    labels: NDArray[np.str_],
    predictions: Sequence[NDArray[np.str_] | str],
    digest: str,
) -> None:
    """Metrics, tags and the model card, for people, in the attempt's run."""
    metrics: dict[str, float | None] = {"eval_rows": result.rows, "challenger_accuracy": result.challenger}
    metrics |= {"champion_accuracy": result.champion, "mcnemar_p": result.p}
    metrics |= {"slice_change/" + re.sub(r"[^\w .-]", "_", part.name): part.change for part in result.slices}
    outcome = "Accepted" if result.accept else "Rejected"
    tags = {"aegis.verdict": outcome, "aegis.explanation": explanation, "aegis.model_digest": digest}
    run.log({}, {name: value for name, value in metrics.items() if value is not None}, tags)
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        facts = {name.removeprefix("aegis."): str(value) for name, value in tracking.identity(attempt).items()}
        known = None if isinstance(predictions[-1], str) else predictions[-1]
        page = card.Card(facts | {"digest": digest}, explanation, result, labels, known)
        (Path(folder) / "model_card.html").write_text(card.html(page), encoding="utf-8")
        (Path(folder) / "model_card.md").write_text(card.markdown(page), encoding="utf-8")
        run.artifacts(Path(folder))
    run.end("FINISHED")


if __name__ == "__main__":
    sys.exit(main())
