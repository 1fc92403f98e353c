"""The overlays, built as `kubectl apply -k` builds them."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
KNATIVE = ROOT / "knative"
OVERLAYS = ("quickstart", "production", "plain")
TEMPLATE = KNATIVE / "base" / "argo" / "workflow-template.yaml"


@cache
def built(kubectl: str, overlay: str) -> tuple[Json, ...]:
    """Every object of an overlay. AssertionError with kustomize's own words if it does not build."""
    command = [kubectl, "kustomize", str(KNATIVE / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def key(document: Json) -> tuple[str, str, str]:
    """Kind with its group, namespace and name."""
    group = document["apiVersion"].rpartition("/")[0]
    metadata = document["metadata"]
    return f"{document['kind']}.{group}".rstrip("."), metadata.get("namespace", ""), metadata["name"]


def admitted(documents: tuple[Json, ...]) -> dict[str, str]:
    """The images that the policy aegis-signer lets run beside the signing key, by the variable's name."""
    policy = of(documents, "ValidatingAdmissionPolicy")["aegis-signer"]
    variables = {variable["name"]: variable["expression"].strip("'") for variable in policy["spec"]["variables"]}
    return {name: variables[name] for name in ("image", "executor")}


def of(documents: tuple[Json, ...], kind: str, group: str | None = None) -> dict[str, Json]:
    """The objects of one kind by name; `group` tells Knative's Service from Kubernetes' own ("")."""
    return {
        d["metadata"]["name"]: d
        for d in documents
        if d["kind"] == kind and (group is None or d["apiVersion"].rpartition("/")[0] == group)
    }


def pods(documents: tuple[Json, ...]) -> Iterator[tuple[str, Json]]:
    """Every pod's template of ours: (name, {metadata, spec}). The steps' pods are Argo's doing: see `step_pod`."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Deployment" or document["apiVersion"].startswith("serving.knative.dev"):
            yield name, document["spec"]["template"]
        elif document["kind"] == "CronJob":
            yield name, document["spec"]["jobTemplate"]["spec"]["template"]


def workflow_template(documents: tuple[Json, ...], name: str = "aegis-retrain") -> Json:
    return of(documents, "WorkflowTemplate")[name]


EXECUTOR = "quay.io/argoproj/argoexec:v4.1.2"


def step_pod(template: Json, name: str) -> Json:
    """The pod that Argo 4.1 makes of one step, as far as admission looks at it."""
    spec = template["spec"]
    step = next(t for t in spec["templates"] if t["name"] == name)
    token = {"name": "exec-sa-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    argo = {"image": EXECUTOR, "volumeMounts": [token]}
    main = {"name": "main", **step["container"]}
    main["command"] = ["/var/run/argo/argoexec", "emissary", "--loglevel", "info", "--", *main["command"]]
    secret = f"{spec['executor']['serviceAccountName']}.service-account-token"
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"aegis-churn-00000000-1-{name}-1",
            "namespace": "aegis-workflows",
            "labels": {"workflows.argoproj.io/workflow": "aegis-churn-00000000-1"},
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": step.get("serviceAccountName", spec["serviceAccountName"]),
            "automountServiceAccountToken": spec["automountServiceAccountToken"],
            "securityContext": spec["securityContext"],
            "initContainers": [
                {**argo, "name": "init", "command": ["argoexec", "init"]},
                *step.get("initContainers", []),
            ],
            "containers": [{**argo, "name": "wait", "command": ["argoexec", "wait"]}, main, *step.get("sidecars", [])],
            "volumes": [*step.get("volumes", []), {"name": "exec-sa-token", "secret": {"secretName": secret}}],
        },
    }
    for kind, patches in yaml.safe_load(spec["podSpecPatch"]).items():
        for patch in patches:
            next(c for c in pod["spec"][kind] if c["name"] == patch["name"]).update(patch)
    return pod


def typed_models() -> Mapping[str, Any]:
    """Models by apiVersion and kind: Argo's by hera, Knative's by cloudcoil."""
    from hera.workflows.models import WorkflowTemplate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of their fields shadow those of their own base
        from cloudcoil.models.knative_eventing.eventing import v1 as eventing
        from cloudcoil.models.knative_eventing.eventing import v1beta2
        from cloudcoil.models.knative_eventing.sources import v1 as sources
        from cloudcoil.models.knative_serving.serving import v1 as serving
    return {
        "argoproj.io/v1alpha1 WorkflowTemplate": WorkflowTemplate,
        "serving.knative.dev/v1 Service": serving.Service,
        "eventing.knative.dev/v1 Broker": eventing.Broker,
        "eventing.knative.dev/v1 Trigger": eventing.Trigger,
        "eventing.knative.dev/v1beta2 EventType": v1beta2.EventType,
        "sources.knative.dev/v1 PingSource": sources.PingSource,
        "sources.knative.dev/v1 SinkBinding": sources.SinkBinding,
    }
