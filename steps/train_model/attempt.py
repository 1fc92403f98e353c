"""What one attempt was asked to do: the environment of a step, read once, every fault named at once.

The dataclasses of settings are what an owner may write under `spec.trainer` and `spec.gate` (camelCase there).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from aegis.names import NAME
from aegis.step import Reader, out_of

MAX_TRAINING, MAX_PREDICTION = 10_800, 1_500
"""Seconds that an owner may set. The WorkflowTemplate ends the pod of train after 4 h, that of gate, which asks two
models, after 1 h; what it ends counts as nobody's fault and would be tried for ever, so ours has to end before."""
_CAMEL = re.compile(r"_([a-z])")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How a challenger is made."""

    data: str = "old+new"
    """What it learns from: `old+new`, `replay` or `new`. Trained on drifted data alone a model forgets what it knew, so
    the champion's own sources are fetched again beside the new data: whole, or with `replay` a sample of them that is
    no larger than the new data, for models whose past is much larger than their present."""
    task: str = ""
    """`image` (a small neural network on scaled pixels), `table` (boosted trees) or `regression` (boosted trees that
    give numbers; the labels may then be any). Empty: by the data's form; arrays and images are images, CSV and Parquet
    files are tables. Never guessed to be a regression, because whole numbers may be either."""
    module: str = ""
    """`package.module:function` of a trainer of your own; it gets an input and an output folder. Empty: ours."""
    command: tuple[str, ...] = ()
    """A trainer of your own as a program with its arguments, in any language; the two folders are added at the end.
    Either this or `module`. A list and no shell line: nothing in it is expanded."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Handed to the trainer in params.json. Ours read `hidden`, `iterations`, `rate`."""
    timeout_seconds: int = 3600
    """A trainer that hangs is ended after this time, three hours at most. The default trainers need seconds for 50,000
    small images; an hour is also well below the cooldown, so a hung trainer never meets its successor."""
    max_missing: float = 0.0
    """Share of a table's column that may be missing. None, because a column that suddenly has gaps is more often a
    broken feed than drift; our boosted trees can learn from gaps if the owner allows them."""
    disk_mib: int = 8192
    """What a trainer may leave on disk, its checkpoints among it. The template's volumes hold 10 GiB, and a pod that
    fills one is evicted without a word. (Its memory needs no setting: nine tenths of the container's limit.)"""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """When a challenger replaces the champion."""

    metric: str = ""
    """What is better: `accuracy`; `brier` or `logLoss` of the probabilities that a classifier gives; `mae` or `mse` of
    a regression. Empty: accuracy, for a regression mae, which one far-off row cannot decide."""
    alpha: float = 0.05
    """How often an equal challenger may be promoted by luck, over all attempts before a person is asked: each attempt
    is tested at this level divided by `maxAttempts`."""
    margin: float = 0.05
    """No slice may lose more than this share of right answers; for the other metrics, no slice's loss may grow by more
    than this share of the champion's loss over all rows. The burden of proof is the challenger's: the lower
    95 % bound of its change must lie above -5 points. So a slice of 300 rows that lost 10 points is caught in 99 of
    100 cases; with two points in place of five, slices need thousands of rows, and honest challengers fail
    (docs/gate.md)."""
    min_rows: int = 200
    """Below this the answer is `not enough data`: at 200 rows even a gain of 5 points is seen in half of the cases or
    fewer, unless the two models differ in few answers (docs/gate.md has the table). 1,000 are a good set."""
    min_slice: int = 100
    """A smaller slice is reported, not judged: its bound would be wider than any sensible margin."""
    min_accuracy: float = 0.0
    """An absolute floor under every challenger. Zero, because only the owner knows what is good enough; without a
    champion the challenger must anyway be surely better than always giving the most frequent answer."""
    max_loss: float = 0.0
    """The same for the metrics of which less is better; zero sets none."""
    without_champion: str = "judge"
    """What a challenger needs where no champion is: `judge` lets it in if it is surely better than guessing, `reject`
    if nobody but a person may bring in the first (`aegis adopt`)."""
    broken_champion: str = "reject"
    """What happens if a verified champion cannot be loaded or gives no answers: `reject`, because a gate that cannot
    compare knows nothing, or `replace`: judge as if there were none. A champion whose signature does not verify always
    stops the retrain; no setting turns that off."""
    timeout_seconds: int = 600
    """Bound on each model's predictions, 1500 at most; ours take a second for 10,000 rows."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one model, as the workflow hands it to a step. `secret` is known to the trigger and to the steps
    of this attempt alone, never to a trainer: by it they know again what an earlier try of theirs left elsewhere."""

    model: str
    environment: str
    version: str
    dataset_uri: str
    evaluation_uri: str
    event: Mapping[str, Any]
    trainer: TrainerSettings
    gate: GateSettings
    seed: int
    max_attempts: int
    secret: str
    last_inputs: str
    workflow: str
    workflow_uid: str
    models_uri: str
    prefixes: tuple[str, ...]
    tracking_uri: str
    run_id: str
    trusted_keys: str
    data: Path
    out: Path
    model_dir: Path
    tmp: Path
    checkpoint: Path | None
    trained: Path | None

    @classmethod
    def from_env(cls, env: Mapping[str, str], required: Sequence[str] = ()) -> Attempt:
        """Read AEGIS_* and MLFLOW_TRACKING_URI; `Permanent` (64) lists everything that is wrong or missing."""
        read = Reader(env)
        names = {name: read.text(f"AEGIS_{name}", NAME) for name in ("MODEL", "ENVIRONMENT", "WORKFLOW_UID")}
        for name in required:
            read.text(name)
        event, settings, faults = read.document("AEGIS_EVENT"), read.document("AEGIS_SETTINGS"), read.faults
        seed = settings.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**31:
            faults["settings.seed"] = "not a whole number from 0 to 2^31"
        attempts = settings.get("maxAttempts", 1)
        if type(attempts) is not int or not 1 <= attempts <= 1000:
            faults["settings.maxAttempts"] = "not a whole number from 1 to 1000"
        secret = settings.get("secret", "")
        if not isinstance(secret, str):
            faults["settings.secret"] = "not a text"
        trainer, gate = read_settings(settings, "settings.", faults)
        read.check()
        return cls(
            model=names["MODEL"],
            environment=names["ENVIRONMENT"],
            version=env.get("AEGIS_MODEL_VERSION", ""),
            dataset_uri=env.get("AEGIS_DATASET_URI", ""),
            evaluation_uri=env.get("AEGIS_EVALUATION_URI", ""),
            event=event,
            trainer=trainer,
            gate=gate,
            seed=seed,
            max_attempts=attempts,
            secret=secret,
            last_inputs=env.get("AEGIS_LAST_INPUTS", ""),
            workflow=env.get("AEGIS_WORKFLOW", ""),
            workflow_uid=names["WORKFLOW_UID"],
            models_uri=env.get("AEGIS_MODELS_URI", ""),
            prefixes=tuple(p.strip() for p in env.get("AEGIS_DATASET_PREFIXES", "").split(",") if p.strip()),
            tracking_uri=env.get("MLFLOW_TRACKING_URI", ""),
            run_id=env.get("AEGIS_RUN_ID", ""),
            trusted_keys=env.get("AEGIS_TRUSTED_KEYS", ""),
            data=Path(env.get("AEGIS_DATA") or "/aegis/data"),
            out=out_of(env),
            model_dir=Path(env.get("AEGIS_MODEL_DIR") or "/aegis/model"),
            checkpoint=Path(folder) if (folder := env.get("AEGIS_CHECKPOINT")) else None,
            trained=Path(folder) if (folder := env.get("AEGIS_TRAINED")) else None,
            tmp=Path(env.get("AEGIS_TMP") or env.get("TMPDIR") or "/tmp"),  # noqa: S108 - the pod's own emptyDir
        )


