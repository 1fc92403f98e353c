"""The cluster's adapters: ManagedModels, the budget's ConfigMap and Argo Workflows through one Kubernetes client.

Every call has a timeout. Whatever the API server or the way to it says is translated here, once: a lost
compare-and-set is Conflict, a name that is taken AlreadyExists, an object that the API server will never accept
Permanent, everything else Temporary, because a person or time can mend it and nothing may be lost meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary

from .budget import Budget
from .model import (
    API_VERSION,
    RETRAIN_LABEL,
    Record,
    Status,
    from_document,
    ledger_document,
    object_name,
    parsed,
    to_doc,
)
from .workflow import MODEL_LABEL, model_label

TIMEOUT_S = (2.0, 5.0)
"""To connect, and for an answer: the whole request then ends before a Broker's own timeout, which is 8 s or more."""
PAGE = 500
"""Objects of one answer to a list, as kubectl asks for."""
BUDGET = "aegis-budget"
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_JSON_PATCH, _MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"


class Refused(Temporary):
    """The API server knows who asks and says no, or does not know who asks: for a person to mend."""

    exit_code = 77


class NotInstalled(Temporary):
    """The API server does not know the kind: its CustomResourceDefinition is missing."""

    exit_code = 69


class Unreachable(Temporary):
    """No API server is configured, or it does not answer."""

    exit_code = 69


class Client:
    """The `kubernetes` package's client, made on first use: a host may fork before."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """By default as the pod's service account, or outside a cluster by KUBECONFIG."""
        self._kubeconfig = kubeconfig
        self._made: Any = None

    def call(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None, *, accept: str = ""
    ) -> dict[str, Any]:
        """One request, JSON in and out; a PATCH with a list is a JSON patch, else a merge patch.

        Raises NotFound, AlreadyExists, Conflict, Permanent or Temporary.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": accept or "application/json", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = _JSON_PATCH if isinstance(body, list) else _MERGE_PATCH
        try:
            found: tuple[Any, int, Any] = self._client().call_api(
                path, method, query_params=list((query or {}).items()), header_params=headers, body=body,
                response_type="object", auth_settings=["BearerToken"], _request_timeout=TIMEOUT_S,
            )  # fmt: skip
        except ApiException as exc:
            raise _translated(exc.status, exc.body, f"{method} {path}") from exc
        except (HTTPError, OSError, ValueError) as exc:
            told = f"the API server {self._client().configuration.host} did not answer"
            why = getattr(exc, "reason", None) or exc  # what the last of several tries met, such as a certificate
            raise Unreachable(f"{told}: {type(why).__name__} at {method} {path}: {why}"[:500]) from exc
        document = found[0]
        if not isinstance(document, dict):  # some proxy's page of greeting
            raise Temporary(f"the answer is no JSON object ({method} {path})")
        return document

    def pages(self, path: str, query: Mapping[str, Any], *, metadata_only: bool = False) -> Iterator[dict[str, Any]]:
        """The items of a list, page by page. A list that expires meanwhile is Temporary."""
        more = ""
        while True:
            asked = {**query, "limit": PAGE, **({"continue": more} if more else {})}
            page = self.call("GET", path, asked, accept=_METADATA if metadata_only else "")
            yield from page.get("items") or ()  # an empty list of metadata has null
            more = (page.get("metadata") or {}).get("continue") or ""
            if not more:
                return

    def _client(self) -> Any:
        if self._made is None:
            from kubernetes import client

            configuration = client.Configuration()
            _load(configuration, self._kubeconfig)
            configuration.retries = _retries()
            configuration.connection_pool_maxsize = 32
            self._made = client.ApiClient(configuration)
            self._made.user_agent = "aegis"
        return self._made


def _retries() -> Any:
    """Connecting is tried three times. A request that was sent once is sent again only if it changes nothing, and if
    the connection broke: two more timeouts would outlast whoever waits for us."""
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util import Retry

    class Retries(Retry):
        def increment(self, *args: Any, **named: Any) -> Any:
            if isinstance(named.get("error"), ReadTimeoutError):
                raise named["error"]
            return super().increment(*args, **named)

    return Retries(
        total=2, redirect=0, status=0, allowed_methods={"GET"}, backoff_factor=0.05, respect_retry_after_header=False
    )


def _load(configuration: Any, kubeconfig: Path | None) -> None:
    from kubernetes import config

    try:
        if kubeconfig is None and SERVICE_ACCOUNT_NAMESPACE.exists():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(str(kubeconfig) if kubeconfig else None, client_configuration=configuration)
    except Exception as exc:  # the package raises whatever it trips over in a person's file
        told = str(exc).partition("\n")[0] if isinstance(exc, config.ConfigException) else "not a kubeconfig"
        raise Unreachable(f"no cluster is configured: {told}") from exc


def _translated(status: int | None, body: object, where: str) -> Exception:
    """What an answer of the API server means to us."""
    try:
        doc = json.loads(body) if isinstance(body, str | bytes) else {}
    except ValueError:
        doc = {}
    doc = doc if isinstance(doc, dict) else {}
    reason, message = str(doc.get("reason") or ""), str(doc.get("message") or "")[:500]
    told = f"{message or status} ({where})"
    if status == 409:
        return AlreadyExists(told) if reason == "AlreadyExists" else Conflict(told)
    if status == 404:
        # Without a reason it is the path that does not exist, so the kind: its CustomResourceDefinition is missing.
        return NotFound(told) if reason == "NotFound" else NotInstalled(f"the cluster does not know this kind: {where}")
    if status in (401, 403):
        return Refused(told)
    if status == 422:
        return Permanent(f"the API server refused the object: {told}")
    return Temporary(told)


def own_namespace(default: str = "aegis") -> str:
    """The namespace that this process runs in, from the service account's mount."""
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or default
    except OSError:
        return default


