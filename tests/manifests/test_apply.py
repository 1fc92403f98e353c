"""The overlays at a real API server: applied, and applied again."""

from __future__ import annotations

import json

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.manifests.conftest import Api, account
from tests.manifests.overlays import KNATIVE, OVERLAYS, Json, built, key, pods, step_pod, workflow_template

POD = "/api/v1/namespaces/{}/pods?dryRun=All"


def objects(plane: ControlPlane, name: str) -> dict[tuple[str, str, str], Json]:
    """Every object of an overlay as it is stored, resourceVersion and owners of fields included."""
    overlay = str(KNATIVE / "overlays" / name)
    found = json.loads(plane.kubectl("get", "-k", overlay, "-o", "json", "--show-managed-fields").stdout)["items"]
    for each in found:
        if each["kind"] == "PersistentVolumeClaim":  # stored once more by its first update, whatever that says
            del each["metadata"]["resourceVersion"]
    return {key(each): each for each in found}


@pytest.mark.parametrize("name", OVERLAYS)
def test_applied_again_nothing_changes(plane: ControlPlane, kubectl: str, name: str) -> None:
    command = ["apply", "--server-side", "--force-conflicts", "-k", str(KNATIVE / "overlays" / name)]
    first = plane.kubectl(*command)
    assert "arning" not in first.stderr
    before = objects(plane, name)
    assert len(before) == len(built(kubectl, name))
    plane.kubectl(*command)
    assert objects(plane, name) == before


def test_applied_again_the_budget_keeps_what_the_trigger_wrote(installed: Api, kubectl: str) -> None:
    path = "/api/v1/namespaces/aegis/configmaps/aegis-budget"
    trigger = account("aegis", "retrain-trigger")
    written = {"data": {"budget": '{"reservations": {}}'}}
    assert "data" not in next(d for d in built(kubectl, "plain") if d["metadata"]["name"] == "aegis-budget")
    assert installed("PATCH", path, written, user=trigger, kind="application/merge-patch+json")[0] == 200
    installed.plane.kubectl("apply", "--server-side", "-k", str(KNATIVE / "overlays" / "plain"))
    assert installed("GET", path, user=trigger)[1]["data"] == written["data"]


def test_every_pod_of_ours_fits_the_restricted_standard(installed: Api, overlay: tuple[Json, ...]) -> None:
    accounts = {"Deployment mlflow", "CronJob reconcile"}  # of the account `default`, which a controller makes
    for name, template in pods(overlay):
        spec = dict(template["spec"])
        for field in ("containerConcurrency", "timeoutSeconds"):  # Knative's own
            spec.pop(field, None)
        if name in accounts:
            spec["serviceAccountName"] = "alert-receiver"
        spec["containers"] = [_with_ports(c) for c in spec["containers"]]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "aegis"}, "spec": spec}
        status, answer = installed("POST", POD.format("aegis"), pod)
        assert status == 201, (name, answer["message"])


def _with_ports(container: Json) -> Json:
    """Knative fills in the port of a probe; Kubernetes wants it written."""
    made = dict(container)
    for probe in ("livenessProbe", "readinessProbe"):
        if probe in made:
            made[probe] = {**made[probe], "httpGet": {"port": 8080, **made[probe]["httpGet"]}}
    return made


@pytest.mark.parametrize("step", ["train", "gate", "sign", "promote", "finished", "rollback", "resign"])
def test_the_pod_of_each_step_is_admitted(installed: Api, kubectl: str, step: str) -> None:
    template = "aegis-champion" if step in ("rollback", "resign") else "aegis-retrain"
    pod = step_pod(workflow_template(built(kubectl, "plain"), template), step)
    status, answer = installed("POST", POD.format("aegis-workflows"), pod)
    assert status == 201, answer["message"]
