"""`aegis trainer check`: a trainer of your own on small data, through the code of a retrain; every breach is named.

It runs up to three times: as it is, once more, and from its first checkpoint. Its models then predict where the gate's
do. Nothing is signed or registered.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from aegis import manifest
from aegis.errors import OK, TRAINER_FAILED, Permanent, Temporary
from aegis.storage import open_store
from train_model import checkpoint, dataset, fetch, gate, trainer
from train_model.attempt import Attempt
from train_model.checkpoint import Keeper
from train_model.readers import Rows
from train_model.step import TrainerFailed
from train_model.trainer import Live
from train_model.verdict import Said, judge

from .story import shown

LOOK_S = 0.002
"""Between two looks for a checkpoint: toy data is trained on in a moment, and the first one is wanted."""
ADVICE = {
    "Timeout": "give it less to do, or raise trainer.timeoutSeconds",
    "OutOfMemory": "hold less at once; in a pod the bound is nine tenths of the container's memory",
    "TooManyProcesses": "start fewer workers",
    "DiskFull": "keep fewer checkpoints, or raise trainer.diskMib",
    "BadModel": "save an MLflow model there: mlflow.sklearn.save_model(model, OUT / 'model', ...) or another flavor's",
    "Killed": "its output above may say why",
    "Crashed": "its output above has the rest; what it writes to OUT/failure is what people are shown",
}
"""What to do about each reason of a `TrainerFailed`."""
_REFUSED = re.compile(r"Permission denied|PermissionError|Read-only file system")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen, how bad it is (`ok`, `note`, `warning`, `BREACH`), and what to do about it."""

    state: str
    what: str
    advice: str = ""


