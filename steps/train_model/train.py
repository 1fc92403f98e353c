"""`python -m train_model.train`: run the trainer on what fetch left, and leave one checked MLflow model.

The trainer is a child without credentials. This process holds only MLflow tracking; no bucket, no registry.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from aegis.errors import BAD_DATA, Permanent
from aegis.step import write_outputs
from train_model import child, step, tracking
from train_model.attempt import Attempt
from train_model.dataset import RECORD
from train_model.step import TrainerFailed

DEFAULT = "train_model.defaults:default"
MAX_MODEL_FILES = 1000
MAX_METRICS = 100


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code: 0, 64, 65, 70 or 75."""
    return step.run("train", _train, env, ("MLFLOW_TRACKING_URI",))


def _train(attempt: Attempt, env: Mapping[str, str]) -> str:
    try:
        about = json.loads((attempt.data / "train" / "dataset.json").read_text())
    except (OSError, ValueError) as error:
        raise Permanent("fetch left no data set here", exit_code=BAD_DATA) from error
    model = attempt.out / "model"
    shutil.rmtree(model, ignore_errors=True)
    if about["unchanged"]:
        why = "data, champion and settings are those of the last attempt, which was rejected: not trained again"
        outputs = {"status": "unchanged", "outcome": "Rejected", "explanation": why, "run-id": ""}
        write_outputs(attempt.out, outputs | {"inputs": about["inputs"]})
        return why
    attempt.tmp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=attempt.tmp) as folder:
        work = Path(folder)
        made = work / "out"
        made.mkdir()
        with (work / "log").open("w+b") as log:
            run = _run(attempt, env, about, made, log)
        metrics = _metrics(made / "metrics.json")
        shutil.move(made / "model", model)
    record = {name: about[name] for name in ("sources", "digest", "champion", "evaluation", "rows", "classes")}
    (model / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
    run.log({}, metrics, {})
    said = f"trained on {about['rows']:,} rows of {len(about['sources'])} data sets"
    values = {"status": "trained", "outcome": "Trained", "explanation": said, "run-id": run.run_id}
    write_outputs(attempt.out, values | {"inputs": about["inputs"]})
    return said


def _run(attempt: Attempt, env: Mapping[str, str], about: Mapping[str, Any], made: Path, log: BinaryIO) -> tracking.Run:
    """Train in a child; the run of MLflow, which a trainer of the owner's may log to. A failure closes it."""
    own = attempt.trainer.module
    run = _begin(attempt, about) if own else None
    extra = _reachable(env, attempt, run.run_id) if run else {}
    arguments: list[str | Path] = [own or DEFAULT, attempt.data, made]
    safe = child.environment(env, made.parent, extra)
    with child.started("train_model.defaults", arguments, safe, log, output=log.fileno()) as process:
        # MLflow is imported while our own trainer, which does not know of it, already works.
        run = run or _begin(attempt, about)
        try:
            _finished(process, attempt, made, log, env)
        except TrainerFailed as error:
            run.log({}, {}, {"aegis.outcome": f"TrainerFailed:{error.reason}", "aegis.explanation": error.message})
            run.end("FAILED")
            raise
    return run


def _begin(attempt: Attempt, about: Mapping[str, Any]) -> tracking.Run:
    run = tracking.begin(attempt, tracking.identity(attempt))
    params = {"seed": attempt.seed, "data": attempt.trainer.data, "trainer": attempt.trainer.module or "default"}
    params |= {f"trainer.{name}": value for name, value in list(attempt.trainer.params.items())[:50]}
    data = {f"aegis.{name}": about[name] for name in ("task", "inputs", "rows", "held_out", "champion", "evaluation")}
    run.log(params, {}, {**tracking.identity(attempt), **data, "aegis.dataset_digest": about["digest"]})
    for source in about["sources"]:
        run.dataset(source["uri"], source["digest"])
    return run


def _reachable(env: Mapping[str, str], attempt: Attempt, run_id: str) -> dict[str, str]:
    """What lets the owner's trainer log into the attempt's run, and nothing else of ours."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    given = {name: env[name] for name in names if name in env}
    return given | {"MLFLOW_TRACKING_URI": attempt.tracking_uri, "MLFLOW_RUN_ID": run_id}


def _finished(
    process: subprocess.Popen[bytes], attempt: Attempt, made: Path, log: BinaryIO, env: Mapping[str, str]
) -> None:
    """Wait for the trainer; `TrainerFailed` says how it failed, with the end of its log on our output."""
    try:
        code = process.wait(attempt.trainer.timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise TrainerFailed("Timeout", f"the trainer did not end within {attempt.trainer.timeout_seconds} s") from error
    said = child.tail(log, env)
    if said:
        print(said)
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = said.splitlines()[-1] if said else "it said nothing"
        raise TrainerFailed("Killed" if code < 0 else "Crashed", f"the trainer ended with {how}: {last[:500]}")
    if faults := _model_faults(made / "model"):
        raise TrainerFailed("BadModel", f"the trainer left no usable model: {'; '.join(faults)}")


def _model_faults(model: Path) -> list[str]:
    """What is wrong with a model directory. Only form: whether it predicts is the gate's question."""
    if model.is_symlink() or not (model / "MLmodel").is_file():
        return ["model/MLmodel is not there"]
    paths = list(model.rglob("*"))
    odd = [p for p in paths if not p.is_dir() and not stat.S_ISREG(p.lstat().st_mode)]
    odd += [p for p in paths if p.is_symlink() and p not in odd]
    faults = [f"{p.relative_to(model)} is no regular file" for p in odd[:10]]
    if len(paths) > MAX_MODEL_FILES:
        faults.append(f"more than {MAX_MODEL_FILES} files")
    if (model / RECORD).exists() or (model / "registered_model_meta").exists():
        faults.append(f"{RECORD} and registered_model_meta are not the trainer's to write")
    return faults


def _metrics(path: Path) -> dict[str, float]:
    """The finite numbers of metrics.json, if the trainer left one; the rest is ignored."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    numbers = {n: float(v) for n, v in items if type(v) in (int, float) and math.isfinite(v) and len(n) < 100}
    return dict(list(numbers.items())[:MAX_METRICS])


if __name__ == "__main__":
    sys.exit(main())
