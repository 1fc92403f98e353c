"""`python -m train_model.gate`: does the challenger replace the champion? The answer comes from `verdict`.

The models predict in a child that knows no label and no credential; this process never loads one. Evaluation data
comes from the owner's evaluation URI, or else from rows that no training has seen.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
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
from aegis.names import printable
from aegis.pointer import Champion
from aegis.step import write_outputs
from train_model import checks, child, dataset, report, sandbox, step, tracking
from train_model.attempt import METRICS, Attempt
from train_model.predict import MAX_ANSWER
from train_model.readers import Rows
from train_model.verdict import Judged, Said, Verdict, judge, metric_of, refused

MAX_DISK = 1 << 30
"""Bytes that a model may write while it predicts: room for what it unpacks, not for a log without end."""
MAX_NUMBER = 1e100
"""Of a regression; its square can still be added up."""
MAX_WORDS = 4000
"""Of an explanation: it travels in the Workflow's status, and a slice column of ids would name thousands."""
STARTING_S = 60
"""What the process may take beyond the models' own time: the import of their libraries on a busy machine."""


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
        labels = rows.labels if attempt.trainer.task == "regression" else texts(rows.labels.tolist())
        metric = metric_of(attempt.gate, labels)
        what = "numbers" if METRICS[metric] else "labels" if metric == "accuracy" else "probabilities"
        answers, run = ask(attempt, env, rows, [*models, attempt.model_dir], work, what)
    before, after = answers[0] if models else None, answers[-1]
    result = _judge(attempt, labels, rows.slices, before, after)
    if lost:
        why = "; ".join(["old knowledge cannot be judged: set evaluationUri, or bring the data back", *lost])
        text = f"{why}; {result.explanation}"
        result = replace(result, accept=False, reason="OldDataLost", explanation=text)
    explanation = "; ".join([result.explanation, *notes])[:MAX_WORDS]
    outcome = "Accepted" if result.accept else f"Rejected:{result.reason}"
    outputs = {"verdict": "accept" if result.accept else "reject", "digest": digest, "outcome": outcome}
    outputs["champion"] = champion.pointer.mark if champion else ""  # a promotion after another is refused
    shown = (_shown(before) if before else None, _shown(after))
    report.show(attempt, run, Judged(result, labels, shown, digest, explanation), env)
    write_outputs(attempt.out, outputs | {"explanation": explanation})
    return f"{outcome}: {explanation}"


def _evaluation(
    attempt: Attempt, env: Mapping[str, str], champion: Champion | None, work: Path
) -> tuple[Rows, list[str], list[str]]:
    """The rows that judge, what must be said about them, and old data that should be among them and cannot be had."""
    (work / "data").mkdir()
    numbers, notes, lost = attempt.trainer.task == "regression", list[str](), list[str]()
    if attempt.evaluation_uri:
        fetched = [dataset.fetch(attempt.evaluation_uri, attempt.prefixes, env, work / "data", numbers=numbers)]
        rows = fetched[0].rows
    else:
        old = dataset.remembered(champion)
        found = dataset.gather(attempt.dataset_uri, old, attempt.prefixes, env, work / "data", numbers=numbers)
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
    checks.check(fetched, numbers=numbers, max_missing=attempt.trainer.max_missing)
    return rows, notes, lost


