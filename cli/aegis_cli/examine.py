"""What `aegis doctor` looks at: this machine's state, or a cluster through its API server. `doctor` judges it.

It changes nothing but one object of its own in the bucket of models, `doctor/probe`.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aegis import pointer, signature
from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary
from aegis.names import alias_of
from aegis.signature import Keys, Untrusted
from aegis.storage import open_store
from retrain_trigger.kubernetes import Client, NotInstalled
from retrain_trigger.local import MODELS
from retrain_trigger.model import API_VERSION, Record

from . import doctor
from .cluster import STEPS, Cluster, Records
from .doctor import OK, UNKNOWN, WRONG, Alias, Answer, Finding, Right, Seen, Unseen
from .stack import NotRunning, State, call, shipped, template_path

PROBE = "doctor/probe"
MAX_ALIASES = 50
"""Models whose alias is compared: each costs three requests."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MAKE_SIGNING = """\
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out signing-key.pem
openssl pkey -in signing-key.pem -pubout -out signer.pub
kubectl -n aegis-workflows create secret generic aegis-signing --from-file=signing-key.pem
kubectl -n aegis-workflows create configmap aegis-trusted-keys --from-file=signer.pub"""
_TRUST_SIGNING = """\
kubectl -n aegis-workflows get secret aegis-signing -o 'jsonpath={.data.signing-key\\.pem}' | base64 -d | \
openssl pkey -pubout
kubectl -n aegis-workflows edit configmap aegis-trusted-keys   # add it as signer.pub, remove what is no key"""


# --- one machine --------------------------------------------------------------------------------------------------


def machine(state: State, mlflow: str | None) -> Iterator[Finding]:
    """The findings about one machine's state folder and what runs from it."""
    try:
        urls = state.urls()
    except NotRunning as exc:
        yield Finding("state", WRONG, str(exc), "aegis up")
        return
    for name in ("receiver", "trigger"):
        answer = _ask(urls[name], "/health/readiness")
        ready = isinstance(answer, Answer) and answer.status == 200
        said = answer if isinstance(answer, Unseen) else f"answers {answer.status}: {answer.body[:200]}"
        yield Finding(name, OK if ready else WRONG, said, f"aegis up   # its log: {state.root / 'logs' / name}.log")
    try:
        yield doctor.models([stored.doc for stored in state.objects().list(MODELS)])
    except (Temporary, Permanent) as exc:
        yield Finding("models", WRONG, str(exc), f"ls -l {state.ledger}")
    side = {"keys/seal.key": _digest(_file(state.root / "keys" / "seal.key"))}
    yield replace(doctor.seal([side, side]), mend="aegis up   # makes one")
    trusted = _trusted(_file(path) for path in state.trusted.glob("*.pub"))
    mend = f"aegis up   # makes and trusts what is missing; first move away what is no key in {state.root / 'keys'}"
    yield doctor.signing(_hint(_file(state.signing_key)), trusted, mend, mend)
    uri = urls["mlflow"]
    yield from _stores(state.records(), state.models.as_uri(), {}, trusted, uri, mlflow or uri, local=True)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- a cluster ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """Reads through the API server; of what cannot be seen it says why."""

    client: Client

    def get(self, path: str) -> Seen:
        try:
            return self.client.call("GET", path)
        except (NotFound, NotInstalled):
            return None
        except (Temporary, Permanent) as exc:
            return Unseen(exc)

    def items(self, path: str) -> list[dict[str, Any]] | Unseen:
        try:
            return list(self.client.pages(path, {}))
        except (NotFound, NotInstalled):
            return []
        except (Temporary, Permanent) as exc:
            return Unseen(exc)

    def data(self, kind: str, namespace: str, name: str) -> Mapping[str, str] | Unseen | None:
        """What a ConfigMap or a Secret holds."""
        seen = self.get(f"/api/v1/namespaces/{namespace}/{kind}/{name}")
        return (seen.get("data") or {}) if isinstance(seen, Mapping) else seen

    def allowed(self, account: tuple[str, str], asked: Iterable[Right]) -> Mapping[Right, bool] | Unseen:
        """What a service account may do, by a SubjectAccessReview each."""
        namespace, name = account
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        who = {"user": f"system:serviceaccount:{namespace}:{name}", "groups": groups}
        version, found = "authorization.k8s.io/v1", {}
        for right in asked:
            resource, _, part = right.resource.partition("/")
            what = {
                "verb": right.verb, "group": right.group, "resource": resource, "subresource": part,
                "namespace": right.namespace, "name": right.name,
            }  # fmt: skip
            body = {"apiVersion": version, "kind": "SubjectAccessReview", "spec": {**who, "resourceAttributes": what}}
            try:
                doc = self.client.call("POST", f"/apis/{version}/subjectaccessreviews", body=body)
            except (Temporary, Permanent) as exc:
                return Unseen(exc)
            found[right] = bool(doc["status"].get("allowed"))
        return found


