"""MLflow, an object store and a trigger, each behind a fault proxy, and one workflow's steps that talk to them.

A `Scenario` is one step of a workflow that nobody had before: its own model, uid, place in the store and folders. It
knows how to prepare what the steps before it leave, and what must be there in the end, whatever happened meanwhile.
"""

from __future__ import annotations

import base64
import copy
import itertools
import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from aegis import events, manifest, package, pointer, signature
from aegis.package import Origin
from aegis.pointer import Pointer
from aegis.storage import Entry, Location, S3Store, open_store
from retrain_trigger.model import Retrain
from sign_model import keys
from sign_model.sign import sign, sources_of
from sign_model.verify import verify_directory
from tests.faults.nursery import Nursery
from tests.faults.proxy import Call, FaultProxy
from tests.trigger import world as trigger_world
from tests.trigger.host import trigger_host

BUCKET = "aegis"
DATA = f"s3://{BUCKET}/data"
ENVIRONMENT = "test"
KILLED = -signal.SIGKILL
AGAIN = (75, KILLED)
"""The ends after which the WorkflowTemplate tries a step again (a container's 137 is our -9)."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
"""MLflow's client tries as often as in the product, without waiting in between."""
LIGHT = {"PYTHONPATH": str(Path(__file__).with_name("light"))}
"""For the trainer and the model that cost no time."""

_SHORT = [
    (re.compile(pattern), short)
    for pattern, short in (
        (r"[0-9a-f]{64}", "<digest>"),
        (r"\bm-[0-9a-f]{32}", "<logged model>"),
        (r"[0-9a-f]{32}", "<run>"),
        (r"/artifacts/\d+/", "/artifacts/<experiment>/"),
        (r"/x-[^/]+", "/<model>"),
    )
]


def simplify(path: str) -> str:
    """The same for the same call of any scenario, whose models are all named x-..."""
    for pattern, short in _SHORT:
        path = pattern.sub(short, path)
    return path


def mlflow_client(port: int) -> Any:
    """A client of the server itself."""
    from mlflow import MlflowClient

    uri = f"http://127.0.0.1:{port}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def put_data(storage: Mapping[str, str]) -> None:
    """Data that drifted: four clusters that moved to other axes, and an evaluation set with both in it."""
    store, rng = open_store(DATA, env=storage), np.random.default_rng(0)

    def rows(count: int, moved: int) -> tuple[Any, Any]:
        labels = rng.integers(0, 4, count)
        return (10 * np.eye(8)[labels + moved] + rng.normal(size=(count, 8))).astype(np.float32), labels

    (old, old_labels), (new, new_labels) = rows(200, 0), rows(200, 4)
    (before, before_labels), (after, after_labels) = rows(200, 0), rows(200, 4)
    for name, arrays in {
        "old": {"X": old, "y": old_labels},
        "new": {"X": new, "y": new_labels},
        "judge": {
            "X": np.r_[before, after],
            "y": np.r_[before_labels, after_labels],
            "slice": np.array(["reference"] * 200 + ["drifted"] * 200),
        },
    }.items():
        store.create(f"{name}/x.npz", _npz(arrays))


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Stage:
    """The servers, a proxy before each, and what scenarios share: data, a key, a champion and a challenger."""

    def __init__(
        self, root: Path, tracking: int, storage: Mapping[str, str], nursery: Nursery, within: ExitStack
    ) -> None:
        self.root, self.storage = root, storage
        self.client = mlflow_client(tracking)
        self.bucket = S3Store(Location.parse(f"s3://{BUCKET}"), storage)
        self.trigger = within.enter_context(trigger_host(root / "ledger.db", root / "trigger.log", budget="1000"))
        self.ports = {
            "MLflow": tracking,
            "object store": int(storage["AWS_ENDPOINT_URL"].rpartition(":")[2]),
            "trigger": self.trigger.port,
        }
        self.signer = keys.ensure(root / "keys" / "signing.pem", root / "trusted")
        self.trusted = signature.load_keys(root / "trusted")
        self.numbers = itertools.count(1)
        self._plain: dict[str, list[Call]] = {}
        self._own(nursery, within)
        self.champion = self._trained({"AEGIS_DATASET_URI": f"{DATA}/old"})[1]
        """A model that learned from the old data."""
        self.retrained = self._trained({}, crowned=True)
        """What fetch leaves where there is a champion and new data, and the challenger that comes of it."""
        self.trigger.ready()

    def beside(self, nursery: Nursery, within: ExitStack) -> Stage:
        """Another one on the same servers, for a second scenario at the same time."""
        other = copy.copy(self)
        other._own(nursery, within)
        return other

    def _own(self, nursery: Nursery, within: ExitStack) -> None:
        self.nursery = nursery
        self.calls: list[Call] = []
        self.proxies = {
            name: within.enter_context(FaultProxy(name, port, calls=self.calls, simplify=simplify))
            for name, port in self.ports.items()
        }

    def name(self, step: str) -> None:
        """Who talks to whom, for the report."""
        for server, proxy in self.proxies.items():
            proxy.name = f"{step} to {server}"

    def clear(self) -> None:
        for proxy in self.proxies.values():
            proxy.clear()
        self.calls.clear()

    def proxy(self, name: str) -> FaultProxy:
        """The one with this name in the report."""
        [proxy] = [proxy for proxy in self.proxies.values() if proxy.name == name]
        return proxy

    def plain(self, kind: type[Scenario]) -> list[Call]:
        """The calls of a step to which nothing happens, in their order."""
        if kind.step not in self._plain:
            scenario = kind(self)
            scenario.prepare()
            self.clear()
            code = scenario.run()
            assert code == 0, scenario.said
            self._plain[kind.step] = list(self.calls)
            scenario.check()
        return self._plain[kind.step]

    def _trained(self, env: Mapping[str, str], *, crowned: bool = False) -> tuple[Path, Path]:
        fetch = Fetch(self)
        fetch.env |= env
        if crowned:
            fetch.crown()
        assert fetch.run() == 0, fetch.said
        train = Train(self)
        train.env |= {**env, "AEGIS_DATA": str(fetch.data)}
        assert train.run() == 0, train.said
        return fetch.data, train.out / "model"


