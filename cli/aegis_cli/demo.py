"""The whole path on one machine, on real data, each claim checked by its effect.

`Demo` tells the story; `CHECKS` are what the exit code depends on. Each check reads what is there now (ledger,
pointer, registry, package), so that it can be asked again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis import package, pointer, signature
from aegis.errors import OK, Permanent
from aegis.storage import open_store
from retrain_trigger.model import ROWS, Record, object_name

from . import alerts, config, story
from .adoption import adopted
from .stack import Stack, State, call

GOOD, HARMED, FORGETFUL = "digits", "digits-harmed", "digits-forgetful"
ENVIRONMENT = "default"
OUTCOME_WITHIN_S = 300.0
LIMIT_S = 60.0
"""Seconds that the demo may take. More is told and fails nothing: a busy machine proves nothing wrong."""
MARK = ".aegis-demo"
STEPS = ["train", "gate", "sign", "promote"]


class DemoFailed(Permanent):
    """An effect that had to be there was not."""

    exit_code = 70


def demo(folder: Path, seed: int) -> int:
    """Run the demo in an emptied folder; 0 only if every check held."""
    state = State(_emptied(folder.absolute()))
    with contextlib.ExitStack() as parts:
        run = Demo(state, seed, parts)
        run.tell()
        print(f"\nAll of this was checked by its effect. {took(run.clock())}")
        run.where_to_look()
    return OK


def took(seconds: float) -> str:
    """Say how long it took, and whether that is as it should be."""
    said = f"It took {seconds:.0f} s"
    return f"{said}." if seconds <= LIMIT_S else f"{said}: more than the {LIMIT_S:.0f} s that an idle machine may need."


def _emptied(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise Permanent(f"{folder} is not a demo's folder; choose another with --state", exit_code=64)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


@dataclass
class Demo:
    """One run of the demo. `parts` ends what was started."""

    state: State
    seed: int
    parts: contextlib.ExitStack

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self.accuracy: dict[str, tuple[float, float]] = {}
        self.posted: dict[str, Any] = {}

    def clock(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        print(f"[{self.clock():5.1f} s] {story.shown(text)}", flush=True)

    # --- the story ---

    def tell(self) -> None:
        from . import demo_data

        print("Aegis demo: a drift alert in, a better signed model out. All on this machine.\n", flush=True)
        self.data = demo_data.make(self.seed)
        demo_data.write(self.data, self.state.datasets, self.seed)
        self.say("data: 700 digits for the champion, 500 new ones from a camera that slipped, 1,194 to judge with")
        self.say("starting receiver, trigger, runner and MLflow (the slowest) ...")
        self.stack = self.parts.enter_context(Stack(self.state, _config(self.state), os.environ))
        self._first_champion()
        self._drift()
        self._check("a champion serves, signed", "the champion fell on drifted data")
        self._alert()
        self._check(
            "the alert made one Workflow",
            "every step of the Workflow ran",
            "the challenger is better, on data that nobody trained on",
            "the stock model_signing command accepts the signature",
            "the promoted version leads back to the alert",
        )
        self._held()
        self._check("the same alert again, and another, made no second Workflow")
        self._refused()
        self._check("harmful data was refused", "a forgetful trainer was refused")

    def _first_champion(self) -> None:
        self.say("training the first champion on the old data ...")
        with tempfile.TemporaryDirectory() as scratch:
            made = _train(self, Path(scratch))
            for model in (GOOD, HARMED, FORGETFUL):
                done = adopted(self.state, made, ENVIRONMENT, model, mlflow=self.stack.urls["mlflow"])
        self.say(f"trained, signed and adopted as champion of {GOOD}, {HARMED} and {FORGETFUL} (serial {done.serial})")

    def _drift(self) -> None:
        self.accuracy["first"] = scores = self._scores(GOOD)
        self.say(
            f"the camera slips: the champion is right on {scores[0]:.1%} of clean digits, on {scores[1]:.1%} of the new"
        )

    def _alert(self) -> None:
        self.say(f"Alertmanager's webhook posts ModelDrift for {GOOD} to {self.stack.urls['receiver']}/alertmanager")
        self.posted = self._post(GOOD, "new", feature="rotation")
        self._story(GOOD)
        self._follow([GOOD])
        record = self.record(GOOD)
        self.say(f"the gate: {record.status.retrain.explanation if record.status.retrain else ''}")

    def _held(self) -> None:
        self.say("the same alert again (Alertmanager repeats it as long as it fires):")
        self._send(self.posted)
        self._story(GOOD)
        self.say("and another alert about the same model:")
        self._post(GOOD, "new", feature="contrast")
        self._story(GOOD)

    def _refused(self) -> None:
        self.say(f"a second model, {HARMED}: its new data carries shuffled labels; and a third, {FORGETFUL}:")
        self.say("its owner's setting trains on the new data alone, which forgets the old")
        self._post(HARMED, "harmful")
        self._post(FORGETFUL, "new")
        self._follow([HARMED, FORGETFUL])
        for model in (HARMED, FORGETFUL):
            retrain = self.record(model).status.retrain
            self.say(f"{model}: {retrain.outcome if retrain else ''}: {retrain.explanation if retrain else ''}")

    def where_to_look(self) -> None:
        state = self.state.root
        retrain = self.record(GOOD).status.retrain
        card = self.state.report(retrain.run_id or "") if retrain else None
        aegis, mlflow = Path(sys.executable).with_name("aegis"), Path(sys.executable).with_name("mlflow")
        folder = self.folder(GOOD)
        print("\nWhere to look next")
        print(f"  the story       {aegis} why {GOOD} --state {state}")
        print(f"  runs and models {mlflow} ui --backend-store-uri sqlite:///{state}/mlflow/mlflow.db --port 5000")
        print(f"  the model card  {card}")
        print(f"  the package     {aegis} verify {folder} --state {state}")
        print(f"  your own        {aegis} up")
        print("\nVerify it without Aegis (docs/verify.md)")
        print("\n".join(f"  {command}" for command in self.stock_commands()))

    def stock_commands(self) -> list[str]:
        """How anybody verifies the champion, with tools that know nothing of Aegis."""
        here = self.folder(GOOD)
        signer = (here / package.SIGNER).read_bytes()
        trusted = next(path for path in self.state.trusted.glob("*.pub") if path.read_bytes() == signer)
        model_signing = Path(sys.executable).with_name("model_signing")
        paths = (here, trusted, self.state.root / "verified", model_signing)
        folder, key, place, stock = (shlex.quote(str(path)) for path in paths)
        log = "--insecure-ignore-tlog"
        attested = f"--type slsaprovenance1 --digestAlg sha256 --digest {self.pointer(GOOD).tar_sha256}"
        return [
            f"cosign verify-blob --key {key} --bundle {folder}/{package.TAR_SIG} {log} {folder}/{package.TAR}",
            f"cosign verify-blob-attestation --key {key} --bundle {folder}/{package.PROVENANCE} {log} {attested}",
            f"mkdir -p {place} && tar -xf {folder}/{package.TAR} -C {place}",
            f"{stock} verify key {place} --signature {folder}/{package.MODEL_SIG} --public_key {key} "
            "--no-ignore-git-paths",
        ]

    # --- what happens ---

    def _post(self, model: str, dataset: str, feature: str = "") -> dict[str, Any]:
        labels = {"alertname": "ModelDrift", "model_name": model, "model_version": "1", "severity": "critical"}
        labels |= {"feature": feature} if feature else {}
        annotations = {"summary": f"Drift on {model}", "dataset_uri": (self.state.datasets / dataset).as_uri() + "/"}
        body = alerts.payload(labels, annotations, datetime.now(UTC))
        self._send(body)
        return body

    def _send(self, body: Mapping[str, Any]) -> None:
        headers = {"content-type": "application/json", "user-agent": "Alertmanager/0.25.0"}
        status, _, answer = call(
            self.stack.urls["receiver"], "POST", "/alertmanager", json.dumps(body).encode(), headers
        )
        _expect(status == 200, f"the receiver answered {status}: {answer.decode(errors='replace')}")

    def _story(self, model: str) -> None:
        row = self.record(model).status.history[-1]
        self.say(f"decision: {ROWS.get(row.kind, row.kind)}: {row.reason} ({row.message})")

    def _follow(self, models: list[str]) -> None:
        told: set[tuple[str, str, str]] = set()
        deadline = time.monotonic() + OUTCOME_WITHIN_S
        waiting = set(models)
        while waiting:
            _expect(time.monotonic() < deadline, f"no outcome for {', '.join(sorted(waiting))} in time")
            self.stack.check()
            for model in sorted(waiting):
                for step, phase in self.steps(model):
                    if phase not in ("Pending", "Running") and (model, step, phase) not in told:
                        told.add((model, step, phase))
                        self.say(f"  {model}: {step} {phase.lower()}")
                retrain = self.record(model).status.retrain
                if retrain and not retrain.in_flight:
                    waiting.discard(model)
                    self.say(f"  {model}: ended: {retrain.outcome}")
            time.sleep(0.2)

    # --- what is there now ---

    def record(self, model: str) -> Record:
        record = self.state.records().read(object_name(ENVIRONMENT, model))
        if record is None:
            raise DemoFailed(f"{model} has no ledger")
        return record

    def workflows(self, model: str) -> list[dict[str, Any]]:
        """The Workflows of a model, the oldest first."""
        name = object_name(ENVIRONMENT, model)
        docs = [stored.doc for stored in self.state.objects().list("Workflow")]
        return [doc for doc in docs if doc["metadata"]["labels"].get("aegis.dev/managed-model") == name]

    def steps(self, model: str) -> list[tuple[str, str]]:
        """(step, phase) of the model's only Workflow."""
        nodes = [n for doc in self.workflows(model) for n in (doc.get("status") or {}).get("nodes", {}).values()]
        found = {node["templateName"]: node["phase"] for node in nodes if node.get("type") == "Pod"}
        return [(step, found[step]) for step in STEPS if step in found]

    def pointer(self, model: str) -> pointer.Pointer:
        """The verified pointer of a model."""
        store = open_store(self.state.models.as_uri(), env={})
        found = pointer.read(store, signature.load_keys(self.state.trusted), ENVIRONMENT, model)
        if found is None:
            raise DemoFailed(f"{model} has no champion")
        return found[0]

    def folder(self, model: str) -> Path:
        """The package of the champion."""
        return self.state.models / package.folder(ENVIRONMENT, model, self.pointer(model).tar_sha256)

    @contextlib.contextmanager
    def champion(self, model: str) -> Iterator[Path]:
        """The champion's verified files, extracted for as long as needed."""
        store = open_store(self.state.models.as_uri(), env={})
        with tempfile.TemporaryDirectory() as scratch:
            keys = signature.load_keys(self.state.trusted)
            found = pointer.fetch_champion(store, keys, ENVIRONMENT, model, Path(scratch) / "model")
            if found is None:
                raise DemoFailed(f"{model} has no champion")
            yield found.directory

    def _scores(self, model: str) -> tuple[float, float]:
        """Share of right answers of the champion on clean and on drifted digits."""
        import numpy as np

        from train_model.predict import predict

        with self.champion(model) as directory:
            parts = (self.data.reference, self.data.drifted)
            right = [np.mean(np.array(predict(directory, part.images)["labels"]) == part.labels) for part in parts]
        return float(right[0]), float(right[1])

    def version(self, model: str, alias: str = "champion") -> Any:
        """The registered version that the alias names."""
        from mlflow import MlflowClient

        uri = self.stack.urls["mlflow"]
        return MlflowClient(tracking_uri=uri, registry_uri=uri).get_model_version_by_alias(model, alias)

    def _check(self, *names: str) -> None:
        for name in names:
            CHECKS[name](self)
            self.say(f"checked: {name}")


