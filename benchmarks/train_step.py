"""What the training step costs beyond the fit: `python -m benchmarks.train_step`, about three minutes.

The step as a Workflow runs it (`python -m train_model.train`, a real MLflow server beside it) against a bare script
that reads the same file, fits and saves the model. Two sizes, five runs each, medians; raw output in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks._load import ROOT, Bound, free_port, get, median, report, run
from sklearn.datasets import load_digits

SIZES = (1_000, 30_000)
MAX_BEYOND_S = 2.5
BARE = """
import json, sys, time, warnings
from pathlib import Path
import numpy as np
from train_model import defaults
class Quiet:
    def resume(self): pass
    def step(self, number, estimator, **metrics): pass
source, target = map(Path, sys.argv[1:])
given = json.loads((source / "params.json").read_text())
with np.load(source / "train" / "data.npz") as data:
    X, y = data["X"], data["y"]
warnings.simplefilter("ignore")
import sklearn.neural_network, sklearn.pipeline, sklearn.preprocessing
began = time.perf_counter()
model = defaults._network(given, X, y, Quiet())
took = time.perf_counter() - began
defaults.save(model, X, target)
print(took)
"""


@contextmanager
def mlflow(home: Path) -> Iterator[str]:
    """The URI of a real MLflow server."""
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, cwd=home, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while get(uri + "/health") != 200:
            assert time.monotonic() < deadline, "MLflow does not start"
            time.sleep(0.05)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def digits(rows: int) -> tuple[Any, Any]:
    """The digits of scikit-learn, as often as needed, each time with other noise."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    chosen = np.resize(rng.permutation(len(labels)), rows)
    return (images[chosen] + rng.normal(0, 1, (rows, images.shape[1]))).astype(np.float32), labels[chosen]


def measure(home: Path, rows: int, tracking: str, number: int) -> dict[str, Any]:
    """One run of one size."""
    folder = home / f"{rows}-{number}"
    (folder / "data").mkdir(parents=True)
    features, labels = digits(rows)
    np.savez(folder / "data" / "x.npz", X=features, y=labels)
    settings = {"seed": number}
    encoded = {"AEGIS_EVENT": {}, "AEGIS_SETTINGS": settings}
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "AEGIS_MODEL": "digits",
        "AEGIS_ENVIRONMENT": "benchmark",
        "AEGIS_DATASET_URI": (folder / "data").as_uri(),
        "AEGIS_DATASET_PREFIXES": folder.as_uri(),
        "AEGIS_WORKFLOW": f"digits-{rows}-{number}",
        "AEGIS_WORKFLOW_UID": f"{rows}-{number}",
        "AEGIS_MODELS_URI": (folder / "models").as_uri(),
        "MLFLOW_TRACKING_URI": tracking,
        "AEGIS_TMP": str(folder / "tmp"),
        "AEGIS_DATA": str(folder / "pod"),
        "AEGIS_OUT": str(folder / "out"),
        **{name: base64.b64encode(json.dumps(value).encode()).decode() for name, value in encoded.items()},
    }
    fetch_s, _, _ = run(["-m", "train_model.fetch"], env, folder)
    step_s, step_mib, _ = run(["-m", "train_model.train"], env, folder)
    bare_s, bare_mib, said = run(["-c", BARE, str(folder / "pod"), str(folder / "bare")], env, folder)
    fit_s = float(said.splitlines()[-1])
    return {
        "fetch_s": round(fetch_s, 3),
        "step_s": round(step_s, 3),
        "fit_s": round(fit_s, 3),
        "bare_s": round(bare_s, 3),
        "step_beyond_fit_s": round(step_s - fit_s, 3),
        "step_beyond_bare_s": round(step_s - bare_s, 3),
        "step_peak_mib": round(step_mib, 1),
        "bare_peak_mib": round(bare_mib, 1),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    options = arguments.parse_args()
    busy, began = os.getloadavg()[0], time.perf_counter()
    runs: dict[str, list[dict[str, Any]]] = {f"{rows:,} rows": [] for rows in SIZES}
    with tempfile.TemporaryDirectory(dir=ROOT) as folder, mlflow(Path(folder)) as tracking:
        for number in range(options.runs):
            for rows in SIZES:
                found = measure(Path(folder), rows, tracking, number)
                runs[f"{rows:,} rows"].append(found)
                print(number + 1, rows, json.dumps(found), flush=True)
    names = ["fit_s", "bare_s", "step_s", "step_beyond_fit_s", "step_beyond_bare_s", "fetch_s"]
    names += ["bare_peak_mib", "step_peak_mib"]
    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{median(found, name):g}" for found in runs.values()) + " |" for name in names
    ]
    size = f"medians of {options.runs} runs; images of 8 x 8, the default network"
    title = f"Training step: {size}; load before {busy:.2f}, {time.perf_counter() - began:.0f} s."
    small = runs[f"{SIZES[0]:,} rows"]
    what = f"seconds beyond the bare script, {SIZES[0]:,} rows"
    bounds: list[Bound] = [(what, median(small, "step_beyond_bare_s"), "<=", MAX_BEYOND_S)]
    return report("train_step", title, lines, bounds, runs)


if __name__ == "__main__":
    raise SystemExit(main())
