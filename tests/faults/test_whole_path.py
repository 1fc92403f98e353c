"""From the alert to the promoted model, with something going wrong all along it, and processes killed in between.

Alert → receiver → trigger with its ledger → runner with the WorkflowTemplate → the steps → MLflow and object store: all
of it real processes, each pair with a fault proxy in between. What a supervisor would do, a test does here: it starts
again who died, and sends an alert again that was not answered 2xx, as Alertmanager does.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from aegis import package, pointer, signature
from aegis.storage import Store, open_store
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Retrain
from sign_model import keys
from tests.faults.nursery import ROOT
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.faults.stage import BUCKET, DATA, IMPATIENT, LIGHT, mlflow_client, simplify
from tests.storage.servers import clean
from tests.support import until
from tests.trigger.host import Host, receiver_host, trigger_host
from tests.trigger.world import World, new_uid

MODELS = f"s3://{BUCKET}/whole"
SPEC = {"trainer": {"module": "nearest:fit"}, "evaluationUri": f"{DATA}/judge"}
NAMES = ("x-one", "x-two", "x-three", "x-four")


@dataclass
class Chain:
    """Everything that runs, and what is seen of it from outside."""

    home: Path
    receiver: Host
    trigger: Host
    proxies: Mapping[str, FaultProxy]
    store: Store
    client: Any
    runner: subprocess.Popen[bytes] | None = None
    restarts: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> World:
        return World(self.home / "ledger.db")

    def own(self, model: str) -> None:
        """What the model's owner decided: a trainer of their own, and what judges."""
        LocalLedger(self.ledger.objects, new_uid).set_spec("default", model, SPEC, datetime.now(UTC))

    def start_runner(self) -> None:
        command = [sys.executable, "-m", "tests.faults.runner_process", str(self.home / "runner.json")]
        with (self.home / "runner.log").open("ab") as log:
            self.runner = subprocess.Popen(command, env=clean({}), cwd=ROOT, stdout=log, stderr=log)

    def runner_pid(self) -> int:
        assert self.runner is not None
        return self.runner.pid

    def stop_runner(self) -> None:
        if self.runner is not None and self.runner.poll() is None:
            self.runner.send_signal(signal.SIGTERM)
            try:
                self.runner.wait(30)
            except subprocess.TimeoutExpired:
                self.runner.kill()
                self.runner.wait()

    def supervise(self) -> None:
        """Start again who was killed."""
        for name, host in (("receiver", self.receiver), ("trigger", self.trigger)):
            assert host.process is not None
            if host.process.poll() is not None:
                assert host.process.returncode == -signal.SIGKILL, host.text()
                self.restarts.append(name)
                host.start().ready()
        assert self.runner is not None
        if self.runner.poll() is not None:
            assert self.runner.returncode == -signal.SIGKILL, (self.home / "runner.log").read_text()
            self.restarts.append("runner")
            self.start_runner()

    def deliver(self, body: bytes) -> list[int]:
        """Send the alerts until they are answered 200; the answers, 0 for none."""
        answers: list[int] = []

        def once() -> bool:
            self.supervise()
            try:
                headers = {"content-type": "application/json"}
                answers.append(self.receiver.request("POST", "/alertmanager", body, headers)[0])
            except OSError:
                answers.append(0)
                assert self.receiver.process is not None
                self.receiver.process.wait(10)
            return answers[-1] == 200

        until(once, within_s=60, what="a 200 for the alerts")
        return answers

    def settle(self) -> None:
        """Until every retrain is over, as the ledger has it."""

        def over() -> bool:
            self.supervise()
            assert self.trigger.request("POST", "/reconcile")[0] == 204
            return not any(self.retrain(name).in_flight for name in NAMES)

        until(over, within_s=240, what="the end of all retrains")

    # --- what there is of a model

    def retrain(self, model: str) -> Retrain:
        retrain = self.ledger.record(model).status.retrain
        assert retrain is not None
        return retrain

    def workflows(self, model: str) -> list[str]:
        return [name for name in self.ledger.workflow_names() if name.startswith(f"aegis-{model}-")]

    def codes(self, model: str) -> dict[str, str]:
        """The exit code of each try of each step of the one Workflow, in the order of their names."""
        [name] = self.workflows(model)
        stored = self.ledger.objects.get("Workflow", name)
        assert stored is not None
        nodes = stored.doc["status"]["nodes"].values()
        return {node["name"]: str(node["exitCode"]) for node in nodes if node["type"] == "Pod"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tracking: int, storage: Mapping[str, str]) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("whole")
    keys.ensure(home / "keys" / "signing.pem", home / "trusted")
    with ExitStack() as within:
        trigger = trigger_host(
            home / "ledger.db", home / "trigger.log", dataset_prefixes=DATA, models_uri=MODELS,
            trusted_keys=str(home / "trusted"),
        )  # fmt: skip
        trigger.env = {**trigger.env, **storage}
        within.enter_context(trigger)
        ports = {
            "receiver to sink": trigger.port,
            "finish to trigger": trigger.port,
            "steps to MLflow": tracking,
            "steps to object store": int(storage["AWS_ENDPOINT_URL"].rpartition(":")[2]),
        }
        proxies = {
            name: within.enter_context(FaultProxy(name, port, simplify=simplify)) for name, port in ports.items()
        }
        receiver = receiver_host(proxies["receiver to sink"].url, home / "receiver.log", log_level="error")
        within.enter_context(receiver)
        given = {
            "ledger": str(home / "ledger.db"),
            "state": str(home),
            "trigger": trigger.url,
            "steps": {
                "AEGIS_MODELS_URI": MODELS,
                "AEGIS_DATASET_PREFIXES": DATA,
                "AEGIS_SIGNING_KEY": (home / "keys" / "signing.pem").as_uri(),
                "AEGIS_TRUSTED_KEYS": str(home / "trusted"),
                "AEGIS_SINK": f"{proxies['finish to trigger'].url}/",
                "MLFLOW_TRACKING_URI": proxies["steps to MLflow"].url,
            },
            "secrets": {
                "aegis-storage": {**storage, "AWS_ENDPOINT_URL": proxies["steps to object store"].url},
                "aegis-mlflow": {**IMPATIENT, **LIGHT},  # no secrets, but the way to set variables of steps
            },
        }
        (home / "runner.json").write_text(json.dumps(given))
        chain = Chain(home, receiver, trigger, proxies, open_store(MODELS, env=storage), mlflow_client(tracking))
        within.callback(chain.stop_runner)
        trigger.ready()
        receiver.ready()
        chain.start_runner()
        yield chain


