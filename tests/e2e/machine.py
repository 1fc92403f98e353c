"""`aegis up` as a person starts it: a process with free ports, a folder of its own, and an end by its pid."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aegis_cli.stack import State
from retrain_trigger.model import Record, object_name
from tests.storage.servers import clean
from tests.support import free_ports, until
from tests.train_model.datasets import Digits, save_npz

AEGIS = str(Path(sys.executable).with_name("aegis"))


def below(pid: int) -> set[int]:
    """All processes that descend from this one."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
        except OSError:
            continue
    return found


class Machine:
    """One state folder and, while it runs, one `aegis up` on it."""

    def __init__(self, root: Path, env: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.state = State(root / "state")
        self.log = root / "up.log"
        self.env = clean({**(env or {}), "AEGIS_STATE": str(self.state.root)})
        self.ports = dict(zip(("receiver", "trigger", "mlflow"), free_ports(3), strict=True))
        self.config = root / "aegis.yaml"
        self.config.write_text(yaml.safe_dump({"ports": self.ports, "reconcileInterval": "1s", **settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.interrupt()

    def start(self) -> Machine:
        """Start it, and wait until it says that it is ready."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [AEGIS, "up", "--config", str(self.config)], env=self.env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        until(self._ready, "aegis up is ready")
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.told()
        return "Ready." in self.told()

    def told(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> set[int]:
        """As kill -9; the processes that ran below it."""
        children = below(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        self._wait()
        return children

    def interrupt(self) -> int:
        """As Ctrl-C; the exit code."""
        os.kill(self.pid, signal.SIGINT)
        return self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def run(self, *arguments: str, within_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """One `aegis` command against this machine."""
        return subprocess.run(
            [AEGIS, *arguments], env=self.env, capture_output=True, text=True, timeout=within_s, check=False
        )

    def post(self, body: bytes) -> int:
        """Post to the receiver as Alertmanager does; the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["receiver"], timeout=30)
        try:
            connection.request("POST", "/alertmanager", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    # --- what is there ---

    def record(self, model: str, environment: str = "default") -> Record:
        found = self.state.records().read(object_name(environment, model))
        assert found is not None
        return found

    def workflows(self, model: str = "") -> list[dict[str, Any]]:
        """The Workflows, or those of one model in the default environment."""
        name = object_name("default", model) if model else ""
        docs = [stored.doc for stored in self.state.objects().list("Workflow")]
        return [doc for doc in docs if not name or doc["metadata"]["labels"]["aegis.dev/managed-model"] == name]

    def ended(self, model: str, *, within_s: float = 120.0) -> Record:
        """The record of a model once its retrain is over."""

        def over() -> Record | None:
            record = self.record(model)
            return record if record.status.retrain and not record.status.retrain.in_flight else None

        return until(over, f"the end of the retrain of {model}", within_s=within_s)  # type: ignore[return-value]  # true

    def dataset(self, name: str, data: Digits) -> str:
        """Put data where this machine allows it; its URI."""
        save_npz(self.state.datasets / name / "data.npz", data)
        return (self.state.datasets / name).as_uri() + "/"

    def versions(self, model: str) -> list[Any]:
        """All versions of a registered model."""
        return list(self.mlflow().search_model_versions(f"name = '{model}'"))

    def runs(self, model: str, environment: str = "default") -> list[Any]:
        """All MLflow runs of a model."""
        client = self.mlflow()
        experiment = client.get_experiment_by_name(f"{environment}/{model}")
        return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        uri = f"http://127.0.0.1:{self.ports['mlflow']}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command said for scripts."""
    return json.loads(done.stdout)