@dataclass(slots=True)
class Report:
    """What was found, in order."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, state: str, what: str, advice: str = "") -> None:
        self.findings.append(Finding(state, what, advice))

    def breach(self, what: str, advice: str) -> None:
        self.add("BREACH", what, advice)

    @property
    def code(self) -> int:
        """The exit code."""
        return TRAINER_FAILED if any(f.state == "BREACH" for f in self.findings) else OK

    def text(self) -> str:
        """For people; nothing that came from the trainer can steer their terminal."""
        lines = []
        for finding in self.findings:
            lines.append(f"  {finding.state:8} {shown(finding.what)}")
            lines += [f"           -> {shown(finding.advice)}"] if finding.advice else []
        breaches, warnings = (sum(f.state == state for f in self.findings) for state in ("BREACH", "warning"))
        return "\n".join([*lines, f"breaches: {breaches}, warnings: {warnings}"])


def check(settings: Mapping[str, Any], seed: int, data: Path | None, root: Path, env: Mapping[str, str]) -> Report:
    """Try the trainer of `spec.trainer` in the empty folder `root`, on that data or else on toy data of its task.

    `Permanent`: bad settings (64), or data that cannot be trained on (65).
    """
    attempt, rows = _fetched(settings, seed, data, root, env)
    report = Report()
    trial = _Trial(attempt, root, env, report)
    before = _seen(attempt.data)
    models = {"first": trial.train("first")}
    if models["first"]:
        with contextlib.redirect_stdout(io.StringIO()):
            models["again"] = trial.train("again")
            models["resumed"] = trial.train("resumed") if trial.caught else None
    if _seen(attempt.data) != before:
        report.breach("it changed files in IN", "copy what you change: IN is read-only in a pod")
    _left(root / "first" / "out", report)
    if models["first"]:
        _model(models["first"], report)
        trial.predict({name: model for name, model in models.items() if model}, rows)
    return report


@dataclass(slots=True)
class _Trial:
    attempt: Attempt
    root: Path
    env: Mapping[str, str]
    report: Report
    caught: str = ""
    """What fetch says of the first run's first checkpoint, if it left one."""

    def train(self, name: str) -> Path | None:
        """One run; the model directory, or None after a breach. The run named `resumed` has the checkpoint."""
        made, kept = self.root / name / "out", self.root / f"{name}.checkpoint"
        attempt = replace(self.attempt, checkpoint=kept)
        store = open_store(attempt.models_uri, env=self.env)
        paths = [str(Path.cwd()), *filter(None, [self.env.get("PYTHONPATH")])]
        own = f"{Path(sys.executable).parent}:{self.env.get('PATH', os.defpath)}"  # `python` is ours, as in a pod
        env = {**self.env, "PYTHONPATH": ":".join(paths), "PATH": own}
        if name == "resumed":
            checkpoint.restore(attempt, store, checkpoint.inputs_of(attempt))
        began = time.monotonic()
        try:
            with _first_of(Keeper(attempt, store)) if name == "first" else contextlib.nullcontext():
                trainer.run(attempt.trainer, attempt.data, made, env, {}, checkpoint=kept)
        except TrainerFailed as error:
            self._failed(name, error)
            return None
        if name == "first":
            self.report.add("ok", f"trained in {time.monotonic() - began:.1f} s")
            there = replace(attempt, checkpoint=self.root / "caught")
            self.caught = checkpoint.restore(there, store, checkpoint.inputs_of(attempt))
            if not self.caught and any(kept.iterdir()):
                advice = "put one plain file there, under a hidden name first, and rename it"
                self.report.add("warning", "what it left in OUT/checkpoint survives no eviction", advice)
        return made / "model"

    def _failed(self, name: str, error: TrainerFailed) -> None:
        advice = ADVICE.get(error.reason, "")
        if _REFUSED.search(error.message):
            advice = "write to OUT and TMPDIR only: all else is read-only in a pod"
        if name == "again":
            advice = f"it did well the first time, with the same data and seed; {advice}"
        if name == "resumed":
            advice = (
                f"{self.caught}, and has to end as if nothing had happened; write a checkpoint under a hidden name and "
                "rename it, so that it is whole"
            )
        self.report.breach(f"{error.reason}: {error.message}", advice)

    def predict(self, models: Mapping[str, Path], rows: Rows) -> None:
        """Let the gate ask the models, and judge what they say: in form, against guessing, and against each other."""
        numbers = self.attempt.trainer.task == "regression"
        said = self._ask(models, rows, "numbers" if numbers else "labels")
        first = said["first"]
        if isinstance(first, str):
            advice = "predict has to give one label for each row, or one number of a regression, and nothing else"
            if "No module named" in first:
                advice = "it is loaded alone, in the gate's image: what it imports has to be there or in the model"
            self.report.breach(f"the gate cannot use the model: {first}", advice)
            return
        truth = rows.labels.astype(np.float64) if numbers else gate.texts(rows.labels.tolist())
        self._judged(truth, first, rows)
        if not numbers:
            with contextlib.redirect_stdout(io.StringIO()):  # it printed it once
                shares = self._ask(models, rows, "probabilities")
            if isinstance(shares["first"], str):
                self.report.add("note", "it gives no probabilities, so gate.metric cannot be brier or logLoss")
            else:
                said = shares
        self._compared(said)

    def _ask(self, models: Mapping[str, Path], rows: Rows, what: str) -> dict[str, Said | str]:
        work = self.root / what
        work.mkdir()
        answers, _ = gate.ask(self.attempt, self.env, rows, list(models.values()), work, what)
        return dict(zip(models, answers, strict=True))

    def _judged(self, truth: Any, first: Said, rows: Rows) -> None:
        known = json.loads((self.attempt.data / "train" / "dataset.json").read_text())["classes"]
        if known and (other := sorted(set(first.labels.tolist()) - set(gate.texts(known).tolist()))):
            advice = 'predict has to give the names in dataset.json\'s "classes", not the codes of y'
            self.report.breach(f"it gives classes that the data does not have: {', '.join(other[:5])}", advice)
            return
        found = judge(truth, first, None, rows.slices, self.attempt.gate)
        if found.accept:
            self.report.add("ok", f"predicts: {found.explanation}")
        elif found.reason == "NotEnoughData":
            self.report.add("note", f"predicts; {found.explanation}")
        else:
            self.report.add("warning", f"not surely better than guessing: {found.explanation}", "see what it learns")

    def _compared(self, said: Mapping[str, Said | str]) -> None:
        if "again" not in said:
            return
        if not _same(said["first"], said["again"]):
            advice = "take params.json's seed for all that is drawn, and use no clock and no order of files"
            self.report.add("warning", "two runs with the same data and seed gave other predictions", advice)
            return
        self.report.add("ok", "a second run gave the same predictions")
        if not self.caught:
            self.report.add("note", "it left no checkpoint: a training that is evicted begins anew")
        elif "resumed" in said and not _same(said["first"], said["resumed"]):
            advice = "a checkpoint has to hold all that the rest depends on: optimizer and random state too"
            self.report.breach(f"{self.caught}, and gives other predictions in the end", advice)
        elif "resumed" in said:
            self.report.add("ok", f"{self.caught}, and gives the same predictions in the end")


