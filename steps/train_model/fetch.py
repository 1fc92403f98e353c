"""`python -m train_model.fetch`: bring the training data into the pod, checked; the only one with bucket rights.

Leaves in AEGIS_DATA what the trainer may see: train/ (data.npz, dataset.json, manifest.json), event.json,
params.json and champion/. Evaluation data is read here to keep its rows out of training, and never written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aegis.errors import Permanent
from aegis.pointer import Champion
from aegis.storage import open_store
from train_model import checkpoint, checks, dataset, step
from train_model.attempt import Attempt
from train_model.checks import Problems
from train_model.dataset import Fetched
from train_model.drift import drifted
from train_model.readers import Rows, join


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code: 0, 64, 65, 75 or 76."""
    return step.run("fetch", _fetch, env, ("AEGIS_MODELS_URI",))


def _fetch(attempt: Attempt, env: Mapping[str, str]) -> str:
    train, champion_dir = attempt.data / "train", attempt.data / "champion"
    for left in (train, champion_dir):  # by a try that was killed
        shutil.rmtree(left, ignore_errors=True)
    train.mkdir(parents=True)
    champion = step.fetch_champion(attempt, env, champion_dir)
    old = [] if attempt.trainer.data == "new" else dataset.remembered(champion)
    numbers = attempt.trainer.task == "regression"
    attempt.tmp.mkdir(parents=True, exist_ok=True)
    problems, judge, found = checks.Problems(), None, dataset.Gathered([], [], [])
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        with problems.of("the data"):
            found = dataset.gather(attempt.dataset_uri, old, attempt.prefixes, env, Path(folder), numbers=numbers)
        with problems.of("the evaluation data"):
            if attempt.evaluation_uri:
                judge = dataset.fetch(attempt.evaluation_uri, attempt.prefixes, env, Path(folder), numbers=numbers)
    parts, notes, held_out = _checked(attempt, found.fetched, judge, problems)
    used = join([rows for _, rows in parts])
    about = _about(attempt, found.fetched, judge, champion)
    notes = [*found.lost, *found.notes, *notes]
    about |= {"notes": notes, "held_out": held_out, "drifted": _drifted(found.fetched)}
    _write(attempt, train, about, parts, used)
    resumed = checkpoint.restore(attempt, open_store(attempt.models_uri, env=env), about["inputs"])
    same = "data, champion and settings are those of the last attempt, which was rejected: nothing to do"
    counts = [f"{item.source.uri}: {len(rows):,} of {len(item.rows):,} rows to train on" for item, rows in parts]
    return "\n".join([*([same] if about["unchanged"] else []), *counts, *notes, *([resumed] if resumed else [])])


def _checked(
    attempt: Attempt, fetched: list[Fetched], judge: Fetched | None, problems: Problems
) -> tuple[list[tuple[Fetched, Rows]], list[str], int]:
    """The rows to train on, what has to be said of them, and how many are kept for judging. Everything that is wrong is
    raised at once."""
    numbers, max_missing = attempt.trainer.task == "regression", attempt.trainer.max_missing
    sources = [*([judge] if judge else []), *fetched]
    with problems.of("the data"):
        if sources:
            checks.check(sources, numbers=numbers, max_missing=max_missing)
    problems.check()  # what follows compares rows of one form
    parts, notes = list(dataset.training_rows(fetched, judge.rows if judge else None)), list[str]()
    with problems.of("the evaluation data"):
        if judge and not numbers:
            notes += checks.unjudged(fetched, judge)
    with problems.of("the data"):
        notes += checks.constant_columns(fetched)
    held_out = sum(len(f.rows) for f in fetched) - sum(len(rows) for _, rows in parts)
    if judge and held_out:
        notes.append(f"{held_out:,} rows are in the evaluation set too and were left out")
    if attempt.trainer.data == "replay":
        parts = dataset.replay(parts)
    with problems.of("the rows"):
        used = join([rows for _, rows in parts])
        if few := checks.faults(used, numbers=numbers, max_missing=max_missing):
            raise Permanent("without the rows that judge, too little is left to train on", few)
    problems.check()
    return parts, notes, held_out


def _drifted(fetched: list[Fetched]) -> list[dict[str, Any]]:
    *old, new = (f.rows for f in fetched)
    return drifted(join(old), new) if old else []


def _about(
    attempt: Attempt, fetched: list[Fetched], judge: Fetched | None, champion: Champion | None
) -> dict[str, Any]:
    """dataset.json but for what the rows themselves say."""
    lines = sorted(f"{f.source.digest} {f.source.uri}\n" for f in fetched)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    # Not the seed, which is new for each retrain: the same data is not worth another throw of the dice.
    inputs = {
        "data": sorted(f.source.digest for f in fetched),
        "evaluation": judge.source.digest if judge else "",
        "champion": champion.pointer.tar_sha256 if champion else "",
        "trainer": asdict(attempt.trainer),
        "gate": asdict(attempt.gate),
    }
    inputs_digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return {
        "task": attempt.trainer.task or ("table" if fetched[-1].rows.columns else "image"),
        "sources": [asdict(f.source) for f in fetched],
        "digest": digest,
        "inputs": inputs_digest,
        "unchanged": inputs_digest == attempt.last_inputs,
        "champion": inputs["champion"],
        "evaluation": inputs["evaluation"],
    }


def _write(attempt: Attempt, train: Path, about: dict[str, Any], parts: list[tuple[Fetched, Rows]], used: Rows) -> None:
    if about["task"] == "regression":
        classes, answers = [], used.labels
    else:
        known, codes = np.unique(used.labels, return_inverse=True)
        classes, answers = known.tolist(), codes.astype(np.int64)
    about |= {"classes": classes, "columns": list(used.columns), "shape": list(used.shape), "rows": len(used)}
    sources = np.repeat(np.arange(len(parts), dtype=np.int16), [len(rows) for _, rows in parts])
    np.savez(train / "data.npz", X=used.features, y=answers, source=sources)
    manifest = [{"uri": f.source.uri, "files": list(f.manifest), "ignored": list(f.ignored)} for f, _ in parts]
    params = {"seed": attempt.seed, "task": about["task"], "params": dict(attempt.trainer.params)}
    for path, document in (
        (train / "dataset.json", about),
        (train / "manifest.json", manifest),
        (attempt.data / "event.json", dict(attempt.event)),
        (attempt.data / "params.json", params),
    ):
        path.write_text(json.dumps(document, indent=1, sort_keys=True))


if __name__ == "__main__":
    sys.exit(main())
