"""Predict in a process that the gate does not trust: `python -m train_model.predict X.npy columns.json MODEL...`.

One line of JSON a model on stdout, in the order given: {"labels": [...]} or {"error": "..."}. Each model is loaded
in a fork of its own, one after the other, so that none can touch another's answer. No labels come in here, and
from the first model on there are no sockets.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from train_model.sandbox import no_sockets

TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
)
"""What our default models need beyond skops' own list. A list inside a model is its maker's: it counts for nothing."""


def predict(model_dir: Path, features: Any) -> list[Any]:
    """The labels that the MLflow model in a folder gives, one a row."""
    document = yaml.safe_load((model_dir / "MLmodel").read_text())
    flavor = document["flavors"].get("sklearn", {})
    if flavor.get("serialization_format") == "skops":
        import skops.io

        model = skops.io.load(model_dir / Path(flavor["pickled_model"]).name, trusted=list(TRUSTED))
    else:
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(str(model_dir))
    labels: list[Any] = np.asarray(model.predict(features)).reshape(len(features)).tolist()
    return labels


def main(arguments: list[str]) -> int:
    """Answer for each model; 0 also if one of them failed, as that is an answer too."""
    features: Any = np.load(arguments[0], allow_pickle=False)
    columns = json.loads(Path(arguments[1]).read_text())
    if columns:
        import pandas as pd

        features = pd.DataFrame(features, columns=columns)
    answer = os.dup(1)
    os.dup2(2, 1)  # what a model prints is a log, not an answer
    import skops.io  # noqa: F401 - once here, not once in each fork

    no_sockets()
    for model_dir in arguments[2:]:
        process = os.fork()
        if process == 0:
            _answer(answer, Path(model_dir), features)
        _, status = os.waitpid(process, 0)
        if status:
            os.write(answer, b'{"error": "the process that loaded it died"}\n')
    return 0


def _answer(answer: int, model_dir: Path, features: Any) -> None:
    try:
        line = json.dumps({"labels": predict(model_dir, features)})
    except BaseException as error:  # noqa: BLE001 - anything may come out of a foreign model
        line = json.dumps({"error": f"{type(error).__name__}: {str(error)[:500]}"})
    with open(answer, "w") as file:
        file.write(line + "\n")
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
