"""A trainer of your own in Python, with numpy alone: `module: own_trainer:train`.

Softmax regression on features of its own, with a live curve, checkpoints, and a model without pickles: its weights are
an .npz, and this file goes with them and is what MLflow loads them by.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, RATE, BATCH = 60, 0.02, 64


class Model:
    """What MLflow's predict calls: one label a row of numbers or of a table."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights

    def features(self, rows: Any) -> Any:
        """Numbers of our own: each value scaled, and how far it is from its mean."""
        scaled = (np.asarray(rows, dtype=np.float64) - self.weights["mean"]) / self.weights["scale"]
        return np.c_[scaled, np.abs(scaled), np.ones(len(scaled))]

    def scores(self, rows: Any) -> Any:
        return self.features(rows) @ self.weights["W"]

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ARG002 - MLflow's signature
        return self.weights["classes"][self.scores(rows).argmax(axis=1)]


def _load_pyfunc(path: str) -> Model:
    """How MLflow loads the model: it calls this with the folder of the weights."""
    with np.load(Path(path) / "weights.npz", allow_pickle=False) as weights:
        return Model(dict(weights))


def train(source: Path, target: Path) -> None:
    """The trainer: IN and OUT, as docs/trainers.md has them."""
    given = json.loads((source / "params.json").read_text())
    about = json.loads((source / "train" / "dataset.json").read_text())
    epochs = int(given["params"].get("epochs", EPOCHS))
    with np.load(source / "train" / "data.npz", allow_pickle=False) as data:
        rows, y = data["X"], data["y"]
    classes, scale = np.array(about["classes"]), rows.std(axis=0)
    model = Model({"classes": classes, "mean": rows.mean(axis=0), "scale": np.where(scale > 0, scale, 1.0)})
    features, truth = model.features(rows), np.eye(len(classes))[y]
    weights = velocity = np.zeros((features.shape[1], len(classes)))
    first = 0

    kept = target / "checkpoint" / "last.npz"
    kept.parent.mkdir(exist_ok=True)  # in a container of its own nobody has made it
    if kept.is_file():  # this training was interrupted: go on as if nothing had happened
        with np.load(kept, allow_pickle=False) as state:
            weights, velocity, first = state["W"], state["velocity"], int(state["epoch"]) + 1

    for epoch in range(first, epochs):
        # Of seed and epoch alone, so that a training that goes on draws what it would have drawn.
        order = np.random.default_rng([given["seed"], epoch]).permutation(len(y))
        loss = 0.0
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            scores = features[batch] @ weights
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            loss -= float(np.log(shares[truth[batch] == 1] + 1e-12).sum())
            velocity = 0.9 * velocity - RATE * features[batch].T @ (shares - truth[batch]) / len(batch)
            weights = weights + velocity
        with (target / "metrics.jsonl").open("a") as curve:  # shown in MLflow while it works
            curve.write(json.dumps({"step": epoch, "loss": loss / len(y)}) + "\n")
        new = kept.with_name(".last.npz")  # hidden while it is being written
        np.savez(new, W=weights, velocity=velocity, epoch=epoch)
        new.replace(kept)

    model.weights["W"] = weights
    accuracy = float((model.predict(rows) == classes[y]).mean())
    (target / "metrics.json").write_text(json.dumps({"train_accuracy": accuracy}))
    save(model, rows, about["columns"], target)


def save(model: Model, rows: Any, columns: list[str], target: Path) -> None:
    """An MLflow model of weights and this file."""
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    example: Any = rows[:3]
    if columns:
        import pandas as pd

        example = pd.DataFrame(example, columns=columns)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "weights.npz", **model.weights)
        mlflow.pyfunc.save_model(
            target / "model",
            loader_module="own_trainer",
            data_path=folder,
            code_paths=[__file__],
            pip_requirements=[f"numpy=={np.__version__}", *(["pandas"] if columns else [])],
            signature=infer_signature(example, model.predict(example)),
            input_example=example,
        )