def alert(name: str) -> bytes:
    """A delivery about one model."""
    found = {
        "status": "firing",
        "labels": {"alertname": "ModelDrift", "model_name": name, "severity": "warning"},
        "annotations": {"dataset_uri": f"{DATA}/new"},
        "startsAt": datetime.now(UTC).isoformat(),
    }
    return json.dumps({"version": "4", "status": "firing", "alerts": [found]}).encode()


def plan(chain: Chain) -> list[Fault]:
    """What goes wrong, and for which model; each exactly once but for the sink that refuses x-two four times."""
    where = f"/{BUCKET}/whole/packages/default/<model>/<digest>"
    api = "/api/2.0/mlflow"
    faults = {
        "receiver to sink": [
            Fault(Kind.ERROR_AFTER, about="x-one"),
            Fault(Kind.REFUSE, about="x-two", times=4),
            Fault(Kind.KILL_AFTER, about="x-three", whom="trigger", pid=lambda: chain.trigger.pid),
            Fault(Kind.KILL_AFTER, about="x-four"),
        ],
        "steps to MLflow": [
            Fault(Kind.KILL_AFTER, method="POST", path=f"{api}/runs/create", about="x-one"),
            Fault(Kind.ERROR_AFTER, method="POST", path=f"{api}/model-versions/create", about="x-two"),
        ],
        "steps to object store": [
            Fault(Kind.KILL_BEFORE, method="PUT", path=f"{where}/result.json", about="x-two"),
            Fault(Kind.KILL_AFTER, method="PUT", path=".*/pointer.json", about="x-three"),
            Fault(Kind.ERROR_AFTER, method="PUT", path=f"{where}/model.tar", about="x-four"),
            Fault(
                Kind.KILL_AFTER,
                method="PUT",
                path=f"{where}/model.sig",
                about="x-four",
                whom="runner",
                pid=chain.runner_pid,
            ),
        ],
        "finish to trigger": [Fault(Kind.KILL_BEFORE, about="x-one")],
    }
    return [chain.proxies[name].add(fault) for name, planned in faults.items() for fault in planned]