class Scenario:
    """One step of a workflow of its own."""

    step: ClassVar[str]
    module: ClassVar[str]
    retried: ClassVar[bool] = True

    def __init__(self, stage: Stage) -> None:
        self.stage, number = stage, next(stage.numbers)
        self.model, self.uid = f"x-{self.step}-{number}", f"uid-{number}"
        self.root = stage.root / self.model
        self.root.mkdir()
        self.tries = 0
        encoded = {
            "AEGIS_EVENT": {"event_id": "ev-1", "fingerprint": "f1", "reason": "Drifting"},
            "AEGIS_SETTINGS": {"trainer": {"module": "nearest:fit"}, "alias": "champion", "secret": f"of {self.uid}"},
        }
        stage.name(self.step)
        self.env = {
            "AEGIS_MODEL": self.model,
            "AEGIS_ENVIRONMENT": ENVIRONMENT,
            "AEGIS_MODEL_VERSION": "1",
            "AEGIS_DATASET_URI": f"{DATA}/new",
            "AEGIS_EVALUATION_URI": f"{DATA}/judge",
            "AEGIS_DATASET_PREFIXES": DATA,
            "AEGIS_WORKFLOW": f"aegis-{self.model}-1",
            "AEGIS_WORKFLOW_UID": self.uid,
            "AEGIS_MODELS_URI": self.models_uri,
            "AEGIS_TRUSTED_KEYS": str(stage.root / "trusted"),
            "AEGIS_SIGNING_KEY": (stage.root / "keys" / "signing.pem").as_uri(),
            "AEGIS_SINK": stage.proxies["trigger"].url,
            "MLFLOW_TRACKING_URI": stage.proxies["MLflow"].url,
            "PATH": os.environ["PATH"],
            **{name: base64.b64encode(json.dumps(value).encode()).decode() for name, value in encoded.items()},
            **stage.storage,
            "AWS_ENDPOINT_URL": stage.proxies["object store"].url,
            **IMPATIENT,
            **LIGHT,
        }

    def prepare(self) -> None:
        """Leave what the steps before this one leave; no call of it goes through a proxy."""
        raise NotImplementedError

    def check(self) -> None:
        """What must be there once the step has ended well, and what must not be there twice."""
        raise NotImplementedError

    def run(self) -> int:
        """Try once, in fresh folders, as each try has a fresh pod; the exit code, or minus the signal."""
        self.tries += 1
        for folder in (self.data, self.out, self.root / f"tmp-{self.tries}"):
            folder.mkdir()
        folders = {"AEGIS_OUT": self.out, "AEGIS_TMP": self.root / f"tmp-{self.tries}"}
        env = {"AEGIS_DATA": str(self.data), **self.env, **{name: str(path) for name, path in folders.items()}}
        code = self.stage.nursery.run(self.module, env, self.root, self.root / "log")
        assert "Traceback" not in self.said, self.said
        return code

    def settle(self, code: int) -> None:
        """Try again as the WorkflowTemplate does, now that nothing is wrong any more."""
        self.stage.clear()
        for _ in range(3):
            if code == 0 or not self.retried:
                break
            assert code in AGAIN, self.said
            code = self.run()
        assert code == 0 or not self.retried, self.said

    @property
    def said(self) -> str:
        return (self.root / "log").read_text()

    @property
    def data(self) -> Path:
        return self.root / f"data-{self.tries}"

    @property
    def out(self) -> Path:
        return self.root / f"out-{self.tries}"

    @property
    def outputs(self) -> dict[str, str]:
        """The output parameters of the last try."""
        return {path.name: path.read_text() for path in self.out.iterdir() if path.is_file()}

    # --- the object store

    @property
    def models_uri(self) -> str:
        return f"s3://{BUCKET}/{self.model}"

    @cached_property
    def store(self) -> S3Store:
        store = copy.copy(self.stage.bucket)  # a client of its own would take longer than most steps
        store.root = f"{self.model}/"
        return store

    def signed(self, directory: Path, uid: str) -> package.Package:
        """The package of a model, as sign leaves it."""
        origin = Origin(self.model, ENVIRONMENT, uid, sources=sources_of(directory))
        stage = self.stage
        return sign(
            directory, origin, None, store=self.store, signer=stage.signer, trusted=stage.trusted, scratch=self.root
        )

    def crown(self) -> None:
        """Make a champion of the model that learned from the old data, as another workflow would."""
        self.point(self.signed(self.stage.champion, "uid-before").tar_sha256)

    def point(self, tar: str) -> None:
        """Let the pointer name a package of another workflow."""
        self.tar = tar
        root, where = digest(self.stage.champion), f"{self.models_uri}/{package.folder(ENVIRONMENT, self.model, tar)}"
        first = Pointer(
            self.model, ENVIRONMENT, 1, tar, root, where, "r0", "1", "uid-before", "2026-01-01T00:00:00Z"
        )  # fmt: skip
        self.store.swap(pointer.path_of(ENVIRONMENT, self.model), pointer.seal(first, self.stage.signer), None)

    def pointer(self) -> Pointer:
        found = pointer.read(self.store, self.stage.trusted, ENVIRONMENT, self.model)
        assert found is not None
        return found[0]

    def packages(self) -> list[Entry]:
        """All files of all packages."""
        return [entry for entry in self.store.list() if entry.path.startswith("packages/")]

    # --- MLflow

    def begin(self) -> str:
        """The run that train leaves."""
        experiment = self.stage.client.create_experiment(f"{ENVIRONMENT}/{self.model}")
        run = self.stage.client.create_run(experiment, tags={"aegis.workflow_uid": self.uid})
        return str(run.info.run_id)

    def the_run(self) -> Any:
        """The one run of the model."""
        experiment = self.stage.client.get_experiment_by_name(f"{ENVIRONMENT}/{self.model}")
        assert experiment is not None
        [run] = self.stage.client.search_runs([experiment.experiment_id])
        assert run.data.tags["aegis.workflow_uid"] == self.uid
        return run