def ask(
    attempt: Attempt, env: Mapping[str, str], rows: Rows, models: Sequence[Path], work: Path, what: str
) -> tuple[list[Said | str], tracking.Run | None]:
    """What each model says, or in words why it says nothing; and the run of MLflow, if one is to be shown to."""
    scratch = work / "scratch"  # all that a model sees beside itself, where the system can see to that
    scratch.mkdir()
    np.save(scratch / "X.npy", rows.features)
    (scratch / "columns.json").write_text(json.dumps(rows.columns))
    seconds, memory = attempt.gate.timeout_seconds, child.memory_limit()
    command = child.module("train_model.predict", what, str(seconds), scratch, *models)
    safe, text = child.environment(env, scratch), list[bytes]()
    with (
        sandbox.hidden(),
        child.Log(env) as log,
        child.started(command, safe, log, subprocess.PIPE, cwd=scratch, memory=memory, disk=MAX_DISK) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - for the type: it was asked for
        pipe, most = process.stdout, (MAX_ANSWER + 1) * len(models)
        reader = threading.Thread(target=lambda: text.append(pipe.read(most)), daemon=True)
        reader.start()
        run = tracking.begin(attempt, tracking.identity(attempt)) if attempt.tracking_uri else None
        bounds = child.Bounds(seconds * len(models) + STARTING_S, memory, MAX_DISK)
        breach = child.watch(process, bounds, [scratch], lambda: None)
        child.end(process)
        reader.join()
    lines = b"".join(text).split(b"\n")[:-1]
    missing = breach.said if breach else "the process that should have loaded it died"
    return [said(lines[i], len(rows), what) if i < len(lines) else missing for i in range(len(models))], run


def said(line: bytes, rows: int, what: str) -> Said | str:
    """A model's answer (see `predict`) if it is whole, else in words why it is none."""
    try:
        found = json.loads(line)
        if "error" in found:
            return printable(str(found["error"]))[:500]
        if what == "labels":
            whole = isinstance(found[what], list) and len(found[what]) == rows
            return Said(texts(found[what])) if whole else "it did not give one label a row"
        numbers = np.frombuffer(base64.b64decode(found[what], validate=True), "<f8")
        if what == "numbers":
            bad = rows - int((np.abs(numbers) < MAX_NUMBER).sum())
            return f"it gave no number, or a vast one, in {bad:,} of {rows:,} rows" if bad else Said(numbers)
        classes = texts(found["classes"])
        shares = numbers.reshape(rows, len(classes))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        return "it gave no answer"
    if len(set(classes.tolist())) != len(classes) or len(classes) > checks.MAX_CLASSES:
        return f"its {len(classes):,} classes are not different ones, {checks.MAX_CLASSES:,} at most"
    good = np.isfinite(shares).all(axis=1) & (shares >= 0).all(axis=1) & (np.abs(shares.sum(axis=1) - 1) < 1e-3)
    if not good.all():
        return f"what it gave are no probabilities (from 0 to 1, of sum 1) in {int((~good).sum()):,} of {rows:,} rows"
    return Said(classes[np.argmax(shares, axis=1)], classes, shares)


def _shown(answer: Said | str) -> NDArray[Any] | str:
    return answer if isinstance(answer, str) else answer.labels


def texts(labels: Sequence[Any]) -> NDArray[np.str_]:
    """Labels in the one form in which they are compared: 3, 3.0 and "3" are the same."""
    return np.array([str(int(v) if isinstance(v, float) and v.is_integer() else v)[:64] for v in labels], dtype=np.str_)


def _judge(
    attempt: Attempt,
    labels: NDArray[Any],
    slices: NDArray[np.str_],
    champion: Said | str | None,
    challenger: Said | str,
) -> Verdict:
    """The verdict; who gives no answers is refused by name, and the owner's policies apply."""
    gate = attempt.gate
    broken = champion if isinstance(champion, str) else ""
    none: tuple[str, int, float] = metric_of(gate, labels), len(labels), gate.alpha / attempt.max_attempts
    if isinstance(challenger, str):
        return refused("CannotPredict", f"the challenger cannot predict: {challenger}", *none)
    if broken and gate.broken_champion == "reject":
        return refused("ChampionBroken", f"the champion cannot predict: {broken}", *none)
    rival = None if isinstance(champion, str) else champion
    result = judge(labels, challenger, rival, slices, gate, attempt.max_attempts)
    if broken:
        text = f"{result.explanation}; the champion cannot predict, so it was not compared with: {broken}"
        return replace(result, explanation=text)
    if champion is None and gate.without_champion == "reject":
        text = f"there is no champion, and only a person may bring in the first: {result.explanation}"
        return replace(result, accept=False, reason="NoChampion", explanation=text)
    return result


if __name__ == "__main__":
    sys.exit(main())