# --- checks ------------------------------------------------------------------------------------------------------


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise)


def _champion_serves(demo: Demo) -> None:
    for model in (GOOD, HARMED, FORGETFUL):
        found, version = demo.pointer(model), demo.version(model)
        _expect(found.serial >= 1, f"{model}: the pointer has no serial")
        _expect(version.tags.get("aegis.tar_sha256") == found.tar_sha256, f"{model}: alias and pointer differ")


def _champion_fell(demo: Demo) -> None:
    clean, drifted = demo.accuracy["first"]
    _expect(clean > 0.8, f"the champion was no good to begin with: {clean:.1%}")
    _expect(drifted < clean - 0.3, f"the champion did not fall: {drifted:.1%} on drifted data")


def _one_workflow(demo: Demo) -> None:
    found = demo.workflows(GOOD)
    fingerprint = demo.posted["alerts"][0]["fingerprint"]
    _expect(len(found) == 1, f"{len(found)} Workflows")
    told = found[0]["metadata"]["annotations"].get("aegis.dev/fingerprint")
    _expect(told == fingerprint, f"the Workflow names alert {told}")


def _steps_ran(demo: Demo) -> None:
    done = [step for step, phase in demo.steps(GOOD) if phase == "Succeeded"]
    _expect(done == STEPS, f"the steps that succeeded are {done}")
    _expect(demo.workflows(GOOD)[0]["status"]["phase"] == "Succeeded", "the Workflow did not succeed")


