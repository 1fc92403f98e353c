"""`python -m train_model.train`: run the trainer on what fetch left, and leave one checked MLflow model.

The trainer is a bounded child without credentials. This process holds only MLflow tracking; no bucket, no registry.
With AEGIS_TRAINED, a folder, an earlier container was the trainer, and what it left there is checked and kept.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aegis.errors import BAD_DATA, Permanent
from aegis.step import write_outputs
from train_model import sandbox, step, tracking, trainer
from train_model.attempt import Attempt
from train_model.dataset import RECORD
from train_model.step import TrainerFailed
from train_model.trainer import Live


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
        outputs = {"status": "unchanged", "outcome": "Rejected:Unchanged", "explanation": why, "run-id": ""}
        write_outputs(attempt.out, outputs | {"inputs": about["inputs"]})
        return why
    attempt.tmp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=attempt.tmp, ignore_cleanup_errors=True) as folder:
        made = attempt.trained or Path(folder, "out")
        run = _trained(attempt, env, about, made)
        run.log({}, trainer.metrics(made / "metrics.json"), {})
        if shown := trainer.report(made / "report"):
            run.folder(shown, "report")
        shutil.copytree(made / "model", model, symlinks=True) if attempt.trained else shutil.move(made / "model", model)
    names = ("sources", "digest", "champion", "evaluation", "rows", "classes", "task", "drifted")
    (model / RECORD).write_text(json.dumps({name: about.get(name) for name in names}, indent=1, sort_keys=True))
    said = f"trained on {about['rows']:,} rows of {len(about['sources'])} data sets"
    values = {"status": "trained", "outcome": "Trained", "explanation": said, "run-id": run.run_id}
    write_outputs(attempt.out, values | {"inputs": about["inputs"]})
    return said


def _trained(attempt: Attempt, env: Mapping[str, str], about: Mapping[str, Any], made: Path) -> tracking.Run:
    """Let the trainer work; the run of MLflow, in which its curve stands, or why it failed."""
    live = Live(made / "metrics.jsonl")
    own = attempt.trainer.module or attempt.trainer.command or attempt.trained
    with ThreadPoolExecutor(1) as beside:
        # Our own trainer knows nothing of MLflow, which is imported and asked while it already works.
        begun = beside.submit(_begin, attempt, env, about)
        sent = Future[None]()
        sent.set_result(None)

        def tick() -> None:
            nonlocal sent
            if begun.done() and sent.done():
                begun.result()  # a server that is not there ends the attempt now, not after an hour of training
                sent.result()
                if points := live.new():
                    sent = beside.submit(begun.result().metrics, points)

        try:
            if attempt.trained:
                trainer.usable(made, trainer.told(made, env))
            else:
                extra = _logging(attempt, env, begun.result()) if own else {}
                place = attempt.checkpoint
                with sandbox.hidden():  # our environment holds the attempt's secret
                    trainer.run(attempt.trainer, attempt.data, made, env, extra, checkpoint=place, tick=tick)
        except TrainerFailed as error:
            tags = {"aegis.outcome": f"TrainerFailed:{error.reason}", "aegis.explanation": error.message}
            begun.result().log({}, {}, tags)
            begun.result().end("FAILED")
            raise
        run = begun.result()
        sent.result()
        run.metrics(live.new())
        return run


def _begin(attempt: Attempt, env: Mapping[str, str], about: Mapping[str, Any]) -> tracking.Run:
    run = tracking.begin(attempt, tracking.identity(attempt))
    own = attempt.trainer.module or " ".join(attempt.trainer.command) or ("container" if attempt.trained else "")
    params = {"seed": attempt.seed, "data": attempt.trainer.data, "trainer": own or "default"}
    params |= {f"trainer.{name}": value for name, value in list(attempt.trainer.params.items())[:50]}
    data = {f"aegis.{name}": about[name] for name in ("task", "inputs", "rows", "held_out", "champion", "evaluation")}
    run.log(params, {}, {**tracking.identity(attempt), **data, "aegis.dataset_digest": about["digest"]})
    for source in about["sources"]:
        run.dataset(source["uri"], source["digest"])
    run.environment(env)
    return run


def _logging(attempt: Attempt, env: Mapping[str, str], run: tracking.Run) -> dict[str, str]:
    """What lets the owner's trainer log into the attempt's run, and nothing else of ours."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    given = {name: env[name] for name in names if name in env}
    return given | {"MLFLOW_TRACKING_URI": attempt.tracking_uri, "MLFLOW_RUN_ID": run.run_id}


if __name__ == "__main__":
    sys.exit(main())