@dataclass(frozen=True, slots=True)
class KubernetesLedger:
    """ManagedModels of one namespace; the status subresource is the ledger."""

    client: Client
    namespace: str
    announce: Callable[[Record, Status], None] | None = None
    """Called after each write with the record as it was and its new status, for Kubernetes Events."""

    @property
    def _path(self) -> str:
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/managedmodels"

    def read(self, name: str) -> Record | None:
        try:
            return _record(self.client.call("GET", f"{self._path}/{name}"))
        except NotFound:
            return None

    def create(self, environment: str, model: str, status: Status, now: datetime) -> Record:  # noqa: ARG002  # the API server's clock stamps it
        doc = {
            "apiVersion": API_VERSION,
            "kind": "ManagedModel",
            "metadata": {"name": object_name(environment, model)},
            "spec": {"environment": environment, "model": model},
        }
        try:
            record = _record(self.client.call("POST", self._path, body=doc))
        except AlreadyExists as exc:
            raise Conflict(str(exc)) from exc
        except Permanent as exc:
            raise Temporary(f"the CustomResourceDefinition does not match this version: {exc}") from exc
        if status == Status():
            return record  # nothing to see yet: what is decided about it is written next, or its event comes again
        return self.write(record, status, pending=True)  # a status sent with a new object is dropped

    def write(self, record: Record, status: Status, *, pending: bool) -> Record:
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": record.version},
            {"op": "add", "path": "/status", "value": ledger_document(record, status, pending=pending)},
        ]
        try:
            doc = self.client.call("PATCH", f"{self._path}/{record.name}/status", body=patch)
        except NotFound as exc:
            raise Conflict(f"{record.name} is gone") from exc
        except Permanent as exc:
            # Not this event's fault: it must come again once the definition has been applied.
            raise Temporary(f"the CustomResourceDefinition does not match this version: {exc}") from exc
        written = replace(record, status=status, version=str(doc["metadata"]["resourceVersion"]))
        if self.announce is not None:
            self.announce(record, status)
        return written

    def pending(self) -> Iterable[str]:
        names = {
            str(item["metadata"]["name"])
            for item in self.client.pages(self._path, {"fieldSelector": "status.pending=true"}, metadata_only=True)
        }
        for item in self.client.pages(self._path, {"labelSelector": RETRAIN_LABEL}):
            token = item["metadata"]["labels"][RETRAIN_LABEL]
            if token not in ((item.get("status") or {}).get("tokens") or ()):
                names.add(str(item["metadata"]["name"]))
        return sorted(names)

    def count(self) -> int:
        page = self.client.call("GET", self._path, {"limit": 1}, accept=_METADATA)
        return len(page.get("items") or ()) + int((page.get("metadata") or {}).get("remainingItemCount") or 0)

    def records(self) -> list[Record]:
        """All records, for people. One that is not valid is left out: `kubectl get mm` shows it."""
        found = []
        for doc in self.client.pages(self._path, {}):
            try:
                found.append(_record(doc))
            except Permanent:
                continue
        return found


def _record(doc: Mapping[str, Any]) -> Record:
    return from_document(doc, str(doc["metadata"]["resourceVersion"]))


@dataclass(frozen=True, slots=True)
class KubernetesBudgets:
    """The budget in a ConfigMap beside the ledgers."""

    client: Client
    namespace: str

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    def read(self) -> tuple[Budget, str]:
        try:
            doc = self.client.call("GET", f"{self._path}/{BUDGET}")
        except NotFound:
            return Budget(), ""
        text = (doc.get("data") or {}).get("budget", "{}")
        try:
            return parsed(Budget, json.loads(text), "budget"), str(doc["metadata"]["resourceVersion"])
        except (Permanent, ValueError, AttributeError) as exc:
            # No event's fault: until a person mends or deletes it, nothing may count as decided.
            raise Temporary(f"the budget in ConfigMap {self.namespace}/{BUDGET} cannot be read: {exc}") from exc

    def write(self, budget: Budget, version: str) -> None:
        data = {"budget": json.dumps(to_doc(budget), separators=(",", ":"), sort_keys=True)}
        try:
            if version:
                patch = [
                    {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
                    {"op": "add", "path": "/data", "value": data},
                ]
                self.client.call("PATCH", f"{self._path}/{BUDGET}", body=patch)
            else:
                doc = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUDGET}, "data": data}
                self.client.call("POST", self._path, body=doc)
        except (AlreadyExists, NotFound) as exc:
            raise Conflict(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class KubernetesWorkflows:
    """Argo Workflows of one namespace."""

    client: Client
    namespace: str

    @property
    def _path(self) -> str:
        return f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows"

    def create(self, manifest: dict[str, Any], now: datetime) -> str:  # noqa: ARG002  # the API server's clock stamps it
        return str(self.client.call("POST", self._path, body=manifest)["metadata"]["uid"])

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            return self.client.call("GET", f"{self._path}/{name}")
        except NotFound:
            return None

    def of_model(self, managed_model: str) -> list[dict[str, Any]]:
        return list(self.client.pages(self._path, {"labelSelector": f"{MODEL_LABEL}={model_label(managed_model)}"}))