def _better(demo: Demo) -> None:
    before, after = demo.accuracy["first"], demo._scores(GOOD)
    demo.accuracy["second"] = after
    demo.say(f"the new champion is right on {after[0]:.1%} of clean digits and on {after[1]:.1%} of the new")
    retrain = demo.record(GOOD).status.retrain
    _expect(retrain is not None and retrain.outcome == "Promoted", "the ledger does not say Promoted")
    _expect(after[1] > before[1] + 0.3, f"drifted digits: {after[1]:.1%} after {before[1]:.1%}")
    _expect(after[0] > before[0] - 0.05, f"clean digits: {after[0]:.1%} after {before[0]:.1%}")


def _signed(demo: Demo) -> None:
    folder = demo.folder(GOOD)
    with demo.champion(GOOD) as directory:
        command = [
            str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(directory), "--signature",
            str(folder / "model.sig"), "--public_key", str(folder / "signer.pub"), "--no-ignore-git-paths",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603  # no shell
    said = (done.stdout + done.stderr).strip()
    _expect(done.returncode == 0, f"model_signing refused it: {said[-500:]}")
    signer = (folder / "signer.pub").read_bytes()
    trusted = [path.read_bytes() for path in demo.state.trusted.glob("*.pub")]
    _expect(signer in trusted, "the signer is not a trusted one")


def _leads_back(demo: Demo) -> None:
    found, version, retrain = demo.pointer(GOOD), demo.version(GOOD), demo.record(GOOD).status.retrain
    _expect(found.serial == 2, f"the pointer's serial is {found.serial}")
    _expect(retrain is not None and str(version.version) == retrain.registered_version, "ledger and alias differ")
    told = version.tags
    _expect(told.get("aegis.tar_sha256") == found.tar_sha256, "alias and pointer name different models")
    _expect(told.get("aegis.fingerprint") == demo.posted["alerts"][0]["fingerprint"], "the alert is not named")
    _expect(retrain is not None and told.get("aegis.event_id") == retrain.event_id, "the drift event is not named")


def _held_back(demo: Demo) -> None:
    record = demo.record(GOOD)
    _expect(len(demo.workflows(GOOD)) == 1, f"{len(demo.workflows(GOOD))} Workflows")
    last = record.status.history[-1]
    _expect((last.kind, last.reason) == ("Hold", "Cooldown"), f"the last decision was {last.kind} {last.reason}")
    _expect(last.count == 2, f"{last.count} of the two alerts were held")
    _expect(len(record.status.evidence) == 2, f"{len(record.status.evidence)} alerts are known")


def _refused_by_gate(model: str, word: str) -> Callable[[Demo], None]:
    def check(demo: Demo) -> None:
        retrain = demo.record(model).status.retrain
        _expect(retrain is not None and retrain.outcome == "Rejected", f"{model}: {retrain and retrain.outcome}")
        _expect(
            word in (retrain.explanation if retrain and retrain.explanation else ""),
            f"{model}: the reason does not say {word!r}",
        )
        done = [step for step, _ in demo.steps(model)]
        _expect(done == ["train", "gate"], f"{model}: the steps were {done}")
        _expect(demo.pointer(model).serial == 1, f"{model}: the pointer moved")
        tar = demo.version(model).tags.get("aegis.tar_sha256")
        _expect(tar == demo.pointer(model).tar_sha256, f"{model}: the alias moved")

    return check


CHECKS: dict[str, Callable[[Demo], None]] = {
    "a champion serves, signed": _champion_serves,
    "the champion fell on drifted data": _champion_fell,
    "the alert made one Workflow": _one_workflow,
    "every step of the Workflow ran": _steps_ran,
    "the challenger is better, on data that nobody trained on": _better,
    "the stock model_signing command accepts the signature": _signed,
    "the promoted version leads back to the alert": _leads_back,
    "the same alert again, and another, made no second Workflow": _held_back,
    "harmful data was refused": _refused_by_gate(HARMED, "than the champion"),
    "a forgetful trainer was refused": _refused_by_gate(FORGETFUL, "slice reference lost too much"),
}


# --- parts -------------------------------------------------------------------------------------------------------


def _config(state: State) -> config.Config:
    common = {"environment": ENVIRONMENT, "evaluationUri": (state.datasets / "evaluation").as_uri() + "/"}
    ports = {}
    with contextlib.ExitStack() as held:
        for name in config.PORTS:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[name] = probe.getsockname()[1]
    return config.check(
        {
            "models": [
                {"model": GOOD, **common},
                {"model": HARMED, **common},
                {"model": FORGETFUL, **common, "trainer": {"data": "new"}},
            ],
            "ports": ports,
            "reconcileInterval": "5s",
        },
        state.root,
    )


def _train(demo: Demo, scratch: Path) -> Path:
    """Train on the old data with the very steps that a retrain runs; the model directory."""
    packed = base64.b64encode(json.dumps({"seed": demo.seed}).encode()).decode()
    env = {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "AEGIS_MODEL": GOOD,
        "AEGIS_ENVIRONMENT": ENVIRONMENT,
        "AEGIS_WORKFLOW": "first-champion",
        "AEGIS_WORKFLOW_UID": "first-champion",
        "AEGIS_SETTINGS": packed,
        "AEGIS_DATASET_URI": (demo.state.datasets / "old").as_uri() + "/",
        "AEGIS_EVALUATION_URI": (demo.state.datasets / "evaluation").as_uri() + "/",
        "AEGIS_DATASET_PREFIXES": demo.state.datasets.as_uri() + "/",
        "AEGIS_MODELS_URI": demo.state.models.as_uri(),
        "AEGIS_TRUSTED_KEYS": str(demo.state.trusted),
        "AEGIS_DATA": str(scratch / "data"),
        "AEGIS_OUT": str(scratch / "out"),
        "AEGIS_TMP": str(scratch),
        "MLFLOW_TRACKING_URI": demo.stack.urls["mlflow"],
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    for step in ("fetch", "train"):
        done = subprocess.run(  # noqa: S603  # our own module, no shell
            [sys.executable, "-m", f"train_model.{step}"],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        _expect(
            done.returncode == 0, f"{step} of the first champion ended with {done.returncode}: {done.stderr[-500:]}"
        )
    return scratch / "out" / "model"
