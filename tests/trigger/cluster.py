"""One namespace of a real API server as the trigger's world: its clock ahead of ours, and what others do there."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aegis import events
from aegis.errors import Temporary
from retrain_trigger.kubernetes import Client, KubernetesBudgets, KubernetesLedger, KubernetesWorkflows
from retrain_trigger.model import RETRAIN_LABEL, Record, object_name
from retrain_trigger.trigger import Limits, Sources, Trigger
from tests.cluster.control_plane import ControlPlane
from tests.support import until
from tests.trigger.host import Host, trigger_host
from tests.trigger.world import PREFIX, Ports

OVER = ("Succeeded", "Failed", "Error")
LIMITS = Limits(prefixes=(PREFIX,), budget=1000)


def ports_of(client: Client, namespace: str) -> Ports:
    """The three ports over one client; all in one namespace."""
    return Ports(
        KubernetesLedger(client, namespace),
        KubernetesBudgets(client, namespace),
        KubernetesWorkflows(client, namespace),
    )


def kubernetes_ports(kubeconfig: Path, namespace: str) -> Ports:
    """The same over a client of their own."""
    return ports_of(Client(kubeconfig), namespace)


def trusting(plane: ControlPlane) -> ssl.SSLContext:
    """What a proxy in front of the API server needs."""
    context = ssl.create_default_context(cafile=str(plane.authority))
    context.check_hostname = False
    return context


@dataclass
class ClusterWorld:
    """A namespace with its models, budget and Workflows. `client` is the tests' own, straight to the API server."""

    client: Client
    namespace: str
    ahead: timedelta = timedelta(0)
    began: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def __post_init__(self) -> None:
        self.ports = ports_of(self.client, self.namespace)

    def made(self) -> ClusterWorld:
        """Create the namespace, on an API server that may have started a moment ago."""
        until(self._serves, "the API server stores ManagedModels and Workflows")
        doc = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.client.call("POST", "/api/v1/namespaces", body=doc)
        return self

    def _serves(self) -> bool:
        try:
            return all(self.client.call("GET", self.path(kind)) for kind in ("managedmodels", "workflows"))
        except Temporary:
            return False

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def trigger(self, client: Client | None = None, limits: Limits = LIMITS, ports: Ports | None = None) -> Trigger:
        """One process's trigger; by default over the tests' own client."""
        ports = ports or (self.ports if client is None else ports_of(client, self.namespace))
        sources = Sources(now=lambda: self.now, token=lambda: secrets.token_hex(16), pause=lambda _: None)
        limits = replace(limits, namespace=self.namespace)
        return Trigger(ports.ledger, ports.budgets, ports.workflows, limits, sources)

    def record(self, model: str = "churn") -> Record:
        record = self.ports.ledger.read(object_name("default", model))
        assert record is not None
        return record

    def path(self, kind: str, name: str = "") -> str:
        base = "argoproj.io/v1alpha1" if kind == "workflows" else "aegis.dev/v1alpha1"
        return f"/apis/{base}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def workflows(self) -> list[dict[str, Any]]:
        return list(self.client.pages(self.path("workflows"), {}))

    def workflow_names(self) -> list[str]:
        return [doc["metadata"]["name"] for doc in self.workflows()]

    def open(self) -> list[dict[str, Any]]:
        """Workflows that have not ended."""
        return [doc for doc in self.workflows() if (doc.get("status") or {}).get("phase") not in OVER]

    def set_status(self, **status: Any) -> None:
        """The one open Workflow gets this status, as from Argo."""
        (doc,) = self.open()
        self.client.call("PUT", self.path("workflows", doc["metadata"]["name"]), body={**doc, "status": status})

    def end(self, outcome: str) -> None:
        """The one open Workflow succeeds with this outcome."""
        outputs = {"parameters": [{"name": "outcome", "value": outcome}]}
        self.set_status(phase="Succeeded", finishedAt=events.rfc3339(self.now), outputs=outputs)

    def forget(self, kind: str, name: str) -> None:
        """Delete an object behind the product's back."""
        self.client.call("DELETE", self.path(kind, name))

    def ask(self, token: str, model: str = "churn") -> None:
        """A person labels the object."""
        name = object_name("default", model)
        patch = [{"op": "add", "path": "/metadata/labels", "value": {RETRAIN_LABEL: token}}]
        self.client.call("PATCH", self.path("managedmodels", name), body=patch)


def host_of(plane: ControlPlane, world: ClusterWorld, log: Path, **settings: Any) -> Host:
    """A trigger process that works in this namespace."""
    own = {"namespace": world.namespace, "ledger_namespace": world.namespace, "budget": "1000", **settings}
    host = trigger_host(None, log, **own)
    host.env = {**host.env, "KUBECONFIG": str(plane.kubeconfig(log.with_suffix(".kubeconfig")))}
    return host