def _same(one: Said | str, other: Said | str) -> bool:
    """Whether two models said the same, to the last bit."""
    if isinstance(one, str) or isinstance(other, str):
        return False
    pairs = [(one.labels, other.labels), (one.probabilities, other.probabilities)]
    return all(a is None or b is None or np.array_equal(a, b) for a, b in pairs)


@contextmanager
def _first_of(keeper: Keeper) -> Iterator[None]:
    """Meanwhile the first checkpoint is brought to the store, as it would be from a pod."""
    over = threading.Event()

    def look() -> None:
        while not keeper.count and not over.wait(LOOK_S):
            with contextlib.suppress(Temporary, Permanent):
                keeper.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not keeper.count:
        with contextlib.suppress(Temporary, Permanent):
            keeper.look()


def _seen(folder: Path) -> Any:
    try:
        return manifest.walk(folder)
    except Permanent:
        return None


def _left(made: Path, report: Report) -> None:
    """What the trainer left beside the model."""
    if (made / "metrics.json").exists() and not trainer.metrics(made / "metrics.json"):
        report.add("warning", "metrics.json holds no number", 'write an object of numbers: {"train_accuracy": 0.97}')
    try:
        lines = (made / "metrics.jsonl").read_bytes().split(b"\n")
    except OSError:
        if (made / "model").exists():
            report.add("note", "no metrics.jsonl: nothing is seen of it in MLflow while it works")
    else:
        bad = [number for number, line in enumerate(lines[:-1], 1) if not Live.points(line, 0)]
        bad += [len(lines)] if lines[-1] else []
        if bad:
            what = (
                f"metrics.jsonl: {len(bad)} of {len(lines) - (not lines[-1])} lines are no points, first line {bad[0]}"
            )
            report.breach(what, 'append whole lines: {"step": 3, "loss": 0.2}; finite numbers, the step a whole one')
        elif len(lines) - 1 > trainer.MAX_POINTS:
            report.add("warning", f"metrics.jsonl: more than {trainer.MAX_POINTS:,} lines", "the rest is not shown")
        else:
            report.add("ok", f"metrics.jsonl: {len(lines) - 1} lines")
    folder = made / "report"
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
        if trainer.report(folder):
            report.add("ok", "report: shown in MLflow")
        else:
            most = f"{trainer.MAX_REPORT_FILES} plain files and {trainer.MAX_REPORT >> 20} MiB"
            report.breach("OUT/report is not taken", f"at most {most}, without links")


def _model(model: Path, report: Report) -> None:
    """What signer and gate would say of the model's files."""
    try:
        files = manifest.walk(model)
    except Permanent as error:
        for path, fault in error.faults.items():
            report.breach(f"model/{path}: {fault}", "the signer refuses such a file")
        return
    report.add("ok", f"model: {len(files)} files, {sum(file.size for file in files) / 1024:,.0f} KiB")
    for path, fault in manifest.pickles(model).items():
        advice = "the signer refuses it (AEGIS_ALLOW_PICKLE): save as skops, ONNX, .npz or safetensors"
        report.breach(f"model/{path}: {fault}", advice)
    try:
        about = yaml.safe_load((model / "MLmodel").read_text())
    except (yaml.YAMLError, ValueError):
        about = None
    if not isinstance(about, dict):
        report.breach("model/MLmodel is no YAML object", ADVICE["BadModel"])
    elif not about.get("signature"):
        advice = "signature=infer_signature(X[:3], model.predict(X[:3])) of mlflow.models"
        report.add("warning", "the model has no signature: who serves it cannot know what it takes", advice)
    if not (model / "requirements.txt").is_file():
        advice = "pip_requirements=['scikit-learn==1.9.1', ...] of save_model"
        report.add("warning", "the model does not say what it needs: no requirements.txt", advice)
    elif other := sorted(_needed((model / "requirements.txt").read_text()) - _shipped()):
        advice = "predict without it (docs/trainers.md), or build the image of the gate with it too"
        report.add("warning", f"it says that it needs what the gate's image lacks: {', '.join(other)}", advice)