class Fetch(Scenario):
    """Only reads, so the same data must lie there; the champion too, verified."""

    step, module = "fetch", "train_model.fetch"

    def prepare(self) -> None:
        self.crown()

    def check(self) -> None:
        assert digest(self.data) == digest(self.stage.retrained[0])
        assert digest(self.data / "champion") == digest(self.stage.champion)
        assert {entry.path.split("/")[-2] for entry in self.packages()} == {self.tar}


class Train(Scenario):
    """Leaves one run and the model that comes of this data."""

    step, module = "train", "train_model.train"

    def prepare(self) -> None:
        self.env["AEGIS_DATA"] = str(self.stage.retrained[0])

    def check(self) -> None:
        run = self.the_run()
        assert run.info.run_id == self.outputs["run-id"]
        assert (run.info.status, run.data.params["trainer"]) == ("RUNNING", "nearest:fit")
        assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["old", "new"]
        client = self.stage.client
        # A second try tells its curve again, at another time of day; the points are the same.
        assert {(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss")} == {(1, 0.5), (2, 0.25)}
        shown = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert shown == {"environment.txt", "report"}
        assert self.outputs["status"] == "trained"
        assert digest(self.out / "model") == digest(self.stage.retrained[1])


class Gate(Scenario):
    """Accepts what is better than the champion, and tells the one run, which ends."""

    step, module = "gate", "train_model.gate"

    def prepare(self) -> None:
        self.crown()
        self.env |= {"AEGIS_MODEL_DIR": str(self.stage.retrained[1]), "AEGIS_RUN_ID": self.begin()}

    def check(self) -> None:
        found = self.outputs
        assert (found["verdict"], found["champion"]) == ("accept", f"{self.tar}@1"), found
        assert found["digest"] == digest(self.stage.retrained[1])
        run = self.the_run()
        assert (run.info.run_id, run.info.status) == (self.env["AEGIS_RUN_ID"], "FINISHED")
        assert run.data.tags["aegis.verdict"] == "Accepted"
        cards = {item.path for item in self.stage.client.list_artifacts(run.info.run_id)}
        assert {"model_card.html", "model_card.md"} <= cards


class Sign(Scenario):
    """Leaves one package, complete and verified; who is champion it does not touch."""

    step, module = "sign", "sign_model.sign"

    def prepare(self) -> None:
        self.crown()
        challenger = self.stage.retrained[1]
        self.env |= {"AEGIS_MODEL_DIR": str(challenger), "AEGIS_DIGEST": digest(challenger), "AEGIS_RUN_ID": "r1"}

    def check(self) -> None:
        new, complete = self.outputs["package"], sorted([package.TAR, *package.SMALL])
        found = [tuple(entry.path.split("/")[-2:]) for entry in self.packages()]
        assert found == [(tar, name) for tar in sorted((self.tar, new)) for name in complete]
        held = self.root / "held"
        held.mkdir()
        for name in complete:
            self.store.download(f"{package.folder(ENVIRONMENT, self.model, new)}/{name}", held / name, limit=1 << 24)
        assert verify_directory(held, self.stage.trusted, model=self.model, environment=ENVIRONMENT) == []
        assert (self.pointer().serial, self.pointer().tar_sha256) == (1, self.tar)


class Promote(Scenario):
    """One version of one logged model, the pointer moved once and to it, and the alias on it."""

    step, module = "promote", "sign_model.promote"

    def prepare(self) -> None:
        self.point("0" * 64)
        self.new = self.signed(self.stage.retrained[1], self.uid).tar_sha256
        self.before = self.packages()
        self.env |= {"AEGIS_PACKAGE": self.new, "AEGIS_CHAMPION": f"{self.tar}@1", "AEGIS_RUN_ID": self.begin()}

    def check(self) -> None:
        client, now, run, found = self.stage.client, self.pointer(), self.the_run(), self.outputs
        assert self.packages() == self.before
        assert (now.serial, now.tar_sha256, now.workflow, now.run_id) == (2, self.new, self.uid, run.info.run_id)
        [version] = client.search_model_versions(f"name = '{self.model}'")
        [logged] = client.search_logged_models([run.info.experiment_id])  # no other that anybody could promote
        assert version.source == f"models:/{logged.model_id}" or version.model_id == logged.model_id
        assert (version.version, version.run_id, version.status) == (now.model_version, run.info.run_id, "READY")
        assert (version.tags["aegis.tar_sha256"], version.tags["aegis.pointer_serial"]) == (self.new, "2")
        assert client.get_model_version_by_alias(self.model, "champion").version == version.version
        [logged] = client.search_logged_models([run.info.experiment_id])
        assert (logged.status, version.source) == ("READY", f"models:/{logged.model_id}")
        held = {item.path: item.file_size for item in client.list_logged_model_artifacts(logged.model_id)}
        assert held == {path.name: path.stat().st_size for path in self.stage.retrained[1].iterdir()}
        assert (found["outcome"], found["pointer"], found["registered-version"]) == ("Promoted", "2", version.version)


class Finish(Scenario):
    """Wakes the trigger; if that gets lost, reconcile finds the end. Its container is not tried again."""

    step, module, retried = "finish", "sign_model.finish", False

    def prepare(self) -> None:
        """A retrain whose Workflow has ended, which the trigger does not know."""
        self.ledger = trigger_world.World(self.stage.root / "ledger.db", now=datetime.now(UTC))
        told = trigger_world.drift(self.model, seen=self.ledger.now, environment=ENVIRONMENT)
        headers, body = events.encode(events.to_cloudevent(told))
        assert self.stage.trigger.request("POST", "/", body, headers)[0] == 200
        [self.workflow] = self.workflows()
        self.ledger.end(self.workflow, pointer="1", registered_version="1")
        assert self.retrain().in_flight

    def check(self) -> None:
        assert self.stage.trigger.request("POST", "/reconcile")[0] == 204
        assert (self.retrain().outcome, self.retrain().workflow) == ("Promoted", self.workflow)
        assert self.workflows() == [self.workflow]

    def workflows(self) -> list[str]:
        return [name for name in self.ledger.workflow_names() if name.startswith(f"aegis-{self.model}-")]

    def retrain(self) -> Retrain:
        retrain = self.ledger.record(self.model, ENVIRONMENT).status.retrain
        assert retrain is not None
        return retrain


SCENARIOS: dict[str, type[Scenario]] = {kind.step: kind for kind in (Fetch, Train, Gate, Sign, Promote, Finish)}


def digest(folder: Path) -> str:
    """Of all files of a folder."""
    return manifest.root_digest(manifest.walk(folder))