def read_settings(
    document: Mapping[str, Any], where: str, faults: dict[str, str]
) -> tuple[TrainerSettings, GateSettings]:
    """The values under `trainer` and `gate`; every fault is added to `faults` by its name behind `where`."""
    trainer = _settings(TrainerSettings, document.get("trainer"), f"{where}trainer", faults)
    gate = _settings(GateSettings, document.get("gate"), f"{where}gate", faults)
    for name, fault in (_trainer_faults(trainer) | _gate_faults(trainer, gate)).items():
        faults.setdefault(where + name, fault)
    return trainer, gate


def _settings(kind: type[T], document: object, where: str, faults: dict[str, str]) -> T:
    """One of the settings' dataclasses from camelCase JSON; an unknown name or a wrong type is a fault."""
    known = {_CAMEL.sub(lambda match: match[1].upper(), f.name): f for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    if not isinstance(document, dict | None):
        faults[where] = "not an object"
    for name, value in document.items() if isinstance(document, dict) else ():
        default = getattr(kind(), known[name].name) if name in known else None
        if name not in known:
            faults[f"{where}.{name}"] = "unknown"
        elif isinstance(default, float) and type(value) in (int, float):
            values[known[name].name] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[known[name].name] = tuple(value)
        elif type(value) is type(default):
            values[known[name].name] = value
        else:
            faults[f"{where}.{name}"] = "not a list of texts" if default == () else f"not a {type(default).__name__}"
    return kind(**values)


METRICS = {"accuracy": False, "brier": False, "logLoss": False, "mae": True, "mse": True}
"""Which metrics there are, and whether they are of numbers, not of classes."""


def _trainer_faults(trainer: TrainerSettings) -> dict[str, str]:
    checks = {
        "data": trainer.data in ("old+new", "replay", "new"),
        "task": trainer.task in ("", "image", "table", "regression"),
        "module": not trainer.module or bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", trainer.module)),
        "command": not trainer.command or (bool(trainer.command[0]) and not trainer.module),
        "timeoutSeconds": 1 <= trainer.timeout_seconds <= MAX_TRAINING,
        "maxMissing": 0 <= trainer.max_missing < 1,
        "diskMib": 1 <= trainer.disk_mib <= 1 << 20,
    }
    return {f"trainer.{name}": "not a value it takes" for name, good in checks.items() if not good}


def _gate_faults(trainer: TrainerSettings, gate: GateSettings) -> dict[str, str]:
    known = gate.metric in ("", *METRICS)
    checks = {
        "alpha": 0 < gate.alpha <= 0.5,
        "margin": 0 < gate.margin <= 1,
        "minRows": gate.min_rows >= 1,
        "minSlice": gate.min_slice >= 1,
        "minAccuracy": 0 <= gate.min_accuracy <= 1,
        "maxLoss": 0 <= gate.max_loss < math.inf,
        "timeoutSeconds": 1 <= gate.timeout_seconds <= MAX_PREDICTION,
    }
    found = {f"gate.{name}": "out of range" for name, good in checks.items() if not good}
    choices = {
        "metric": known,
        "withoutChampion": gate.without_champion in ("judge", "reject"),
        "brokenChampion": gate.broken_champion in ("reject", "replace"),
    }
    found |= {f"gate.{name}": "not a value it takes" for name, good in choices.items() if not good}
    if known and gate.metric and METRICS[gate.metric] != (trainer.task == "regression"):
        found["gate.metric"] = "mae and mse are for the task regression, the others for classes"
    return found