def test_whatever_goes_wrong_each_model_ends_with_one_workflow_one_run_and_one_version(chain: Chain) -> None:
    faults = plan(chain)
    bodies = {name: alert(name) for name in NAMES}
    for name in NAMES:
        chain.own(name)
    answers = {name: chain.deliver(body) for name, body in bodies.items()}
    assert answers == {"x-one": [503, 200], "x-two": [503, 503, 200], "x-three": [503, 200], "x-four": [0, 200]}
    chain.settle()
    assert [(fault.kind, fault.about) for fault in faults if fault.fired != fault.times] == []
    assert sorted(chain.restarts) == ["receiver", "runner", "trigger"]
    for name in NAMES:
        only_one_of_each(chain, name)

    assert {name: chain.deliver(body) for name, body in bodies.items()} == {name: [200] for name in NAMES}
    assert chain.trigger.request("POST", "/reconcile")[0] == 204
    for name in NAMES:
        assert chain.ledger.record(name).status.history[-1].reason == "Cooldown"
        only_one_of_each(chain, name)
    killed = {"x-one": ["train(0)", "onExit.finished"], "x-two": ["sign(0)"], "x-three": ["promote(0)"], "x-four": []}
    for name in NAMES:
        codes = chain.codes(name)
        assert set(codes.values()) <= {"0", "137"}
        # Not equal: the runner, killed for x-four, may die before it notes how another's step ended, and runs it again.
        assert {pod for pod, code in codes.items() if code == "137"} <= set(killed[name])


def only_one_of_each(chain: Chain, model: str) -> None:
    """One Workflow, run, logged model, version, package and move of the pointer, and each names the others."""
    [workflow], retrain, client = chain.workflows(model), chain.retrain(model), chain.client
    assert (retrain.outcome, retrain.workflow) == ("Promoted", workflow)

    experiment = client.get_experiment_by_name(f"default/{model}")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (retrain.run_id, "FINISHED")
    assert run.data.tags["aegis.workflow_uid"] == retrain.uid
    [logged] = client.search_logged_models([experiment.experiment_id])
    [version] = client.search_model_versions(f"name = '{model}'")
    assert (version.version, version.run_id) == (retrain.registered_version, run.info.run_id)
    assert (version.source, logged.status) == (f"models:/{logged.model_id}", "READY")
    assert client.get_model_version_by_alias(model, "champion").version == version.version

    trusted = signature.load_keys(chain.home / "trusted")
    found = pointer.read(chain.store, trusted, "default", model)
    assert found is not None
    now = found[0]
    assert (now.serial, now.workflow, now.model_version) == (1, retrain.uid, version.version)
    assert version.tags["aegis.tar_sha256"] == now.tar_sha256
    folders = {entry.path.split("/")[3] for entry in chain.store.list() if f"packages/default/{model}/" in entry.path}
    assert folders == {now.tar_sha256}
    with TemporaryDirectory() as folder:
        package.fetch(chain.store, trusted, "default", model, now.tar_sha256, Path(folder) / "model")