def cluster(place: Cluster, mlflow: str | None) -> Iterator[Finding]:
    """The findings about a cluster. Raises Temporary if there is none to ask."""
    yield doctor.clock("the API server", place.whoami()[1], datetime.now(UTC))
    look, functions, workflows = Look(place.client), place.namespace, place.workflow_namespace
    for namespace in (functions, workflows):
        yield doctor.judged(f"namespace {namespace}", look.get(f"/api/v1/namespaces/{namespace}"), doctor.APPLY)
    path = shipped("crd/managedmodel.yaml")
    seen = look.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/managedmodels.aegis.dev")
    yield doctor.definition(seen, yaml.safe_load(path.read_text()), f"kubectl apply --server-side -f {path}")
    yield from _argo(look, workflows)
    seen = look.get(f"/apis/argoproj.io/v1alpha1/namespaces/{workflows}/workflowtemplates/aegis-retrain")
    yield doctor.template(seen, yaml.safe_load(template_path().read_text()))
    for account, must in doctor.needed(functions, workflows).items():
        called = "/".join(account)
        seen = look.get(f"/api/v1/namespaces/{account[0]}/serviceaccounts/{account[1]}")
        asked = dict.fromkeys([*must, *doctor.dangerous(functions, workflows)])
        yield (
            doctor.judged(f"account {called}", seen, doctor.APPLY)
            if seen is None
            else doctor.rights(called, must, look.allowed(account, asked))
        )
    yield from _functions(look, functions)
    docs = look.items(f"/apis/{API_VERSION}/namespaces/{functions}/managedmodels")
    yield Finding("models", UNKNOWN, docs) if isinstance(docs, Unseen) else doctor.models(docs)
    config = look.data("configmaps", workflows, STEPS)
    if not isinstance(config, Mapping):
        yield doctor.judged(f"ConfigMap {STEPS}", config, doctor.APPLY)
        return
    pems = look.data("configmaps", workflows, "aegis-trusted-keys")
    trusted = (
        pems
        if isinstance(pems, Unseen)
        else _trusted(pem.encode() for name, pem in (pems or {}).items() if name.endswith(".pub"))
    )
    yield doctor.signing(
        _signer(look, workflows, config.get("AEGIS_SIGNING_KEY", "")), trusted, _MAKE_SIGNING, _TRUST_SIGNING
    )
    uri = config.get("MLFLOW_TRACKING_URI", "")
    yield from _stores(place.records(), config.get("AEGIS_MODELS_URI", ""), os.environ, trusted, uri, mlflow or uri)


def _argo(look: Look, workflows: str) -> Iterator[Finding]:
    kinds = look.get("/apis/argoproj.io/v1alpha1")
    yield doctor.argo_kinds(kinds)
    deployments = look.items("/apis/apps/v1/deployments")
    if isinstance(deployments, Unseen):  # a narrower right may do
        deployments = look.items("/apis/apps/v1/namespaces/argo/deployments") or deployments
    found = deployments if isinstance(deployments, Unseen) else doctor.controllers(deployments)
    yield doctor.argo_version(found)
    controller: Seen = Unseen("no controller was found, so its ConfigMap was not looked at")
    if found and not isinstance(found, Unseen):
        doc, container = found[0]
        words = [word for text in container.get("args") or () for word in str(text).split("=")]
        name = dict(itertools.pairwise(words)).get("--configmap", "workflow-controller-configmap")
        controller = look.get(f"/api/v1/namespaces/{doc['metadata']['namespace']}/configmaps/{name}")
    own = look.get(f"/api/v1/namespaces/{workflows}/configmaps/artifact-repositories")
    yield doctor.artifact_repository(own, controller)
    name = "aegis-workflow-executor.service-account-token"
    held = look.data("secrets", workflows, name)
    empty = "holds no token, so every pod of a Workflow hangs"
    yield doctor.judged(f"Secret {name}", held, doctor.APPLY, lambda data: None if data.get("token") else empty)


