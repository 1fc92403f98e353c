"""Where models are, as the commands see it, and a cluster as such a place, over its API server."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from aegis.errors import Conflict, NotFound, Permanent, Temporary
from aegis.events import parse_time, rfc3339
from retrain_trigger.kubernetes import Client, KubernetesLedger, KubernetesWorkflows
from retrain_trigger.model import API_VERSION, REQUESTED_BY, REQUESTED_WHY, RETRAIN_LABEL, Record
from retrain_trigger.ports import Workflows

STEPS = "aegis-steps"
"""The ConfigMap that tells the steps where everything is."""
_ACTOR, _ACTION = "workflows.argoproj.io/actor", "workflows.argoproj.io/action"
"""The labels by which Argo says who did the last thing to a Workflow."""


class Records(Protocol):
    """Ledgers, to look at."""

    def read(self, name: str) -> Record | None: ...

    def records(self) -> Sequence[Record]: ...


class Place(Protocol):
    """This machine (`stack.State`) or a cluster. Everything raises Temporary or Permanent."""

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at a ledger."""

    def records(self) -> Records: ...

    def workflows(self) -> Workflows: ...

    def request(self, name: str, why: str) -> str:
        """Ask for a retrain in one's own name; return the token that the ledger then takes up."""

    def answer(self, workflow: str, refusal: str | None) -> None:
        """Release a Workflow that waits for a person, or refuse it."""

    def mlflow(self) -> str | None:
        """The URL of MLflow, for links."""

    def report(self, run_id: str) -> str | None:
        """Where the model card of a run is, or the command that brings it."""

    def logs(self, workflow: str) -> str | None:
        """Where a Workflow's logs are, or the command that shows them."""


def _client() -> Client:
    named = os.environ.get("KUBECONFIG")  # before a pod's account, which the trigger's client would prefer
    return Client(Path(named) if named else None)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that KUBECONFIG, or the pod's service account, names."""

    namespace: str
    workflow_namespace: str
    client: Client = field(default_factory=_client)
    poll_s: float = 1.0

    def __post_init__(self) -> None:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of each retry; one end is enough

    def records(self) -> KubernetesLedger:
        return KubernetesLedger(self.client, self.namespace)

    def workflows(self) -> KubernetesWorkflows:
        return KubernetesWorkflows(self.client, self.workflow_namespace)

    def whoami(self) -> tuple[str, datetime]:
        """The caller's name as the API server knows it, and the server's time."""
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        doc = self.client.call("POST", f"/apis/{kind['apiVersion']}/selfsubjectreviews", body=kind)
        return str(doc["status"]["userInfo"]["username"]), parse_time(doc["metadata"]["creationTimestamp"])

    def request(self, name: str, why: str) -> str:
        token = secrets.token_hex(8)
        notes = {REQUESTED_BY: self.whoami()[0], REQUESTED_WHY: why}
        patch = {"metadata": {"labels": {RETRAIN_LABEL: token}, "annotations": notes}}
        self.client.call("PATCH", f"/apis/{API_VERSION}/namespaces/{self.namespace}/managedmodels/{name}", body=patch)
        return token

    def answer(self, workflow: str, refusal: str | None) -> None:
        """As `argo resume` and `argo node set --phase Failed`, which write the node's status into the Workflow."""
        person, now = self.whoami()
        phase, message, action = "Succeeded", f"approved by {person}", "Resume"
        if refusal is not None:
            phase, message, action = "Failed", f"rejected by {person}: {refusal}", "Stop"
        ended = {"phase": phase, "message": message, "finishedAt": rfc3339(now.replace(microsecond=0))[:19] + "Z"}
        for _ in range(10):
            doc = self.workflows().get(workflow)
            if doc is None:
                raise NotFound(f"the Workflow {workflow} is gone")
            metadata = {
                "resourceVersion": doc["metadata"]["resourceVersion"],
                "labels": {_ACTOR: _label(person), _ACTION: action},
            }
            patch = {"metadata": metadata, "status": {"nodes": dict.fromkeys(_asked(workflow, doc), ended)}}
            try:
                path = f"/apis/argoproj.io/v1alpha1/namespaces/{self.workflow_namespace}/workflows/{workflow}"
                self.client.call("PATCH", path, body=patch)
            except Conflict:
                continue  # its controller was quicker
            return
        raise Temporary(f"{workflow}: its controller writes all the time; try again")

    def mlflow(self) -> str | None:
        try:
            doc = self.client.call("GET", f"/api/v1/namespaces/{self.workflow_namespace}/configmaps/{STEPS}")
        except (Temporary, Permanent):
            return None  # only a link
        uri = (doc.get("data") or {}).get("MLFLOW_TRACKING_URI")
        return re.sub("//[^/]*@", "//", uri) if uri else None  # who puts a password there shall not see it shown

    def report(self, run_id: str) -> str | None:
        return f"mlflow artifacts download --run-id {run_id} --artifact-path model_card.html"

    def logs(self, workflow: str) -> str | None:
        selector = f"workflows.argoproj.io/workflow={workflow}"
        return f"kubectl -n {self.workflow_namespace} logs -l {selector} --prefix --tail=-1"


def _asked(workflow: str, doc: dict[str, Any]) -> list[str]:
    """The nodes of a Workflow that wait for a person."""
    status = doc.get("status") or {}
    nodes = status.get("nodes") or {}
    found = [n for n, node in nodes.items() if node.get("type") == "Suspend" and node.get("phase") == "Running"]
    if not found:
        packed = any(status.get(key) for key in ("compressedNodes", "offloadNodeStatusVersion"))
        hint = f": Argo keeps its nodes elsewhere, so use `argo resume {workflow}`" if packed else ""
        raise Permanent(f"workflow {workflow} doesn't wait for a person{hint}")
    return found


def _label(text: str) -> str:
    """A name as the value of a label, cut as Argo cuts it: the end is kept."""
    return re.sub(r"^[^A-Za-z0-9]*|[^A-Za-z0-9]*$", "", re.sub(r"[^-_.A-Za-z0-9]", "-", text)[-63:])
