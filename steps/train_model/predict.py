"""Predict in a process that the gate does not trust: `python -m train_model.predict WHAT SECONDS FOLDER MODEL...`.

FOLDER holds X.npy and columns.json. One line of JSON a model on stdout, in the order given, by WHAT:

    labels          {"labels": [...]}, one a row
    numbers         {"numbers": float64 in base64}, one a row
    probabilities   {"classes": [...], "probabilities": float64 in base64}, row after row
    any             {"error": "..."}

Probabilities are `predict_proba` of a scikit-learn model; of another MLflow model what `predict` gives, as a DataFrame
with one column a class, or as an array with one column for each class in the order of its aegis_dataset.json.

Each model is loaded in a fork of its own, one after the other, which sees no file but the model's, no other process and
no socket, and says what it has to say through a pipe of its own. No labels come in here.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from train_model.sandbox import no_sockets, only

TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
)
"""What our default models need beyond skops' own list. A list inside a model is its maker's: it counts for nothing."""
MAX_ANSWER = 1 << 28
"""Bytes of one model's answer: the probabilities of 25,000 rows and 1,000 classes, or ten million short labels."""


def load(model_dir: Path) -> Any:
    """The model in an MLflow folder; scikit-learn's own object where it is one."""
    flavors = yaml.safe_load((model_dir / "MLmodel").read_text())["flavors"]
    flavor = flavors.get("sklearn", {})
    if flavor.get("serialization_format") == "skops":
        import skops.io

        return skops.io.load(model_dir / Path(flavor["pickled_model"]).name, trusted=list(TRUSTED))
    if flavor:
        import mlflow.sklearn

        return mlflow.sklearn.load_model(str(model_dir))
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(model_dir))


def predict(model_dir: Path, features: Any, what: str = "labels") -> dict[str, Any]:
    """What the model in a folder says of n rows; `ValueError` says in words what was wrong with it."""
    model, rows = load(model_dir), len(features)
    if what == "probabilities":
        classes, found = _probabilities(model, model_dir, features)
        return {"classes": classes, "probabilities": _packed(found, (rows, len(classes)))}
    found = model.predict(features)
    if what == "numbers":
        return {"numbers": _packed(found, (rows,))}
    labels = np.asarray(found)
    if labels.size != rows:
        raise ValueError(f"it gave values of shape {labels.shape}, not one label for each of {rows} rows")
    return {"labels": labels.reshape(rows).tolist()}


def _probabilities(model: Any, model_dir: Path, features: Any) -> tuple[list[Any], Any]:
    if hasattr(model, "predict_proba"):
        return np.asarray(model.classes_).tolist(), model.predict_proba(features)
    found = model.predict(features)
    if hasattr(found, "columns"):
        return list(map(str, found.columns)), found
    shape = np.shape(found)
    record = model_dir / "aegis_dataset.json"
    known = json.loads(record.read_text()).get("classes", []) if record.is_file() else []
    if len(shape) != 2 or shape[1] != len(known):
        raise ValueError(
            f"it gives no probabilities: no predict_proba, no DataFrame with a column a class, and its {shape} is not "
            f"one column for each of the {len(known)} classes that it learned"
        )
    return known, found


def _packed(values: Any, shape: tuple[int, ...]) -> str:
    numbers = np.asarray(values, dtype="<f8")
    if numbers.size != np.prod(shape):
        raise ValueError(f"it gave values of shape {numbers.shape} instead of {shape}")
    return base64.b64encode(numbers.tobytes()).decode()


def main(arguments: list[str]) -> int:
    """Answer for each model; 0 also if one of them failed, as that is an answer too."""
    what, seconds, folder, *models = arguments
    features: Any = np.load(Path(folder) / "X.npy", allow_pickle=False)
    if columns := json.loads((Path(folder) / "columns.json").read_text()):
        import pandas as pd

        features = pd.DataFrame(features, columns=columns)
    answer = os.dup(1)
    os.dup2(2, 1)  # what a model prints is a log, not an answer
    import skops.io  # noqa: F401 - once here, not once in each fork

    if any(b"skops" not in _text(Path(model)) for model in models):
        import mlflow.pyfunc  # noqa: F401 - the same for models of other kinds

    for model_dir in map(Path, models):
        ours, its = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(answer)
            os.close(ours)
            _answer(its, model_dir, features, what, Path(folder))
        os.close(its)
        line = _read(ours, process, float(seconds))
        os.close(ours)
        with open(answer, "wb", closefd=False) as file:
            file.write(line.partition(b"\n")[0] + b"\n")
    return 0


def _text(model_dir: Path) -> bytes:
    try:
        return (model_dir / "MLmodel").read_bytes()
    except OSError:
        return b""


def _read(pipe: int, process: int, seconds: float) -> bytes:
    """What a fork says until it closes the pipe; the fork is over then."""
    parts, size, until, wrong = list[bytes](), 0, time.monotonic() + seconds, ""
    while not wrong:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            wrong = f"it gave no answer in time ({seconds:g} s)"
        elif part := os.read(pipe, 1 << 20):
            parts.append(part)
            size += len(part)
            wrong = "its answer is too long" if size > MAX_ANSWER else ""
        else:
            break
    if wrong:
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code and not wrong:
        wrong = f"the process that loaded it died by signal {-code}" if code < 0 else f"it exited with code {code}"
    return json.dumps({"error": wrong}).encode() if wrong else b"".join(parts)


def _answer(pipe: int, model_dir: Path, features: Any, what: str, scratch: Path) -> None:
    try:
        no_sockets()
        only([model_dir], [scratch])
        line = json.dumps(predict(model_dir, features, what), allow_nan=False)
    except BaseException as error:  # noqa: BLE001 - anything may come out of a foreign model
        line = json.dumps({"error": f"{type(error).__name__}: {str(error)[:500]}"})
    with open(pipe, "w") as file:
        file.write(line + "\n")
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
