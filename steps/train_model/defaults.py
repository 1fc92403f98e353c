"""The trainers that need no setting, and the process that any trainer in Python runs in.

`python -m train_model.defaults package.module:function IN OUT` calls function(IN, OUT), two folders. What lies in them
is the contract of docs/trainers.md; a trainer of your own is any such function, or any such program.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MINI_BATCHES = 2_000_000
"""Upper bound on row visits of the network: 60 passes at 33,000 rows and fewer above, so that time is bounded."""
PATIENCE, TOLERANCE = 5, 1e-3
"""The network ends early when its loss has not fallen by this much for so many passes."""
TREES = 20
"""Boosting rounds between two looks at the curve. Part of the result: the same chunks give the same trees."""
CHECKPOINT_S = 10.0
_THEN = "1970-01-01 00:00:00"
SCORED = 2_000
"""Rows on which the live curve of the trees is computed."""


def default(source: Path, target: Path) -> None:
    """Fit the default model of the task, from its checkpoint if there is one, and save it."""
    given = json.loads((source / "params.json").read_text())
    dataset = json.loads((source / "train" / "dataset.json").read_text())
    with np.load(source / "train" / "data.npz", allow_pickle=False) as data:
        features = data["X"]
        labels = np.array(dataset["classes"])[data["y"]] if dataset["classes"] else data["y"]
    examples: Any = features
    if dataset["columns"]:
        import pandas as pd

        examples = pd.DataFrame(features, columns=dataset["columns"])
    params = given["params"]
    known = {"hidden", "iterations", "rate", "checkpointSeconds"}
    if unknown := sorted(params.keys() - known):
        sys.exit(f"trainer.params: {', '.join(unknown)} unknown; the default trainers take {', '.join(sorted(known))}")
    progress = Progress(target, float(params.get("checkpointSeconds", CHECKPOINT_S)))
    fit = _network if given["task"] == "image" else _trees
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops at its bound is meant to
        model = fit(given, examples, labels, progress)
        score = float(model.score(examples, labels))
    name = "train_r2" if given["task"] == "regression" else "train_accuracy"
    (target / "metrics.json").write_text(json.dumps({name: score}))
    save(model, examples, target / "model", json.dumps([given, dataset.get("inputs")]))


class Progress:
    """The live curve, and the checkpoint from which a killed fit goes on as if nothing had happened."""

    def __init__(self, target: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._curve = target / "metrics.jsonl"
        self._folder = target / "checkpoint"
        self._seconds, self._clock = seconds, clock
        self._saved = clock()

    def resume(self) -> Any:
        """The estimator as it was at the last checkpoint, or None."""
        import skops.io

        from train_model.predict import TRUSTED

        path = self._folder / "model.skops"
        return skops.io.load(path, trusted=list(TRUSTED)) if path.is_file() else None

    def step(self, number: int, estimator: Any, **metrics: float) -> None:
        """One pass is done: add to the curve, and keep a checkpoint if the last one is old enough."""
        with self._curve.open("a") as file:
            file.write(json.dumps({"step": number, **metrics}) + "\n")
        if self._clock() - self._saved >= self._seconds and self._folder.is_dir():
            import skops.io

            new = self._folder / ".model.skops"
            skops.io.dump(estimator, new)
            os.replace(new, self._folder / "model.skops")  # noqa: PTH105 - a reader sees the old one or the new one
            self._saved = self._clock()


def _network(given: dict[str, Any], examples: Any, labels: Any, progress: Progress) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    params = given["params"]
    passes = int(params.get("iterations", max(5, min(60, MINI_BATCHES // len(labels)))))
    scaler = StandardScaler().fit(examples)
    scaled, classes = scaler.transform(examples), np.unique(labels)
    network = progress.resume() or MLPClassifier(
        hidden_layer_sizes=(int(params.get("hidden", 64)),),
        learning_rate_init=float(params.get("rate", 0.003)),
        random_state=given["seed"],
    )
    curve: list[float] = getattr(network, "loss_curve_", [])
    while len(curve) < passes and not _settled(curve):
        network.partial_fit(scaled, labels, classes=classes)
        curve = network.loss_curve_
        progress.step(len(curve), network, loss=float(curve[-1]))
    return make_pipeline(scaler, network)


def _settled(curve: list[float]) -> bool:
    return len(curve) > PATIENCE and min(curve[-PATIENCE:]) > min(curve[:-PATIENCE]) - TOLERANCE


def _trees(given: dict[str, Any], examples: Any, labels: Any, progress: Progress) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    params, regression = given["params"], given["task"] == "regression"
    rounds = int(params.get("iterations", 100))
    trees = progress.resume() or (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(
        learning_rate=float(params.get("rate", 0.1)), random_state=given["seed"], warm_start=True, early_stopping=False
    )
    some, shown = examples[:SCORED], labels[:SCORED]
    done = int(trees.n_iter_) if hasattr(trees, "n_iter_") else 0
    while done < rounds:
        done = min(rounds, done + TREES)
        trees.set_params(max_iter=done).fit(examples, labels)
        progress.step(done, trees, train_score=float(trees.score(some, shown)))
    return trees


def save(model: Any, examples: Any, target: Path, seed: str = "") -> None:
    """Save a fitted scikit-learn model as MLflow keeps it: skops, no pickle, requirements, signature, example.

    The same model gives the same bytes; `seed` is any text that stands for what it was made from.
    """
    import mlflow.sklearn
    from mlflow.models import Model, infer_signature

    from train_model.predict import TRUSTED

    example = examples[:3]
    needed = ("scikit-learn", "skops", "numpy", *(["pandas"] if hasattr(examples, "columns") else []))
    mlflow.sklearn.save_model(
        model,
        str(target),
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED),
        pip_requirements=[f"{name}=={version(name)}" for name in needed],
        signature=infer_signature(example, model.predict(example)),
        input_example=example,
        mlflow_model=Model(model_uuid=hashlib.sha256(seed.encode()).hexdigest()[:32], utc_time_created=_THEN),
    )
    _without_chance(target / "model.skops")


def _without_chance(path: Path) -> None:
    """skops names objects by their place in memory and zip notes the time: both say nothing and change each time."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    schema = members.pop("schema.json").decode()
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return match[1] + numbers.setdefault(match[2], str(len(numbers)))

    numbered = re.sub(r'("(?:__id__": |file": "))(\d+)', number, schema)
    with zipfile.ZipFile(path, "w") as archive:
        named = {re.sub(r"^\d+", lambda match: numbers[match[0]], name): data for name, data in members.items()}
        for name, data in sorted((named | {"schema.json": numbered.encode()}).items()):
            archive.writestr(zipfile.ZipInfo(name), data)


def main(arguments: list[str]) -> int:
    """Import the function and call it; what it raises ends this process with a traceback in the log."""
    name, source, target = arguments
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(Path(source), Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
