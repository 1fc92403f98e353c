"""The trainers that need no setting, and the process that any trainer runs in.

`python -m train_model.defaults package.module:function IN OUT` calls function(IN, OUT), two folders:

    IN/train/data.npz, dataset.json   what to learn from (never evaluation rows)
    IN/params.json                    {"seed": n, "task": "image"|"table", "params": {...}}
    IN/event.json                     the drift event;  IN/champion/ the model in use, if there is one
    OUT/model/                        an MLflow model: the one thing that must be there at the end
    OUT/metrics.json                  {"name": number}, optional

A trainer of your own is any such function. It sees no credential for buckets, registry or cluster.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MINI_BATCHES = 2_000_000
"""Upper bound on row visits of the network: 60 passes at 33,000 rows and fewer above, so that time is bounded."""


def default(source: Path, target: Path) -> None:
    """Fit the default model of the task and save it."""
    given = json.loads((source / "params.json").read_text())
    dataset = json.loads((source / "train" / "dataset.json").read_text())
    with np.load(source / "train" / "data.npz", allow_pickle=False) as data:
        features, labels = data["X"], np.array(dataset["classes"])[data["y"]]
    model = _image(given, len(labels)) if given["task"] == "image" else _table(given)
    examples: Any = features
    if dataset["columns"]:
        import pandas as pd

        examples = pd.DataFrame(features, columns=dataset["columns"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops at its bound is meant to
        model.fit(examples, labels)
    (target / "metrics.json").write_text(json.dumps({"train_accuracy": float(model.score(examples, labels))}))
    save(model, examples, target / "model")


def _image(given: dict[str, Any], rows: int) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    params = given["params"]
    network = MLPClassifier(
        hidden_layer_sizes=(int(params.get("hidden", 64)),),
        max_iter=int(params.get("iterations", max(5, min(60, MINI_BATCHES // rows)))),
        learning_rate_init=float(params.get("rate", 0.003)),
        n_iter_no_change=5,
        tol=1e-3,
        random_state=given["seed"],
    )
    return make_pipeline(StandardScaler(), network)


def _table(given: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    params = given["params"]
    return HistGradientBoostingClassifier(
        max_iter=int(params.get("iterations", 100)),
        learning_rate=float(params.get("rate", 0.1)),
        random_state=given["seed"],
    )


def save(model: Any, examples: Any, target: Path) -> None:
    """Save a fitted scikit-learn model as MLflow keeps it: skops, no pickle, requirements, signature, example."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

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
    )


def main(arguments: list[str]) -> int:
    """Import the function and call it; what it raises ends this process with a traceback in the log."""
    name, source, target = arguments
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(Path(source), Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
