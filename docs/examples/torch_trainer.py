"""A trainer of your own with PyTorch, for images: `module: torch_trainer:train`.

A network of two hidden layers, trained on the GPU if there is one. The model that it leaves is its weights as an .npz
and this file, which predicts with numpy alone: gate and servers need no PyTorch, and nothing in it is a pickle. That is
an honest way for layers that are a few lines of numpy; a deep network is better exported to ONNX, and its runtime built
into the image of the gate.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, HIDDEN, RATE, BATCH = 30, 128, 1e-3, 64


class Model:
    """What MLflow's predict calls: one label a row. Needs numpy only."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ARG002 - MLflow's signature
        w = self.weights
        values = (np.asarray(rows, dtype=np.float32) - w["mean"]) / w["scale"]
        for layer in ("0", "3"):
            values = np.maximum(values @ w[f"{layer}.weight"].T + w[f"{layer}.bias"], 0)
        return w["classes"][(values @ w["6.weight"].T + w["6.bias"]).argmax(axis=1)]


def _load_pyfunc(path: str) -> Model:
    """How MLflow loads the model: it calls this with the folder of the weights."""
    with np.load(Path(path) / "weights.npz", allow_pickle=False) as weights:
        return Model(dict(weights))


def train(source: Path, target: Path) -> None:
    """The trainer: IN and OUT, as docs/trainers.md has them."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS is not deterministic
    import torch
    from torch import nn

    given = json.loads((source / "params.json").read_text())
    about = json.loads((source / "train" / "dataset.json").read_text())
    params, seed = given["params"], int(given["seed"])
    with np.load(source / "train" / "data.npz", allow_pickle=False) as data:
        features, y = data["X"].astype(np.float32), data["y"]
    mean, scale = features.mean(axis=0), features.std() + np.float32(1e-6)

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"PyTorch {torch.__version__} on {device}", flush=True)
    hidden = int(params.get("hidden", HIDDEN))
    network = nn.Sequential(
        *(nn.Linear(features.shape[1], hidden), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(hidden, len(about["classes"])),
    ).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=float(params.get("rate", RATE)))
    rows = torch.from_numpy((features - mean) / scale).to(device)
    labels = torch.from_numpy(y).to(device)
    first = 0

    kept = target / "checkpoint" / "last.pt"
    kept.parent.mkdir(exist_ok=True)  # in a container of its own nobody has made it
    if kept.is_file():  # this training was interrupted: go on as if nothing had happened
        state = torch.load(kept, map_location=device, weights_only=True)  # tensors and numbers only, no code
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1

    for epoch in range(first, int(params.get("epochs", EPOCHS))):
        torch.manual_seed(seed * 100_003 + epoch)  # order and dropout follow from seed and epoch, on any device
        network.train()
        total = 0.0
        for batch in torch.randperm(len(y)).to(device).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(rows[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        with (target / "metrics.jsonl").open("a") as curve:  # shown in MLflow while it works
            curve.write(json.dumps({"step": epoch, "loss": total / len(y)}) + "\n")
        new = kept.with_name(".last.pt")  # hidden while it is being written
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, new)
        new.replace(kept)

    weights: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    model = Model({**weights, "mean": mean, "scale": scale, "classes": np.array(about["classes"])})
    accuracy = float((model.predict(features) == model.weights["classes"][y]).mean())
    (target / "metrics.json").write_text(json.dumps({"train_accuracy": accuracy}))
    save(model, features, target)


def save(model: Model, rows: Any, target: Path) -> None:
    """An MLflow model of weights and this file."""
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "weights.npz", **model.weights)
        mlflow.pyfunc.save_model(
            target / "model",
            loader_module="torch_trainer",
            data_path=folder,
            code_paths=[__file__],
            pip_requirements=[f"numpy=={np.__version__}"],
            signature=infer_signature(rows[:3], model.predict(rows[:3])),
            input_example=rows[:3],
        )
