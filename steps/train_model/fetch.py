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
from train_model import dataset, step
from train_model.attempt import Attempt
from train_model.dataset import Fetched
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
    old = dataset.remembered(champion) if attempt.trainer.data == "old+new" else []
    attempt.tmp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        found = dataset.gather(attempt.dataset_uri, old, attempt.prefixes, env, Path(folder))
        judge = None
        if attempt.evaluation_uri:
            judge = dataset.fetch(attempt.evaluation_uri, attempt.prefixes, env, Path(folder))
    dataset.check([*([judge] if judge else []), *found.fetched])
    parts = list(dataset.training_rows(found.fetched, judge.rows if judge else None))
    used = join([rows for _, rows in parts])
    if few := dataset.faults(used):
        raise Permanent("without the rows that judge, too little is left to train on", few)
    about = _about(attempt, found.fetched, judge, champion)
    about |= {"notes": [*found.lost, *found.notes], "held_out": sum(len(f.rows) for f in found.fetched) - len(used)}
    _write(attempt, train, about, parts, used)
    same = "data, champion and settings are those of the last attempt, which was rejected: nothing to do"
    counts = [f"{item.source.uri}: {len(rows):,} of {len(item.rows):,} rows to train on" for item, rows in parts]
    return "\n".join([*([same] if about["unchanged"] else []), *counts, *about["notes"]])


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
    classes, codes = np.unique(used.labels, return_inverse=True)
    about |= {"classes": classes.tolist(), "columns": list(used.columns), "shape": list(used.shape), "rows": len(used)}
    sources = np.repeat(np.arange(len(parts), dtype=np.int16), [len(rows) for _, rows in parts])
    np.savez(train / "data.npz", X=used.features, y=codes.astype(np.int64), source=sources)
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