def _needed(text: str) -> set[str]:
    found = set()
    for line in text.splitlines():
        with contextlib.suppress(InvalidRequirement):
            found.add(str(canonicalize_name(Requirement(line.partition("#")[0]).name)))
    return found


def _shipped() -> set[str]:
    """The packages of the gate's image: all that aegis[train] brings."""
    found, left = {"mlflow"}, [Requirement("aegis[train]")]
    while left:
        one = left.pop()
        try:
            texts = metadata.requires(one.name) or []
        except metadata.PackageNotFoundError:
            continue
        extras = [{"extra": extra} for extra in one.extras or {""}]
        for wanted in map(Requirement, texts):
            name = str(canonicalize_name(wanted.name))
            if name not in found and (not wanted.marker or any(map(wanted.marker.evaluate, extras))):
                found.add(name)
                left.append(wanted)
    return found


def _fetched(
    settings: Mapping[str, Any], seed: int, data: Path | None, root: Path, env: Mapping[str, str]
) -> tuple[Attempt, Rows]:
    """IN, as fetch leaves it, and the rows that judge."""
    given = {**settings} if data else {"task": "image", **settings}
    uri = f"file://{data.absolute() if data else _toy(given['task'], root / 'data')}"
    judge_uri = "" if data else f"{uri}/judge"
    document = base64.b64encode(json.dumps({"seed": seed, "secret": "trial", "trainer": given}).encode()).decode()
    env = {
        **{name: value for name, value in env.items() if not name.startswith(("AEGIS_", "MLFLOW_"))},
        **{"AEGIS_MODEL": "trial", "AEGIS_ENVIRONMENT": "trial", "AEGIS_WORKFLOW_UID": "trial"},
        **{"AEGIS_DATASET_URI": uri if data else f"{uri}/train", "AEGIS_EVALUATION_URI": judge_uri},
        **{"AEGIS_DATASET_PREFIXES": uri, "AEGIS_SETTINGS": document, "AEGIS_MODELS_URI": f"file://{root / 'models'}"},
        **{f"AEGIS_{name.upper()}": str(root / name) for name in ("out", "tmp")},
        "AEGIS_DATA": str(root / "in"),
    }
    attempt = Attempt.from_env(env)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = fetch.main(env)
    if code:
        raise Permanent((attempt.out / "failure").read_text(), exit_code=code)
    numbers = attempt.trainer.task == "regression"
    found = dataset.fetch(judge_uri or uri, attempt.prefixes, env, attempt.tmp, numbers=numbers)
    return attempt, found.rows if judge_uri else dataset.evaluation_rows([found])


def _toy(task: str, folder: Path) -> Path:
    """Small data that scikit-learn carries; its classes are texts, which no trainer mistakes for the codes of y."""
    from sklearn import datasets

    for part in ("train", "judge"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    if task == "image":
        X, y = datasets.load_digits(return_X_y=True)  # noqa: N806 - as everywhere in the data
        names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
        order = rng.permutation(len(y))[:1400]
        for part, some in (("train", order[:1000]), ("judge", order[1000:])):
            np.savez(folder / part / "digits.npz", X=X[some].reshape(-1, 8, 8).astype(np.float32), y=names[y[some]])
        return folder
    load = datasets.load_diabetes if task == "regression" else datasets.load_breast_cancer
    bunch = load(as_frame=True)
    table = bunch.data.assign(label=bunch.target if task == "regression" else bunch.target_names[bunch.target])
    order = rng.permutation(len(table))
    for part, some in (("train", order[200:]), ("judge", order[:200])):
        table.iloc[some].to_csv(folder / part / "table.csv", index=False)
    return folder