def _functions(look: Look, namespace: str) -> Iterator[Finding]:
    sides, knative = [], False
    for name, variable in (("alert-receiver", "AEGIS_SEAL_KEY_FILE"), ("retrain-trigger", "AEGIS_SEAL_KEYS")):
        seen = service = look.get(f"/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}")
        if not isinstance(service, Mapping):
            seen = look.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
        knative = knative or isinstance(service, Mapping)
        yield doctor.runs(name, seen)
        sides.append(_seals(look, namespace, seen, variable))
    if knative:
        for kind, judge in (("brokers", doctor.broker), ("triggers", doctor.triggers)):
            found = look.items(f"/apis/eventing.knative.dev/v1/namespaces/{namespace}/{kind}")
            yield Finding(kind, UNKNOWN, found) if isinstance(found, Unseen) else judge(found)
    ping = look.get(f"/apis/sources.knative.dev/v1/namespaces/{namespace}/pingsources/reconcile")
    yield doctor.timer(ping or look.get(f"/apis/batch/v1/namespaces/{namespace}/cronjobs/reconcile"))
    yield doctor.seal(sides)


def _seals(look: Look, namespace: str, function: Seen, variable: str) -> Mapping[str, bytes] | Unseen:
    """The digests of the seal's keys that a function's pod mounts, each by where it is."""
    if not isinstance(function, Mapping):
        return function or Unseen("the function is not there")
    pod = function["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        data = look.data("configmaps", namespace, (source.get("configMapRef") or {}).get("name", "-"))
        if isinstance(data, Unseen):
            return data
        env |= data or {}
    env |= {each["name"]: each.get("value") or "" for each in container.get("env") or ()}
    found = {}
    for path in filter(None, map(str.strip, env.get(variable, "").split(","))):
        secret, key = doctor.mounted(pod, path) or ("", "")
        data = look.data("secrets", namespace, secret) if secret else None
        if isinstance(data, Unseen):
            return data
        found[f"{key} of the Secret {secret}" if secret else f"a Secret mounted at {path}"] = _digest(
            base64.b64decode((data or {}).get(key) or "")
        )
    return found


def _signer(look: Look, namespace: str, uri: str) -> str | Unseen | None:
    """The hint of the signing key's public half."""
    if uri and not uri.startswith("file:"):
        return Unseen(f"the key is {uri}, which is not looked at from here")
    data = look.data("secrets", namespace, "aegis-signing")
    if isinstance(data, Unseen):
        return data
    return _hint(base64.b64decode((data or {}).get(uri.rpartition("/")[2]) or ""))


# --- both ---------------------------------------------------------------------------------------------------------


def _digest(secret: bytes) -> bytes:
    secret = secret.strip(b"\r\n")
    return hashlib.sha256(secret).digest() if secret else b""


def _hint(pem: bytes) -> str | None:
    """By what bundles name a private key; None if it is no P-256 key."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        return None
    p256 = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    return signature.hint(key.public_key()) if p256 and isinstance(key, ec.EllipticCurvePrivateKey) else None


def _trusted(pems: Iterable[bytes]) -> Keys:
    try:
        return signature.trust(pems)
    except ValueError:
        return {}  # as for the steps, which then refuse all of them


def _stores(
    records: Records,
    models_uri: str,
    env: Mapping[str, str],
    trusted: Keys | Unseen,
    uri: str,
    via: str,
    *,
    local: bool = False,
) -> Iterator[Finding]:
    """The bucket of models, MLflow (called `uri`, reached at `via`), and whether they agree."""
    bucket = _bucket(models_uri, env, local=local)
    yield bucket
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https"):
        mend = "kubectl -n aegis-workflows edit configmap aegis-steps"
        yield Finding("MLflow", WRONG, "MLFLOW_TRACKING_URI is no http:// or https:// URL", mend)
        return
    answer = _ask(via, "/api/2.0/mlflow/registered-models/search?max_results=1", host)
    mlflow = doctor.mlflow(host, answer, local=local)
    yield mlflow
    if isinstance(answer, Unseen):
        return
    yield doctor.clock("MLflow", answer.date, answer.now)
    if (bucket.state, answer.status) == (OK, 200) and not isinstance(trusted, Unseen):
        try:
            yield doctor.aliases(
                _aliases(records.records(), models_uri, env, trusted, via, host),
                f"{parts.scheme}://{host}",
                local=local,
            )
        except (Temporary, Permanent) as exc:
            yield Finding("aliases", UNKNOWN, str(exc))


def _aliases(
    records: Iterable[Record], models_uri: str, env: Mapping[str, str], trusted: Keys, via: str, host: str
) -> list[Alias]:
    store, found = open_store(models_uri, env=env), []
    for record in list(records)[:MAX_ALIASES]:
        alias = alias_of(record.environment, record.policy.alias)
        try:
            champion = pointer.read(store, trusted, record.environment, record.model)
        except Untrusted as exc:
            told = "; ".join(exc.faults.values())
            found.append(Alias(record.model, record.environment, alias, None, "", told))
            continue
        if champion is None:
            continue
        query = urlencode({"name": record.model, "alias": alias})
        answer = _ask(via, f"/api/2.0/mlflow/registered-models/alias?{query}", host)
        if isinstance(answer, Unseen) or answer.status not in (200, 400, 404):
            raise Temporary("MLflow does not say where its aliases are")
        version = json.loads(answer.body)["model_version"]["version"] if answer.status == 200 else None
        found.append(Alias(record.model, record.environment, alias, version, champion[0].model_version))
    return found


def _ask(url: str, path: str, host: str = "") -> Answer | Unseen:
    """GET a path below a URL, under another host's name if one is given."""
    parts = urlsplit(url)
    try:
        below = parts.path.rstrip("/")
        status, headers, body = call(url, "GET", below + path, headers={"host": host} if host else {}, timeout=10)
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        return Unseen(f"{parts.netloc.rpartition('@')[2]} cannot be reached from here ({type(exc).__name__}: {exc})")
    try:
        date = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        date = None
    return Answer(status, body.decode(errors="replace"), date, datetime.now(UTC))


def _bucket(uri: str, env: Mapping[str, str], *, local: bool) -> Finding:
    """Packages can be written, and a create-only or compare-and-set write that has to fail does: with the caller's own
    credentials, on one object that stays."""
    check, mend = "bucket", "kubectl -n aegis-workflows edit configmap aegis-steps   # AEGIS_MODELS_URI"
    if not local and not uri.startswith(("s3://", "gs://")):
        return Finding(check, WRONG, f"AEGIS_MODELS_URI is no bucket: {uri or 'not set'}", mend)
    lax = f"{uri} lets one writer overwrite another: it ignores If-Match and If-None-Match"
    try:
        store = open_store(uri, env=env)
        before = store.head(PROBE)
        if before is None:
            store.create(PROBE, b"aegis doctor\n")
            before = store.head(PROBE)
        try:
            store.create(PROBE, b"this must not be written\n")
            return Finding(check, WRONG, lax, "use a store that honours them: S3, GCS, a recent MinIO or Ceph")
        except AlreadyExists:
            pass
        if before is not None:
            store.swap(PROBE, f"aegis doctor {secrets.token_hex(8)}\n".encode(), before.version)
            try:
                store.swap(PROBE, b"this must not be written\n", before.version)
                return Finding(check, WRONG, lax, "use a store that honours them: S3, GCS, a recent MinIO or Ceph")
            except Conflict:
                pass
    except NotFound:
        return Finding(check, WRONG, f"{uri} is not there", mend)
    except Conflict:
        return Finding(check, UNKNOWN, "somebody else looked at it at the same time; look again")
    except (Temporary, Permanent) as exc:
        own = "your own environment names no credentials; " if type(exc.__cause__).__name__ in _NO_CREDENTIALS else ""
        state = WRONG if local else UNKNOWN
        return Finding(
            check, state, f"{own}{exc}", "export AWS_...   # those of the Secret aegis-storage, and look again"
        )
    return Finding(check, OK, f"{uri} can be written, and lost races are refused")
