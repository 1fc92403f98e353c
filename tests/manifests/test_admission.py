"""What the admission policies refuse, with the words that say what to write, and what they let through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain_trigger.model import Policy, workflow_name
from retrain_trigger.workflow import manifest
from tests.manifests.conftest import Api, account
from tests.manifests.overlays import EXECUTOR, Json, built, step_pod, workflow_template
from tests.support import until
from tests.trigger.test_workflow import INJECTIONS, RETRAIN, record

TRIGGER = account("aegis", "retrain-trigger")
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/aegis-workflows/workflows?dryRun=All"
CRON = WORKFLOWS.replace("/workflows?", "/cronworkflows?")
PODS = "/api/v1/namespaces/aegis-workflows/pods"
MODELS = "/apis/aegis.dev/v1alpha1/namespaces/aegis/managedmodels"
MERGE = "application/merge-patch+json"

Change = Callable[[Any], object]


def ours(**policy: Any) -> Json:
    return manifest(record(**policy), RETRAIN, "aegis-workflows", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")


def parameter(doc: Json, name: str) -> Json:
    found: Json = next(p for p in doc["spec"]["arguments"]["parameters"] if p["name"] == name)
    return found


# --- what the trigger may submit ---

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
addresses = st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80).filter(
    lambda text: "{{" not in text and "}}" not in text
)


@settings(max_examples=60, deadline=None)
@given(
    model=names, environment=names, version=names, dataset=addresses, evaluation=addresses,
    sequence=st.integers(1, 10**6), severity=st.sampled_from(["info", "warning", "critical"]), approval=st.booleans(),
    uid=st.uuids().map(str), gate=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    event=st.text(max_size=9),
)  # fmt: skip
def test_whatever_the_trigger_makes_is_admitted(
    installed: Api, model: str, environment: str, version: str, dataset: str | None, evaluation: str | None,
    sequence: int, severity: str, approval: bool, uid: str, gate: dict[str, str], event: str,
) -> None:  # fmt: skip
    own = record(model, environment, evaluation_uri=evaluation, approval=approval, gate=gate)
    retrain = replace(
        RETRAIN, sequence=sequence, severity=severity, version=version, dataset_uri=dataset,
        workflow=workflow_name(model, uid, sequence), inputs="d" * 64 if approval else None, event_id=event,
    )  # fmt: skip
    status, answer = installed("POST", WORKFLOWS, manifest(own, retrain, "aegis-workflows"), user=TRIGGER)
    assert status == 201, answer["message"]


SUBMISSIONS: dict[str, tuple[Change, str]] = {
    "an entrypoint": (lambda w: w["spec"].update(entrypoint="sign"), "spec: write"),
    "templates": (lambda w: w["spec"].update(templates=[{"name": "main"}]), "spec: write"),
    "another account": (lambda w: w["spec"].update(serviceAccountName="default"), "spec: write"),
    "a patch of its pods": (lambda w: w["spec"].update(podSpecPatch="hostNetwork: true"), "spec: write"),
    "hooks": (lambda w: w["spec"].update(hooks={"exit": {"template": "x"}}), "spec: write"),
    "onExit": (lambda w: w["spec"].update(onExit="main"), "spec: write"),
    "a shutdown": (lambda w: w["spec"].update(shutdown="Terminate"), "spec: write"),
    "metadata from a template": (lambda w: w["spec"].update(workflowMetadata={"labels": {}}), "spec: write"),
    "a status": (lambda w: w.update(status={"storedWorkflowTemplateSpec": {}}), "leave out the rest"),
    "another template": (lambda w: w["spec"]["workflowTemplateRef"].update(name="evil"), "begins with aegis-"),
    "a template of the cluster": (lambda w: w["spec"]["workflowTemplateRef"].update(clusterScope=True), "nothing else"),
    "no template": (lambda w: w["spec"].pop("workflowTemplateRef"), "begins with aegis-"),
    "another name": (lambda w: w["metadata"].update(name="churn-1"), "metadata.name: write aegis-"),
    "a name made up by the server": (
        lambda w: (w["metadata"].pop("name"), w["metadata"].update(generateName="aegis-x-00000000-")),
        "metadata: write name",
    ),
    "a name of another number": (
        lambda w: w["metadata"].update(name=w["metadata"]["name"][:-1] + "9"),
        "the number in the name",
    ),
    "a label of Argo's": (
        lambda w: w["metadata"]["labels"].update({"workflows.argoproj.io/controller-instanceid": "x"}),
        "metadata.labels: write",
    ),
    "no label of the model": (
        lambda w: w["metadata"]["labels"].pop("aegis.dev/managed-model"),
        "metadata.labels: write",
    ),
    "no labels": (lambda w: w["metadata"].pop("labels"), "metadata.labels: write"),
    "an annotation of Argo's": (
        lambda w: w["metadata"]["annotations"].update({"workflows.argoproj.io/progress": "1/1"}),
        "metadata.annotations: write",
    ),
    "no claim": (lambda w: w["metadata"]["annotations"].pop("aegis.dev/claim"), "metadata.annotations: write"),
    "no annotations": (lambda w: w["metadata"].pop("annotations"), "metadata.annotations: write"),
    "a finalizer": (lambda w: w["metadata"].update(finalizers=["aegis.dev/x"]), "metadata: write name"),
    "an owner": (
        lambda w: w["metadata"].update(ownerReferences=[{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]),
        "metadata: write name",
    ),
    "a priority of its own": (lambda w: w["spec"].update(priority=1000), "write 0, 1 or 2"),
    "an early end of life": (lambda w: w["spec"]["ttlStrategy"].update(secondsAfterCompletion=60), "86400 or more"),
    "another end of life": (lambda w: w["spec"]["ttlStrategy"].update(secondsAfterSuccess=1), "86400 or more"),
    "artifacts": (lambda w: w["spec"]["arguments"].update(artifacts=[]), "spec.arguments: write"),
    "an unknown parameter": (lambda w: parameter(w, "model").update(name="image"), "spec.arguments: write"),
    "a parameter twice": (lambda w: parameter(w, "model").update(name="event"), "spec.arguments: write"),
    "a parameter from elsewhere": (
        lambda w: parameter(w, "model").update(valueFrom={"configMapKeyRef": {"name": "x", "key": "y"}}),
        "spec.arguments: write",
    ),
    "a parameter without a value": (lambda w: parameter(w, "model").pop("value"), "printable ASCII"),
    "a number": (lambda w: parameter(w, "model").update(value=1), "printable ASCII"),
    "a list of ten": (
        lambda w: w["spec"]["arguments"]["parameters"].append({"name": "model", "value": "x"}),
        "spec.arguments: write",
    ),
    "a model that is no name": (lambda w: parameter(w, "model").update(value="a/b"), "are names"),
    "an event that is text": (lambda w: parameter(w, "event").update(value="a b"), "are base64"),
    "another approval": (lambda w: parameter(w, "approval").update(value="yes"), "approval is true or false"),
    **{
        f"{what} in a value": (
            lambda w, value=value: parameter(w, "dataset-uri").update(value=value),  # type: ignore[misc]  # mypy can't infer defaults of a lambda
            "printable ASCII",
        )
        for what, value in INJECTIONS.items()
    },
}


@pytest.mark.parametrize(("change", "says"), SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_what_the_trigger_may_not_submit(installed: Api, change: Change, says: str) -> None:
    workflow = ours()
    change(workflow)
    status, answer = installed("POST", WORKFLOWS, workflow, user=TRIGGER)
    assert status == 422, answer
    assert says in answer["message"], answer["message"]


def test_nothing_of_a_submission_is_needed_twice(installed: Api) -> None:
    assert installed("POST", WORKFLOWS, ours(), user=TRIGGER)[0] == 201
    assert installed("POST", WORKFLOWS, ours(workflow_template="aegis-retrain.big"), user=TRIGGER)[0] == 201
    assert Policy().workflow_template == "aegis-retrain"


# --- who may be the signer ---


@pytest.fixture
def signing(kubectl: str) -> Json:
    """The pod of the step sign, as Argo makes it."""
    return copy.deepcopy(step_pod(workflow_template(built(kubectl, "plain")), "sign"))


def main(pod: Json) -> Json:
    found: Json = pod["spec"]["containers"][1]
    return found


SIGNERS: dict[str, tuple[Change, str]] = {
    "another image": (lambda p: main(p).update(image="aegis-train-model:0.1.0"), "runs aegis-sign-model"),
    "another tag": (lambda p: main(p).update(image="aegis-sign-model:0.0.1"), "runs aegis-sign-model"),
    "an image that is called like the executor": (
        lambda p: main(p).update(image="evil.example/argoproj/argoexec:v4.1.2"),
        "runs aegis-sign-model",
    ),
    "an image beside it": (
        lambda p: p["spec"]["containers"].append({**main(p), "name": "side", "image": "busybox"}),
        "runs aegis-sign-model",
    ),
    "an image before it": (
        lambda p: p["spec"]["initContainers"].append({**main(p), "name": "before", "image": "busybox"}),
        "runs aegis-sign-model",
    ),
    "another program": (lambda p: main(p).update(command=["sh", "-c", "x"]), "python -m sign_model.sign"),
    "a shell before it": (
        lambda p: main(p).update(command=["sh", "-c", "x", "--", "python", "-m", "sign_model.sign"]),
        "python -m sign_model.sign",
    ),
    "another module": (
        lambda p: main(p).update(command=[*main(p)["command"][:-1], "http.server"]),
        "python -m sign_model.sign",
    ),
    "no program": (lambda p: main(p).pop("command"), "python -m sign_model.sign"),
    "arguments": (lambda p: main(p).update(args=["x"]), "python -m sign_model.sign"),
    "another folder": (lambda p: main(p).update(workingDir="/aegis/model"), "python -m sign_model.sign"),
    "a hook": (
        lambda p: main(p).update(lifecycle={"preStop": {"exec": {"command": ["x"]}}}),
        "python -m sign_model.sign",
    ),
    "a path of modules": (
        lambda p: main(p)["env"].append({"name": "PYTHONPATH", "value": "/aegis/model"}),
        "python -m sign_model.sign",
    ),
    "a library": (
        lambda p: main(p)["env"].append({"name": "LD_PRELOAD", "value": "/aegis/model/x.so"}),
        "python -m sign_model.sign",
    ),
    "another account with the key": (
        lambda p: p["spec"].update(serviceAccountName="aegis-workflow-sa"),
        "only pods of the service account aegis-signer",
    ),
    "another account with the key, projected": (
        lambda p: (
            p["spec"].update(serviceAccountName="aegis-workflow-sa"),
            p["spec"]["volumes"][3].pop("secret"),
            p["spec"]["volumes"][3].update(projected={"sources": [{"secret": {"name": "aegis-signing"}}]}),
        ),
        "only pods of the service account aegis-signer",
    ),
    "another account with the registry's credential": (
        lambda p: (
            p["spec"].update(serviceAccountName="aegis-workflow-sa"),
            p["spec"]["volumes"].pop(3),
            main(p)["volumeMounts"].pop(3),
            main(p)["envFrom"].append({"secretRef": {"name": "aegis-registry"}}),
        ),
        "only pods of the service account aegis-signer",
    ),
    "another account with the key as a variable": (
        lambda p: (
            p["spec"].update(serviceAccountName="aegis-workflow-sa"),
            p["spec"]["volumes"].pop(3),
            main(p)["volumeMounts"].pop(3),
            p["spec"]["initContainers"][0].update(
                env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "aegis-signing", "key": "k"}}}]
            ),
        ),
        "only pods of the service account aegis-signer",
    ),
}


@pytest.mark.parametrize(("change", "says"), SIGNERS.values(), ids=SIGNERS)
def test_a_pod_that_could_get_at_the_key_is_refused(installed: Api, signing: Json, change: Change, says: str) -> None:
    assert signing["spec"]["volumes"][3]["secret"]["secretName"] == "aegis-signing"
    change(signing)
    status, answer = installed("POST", f"{PODS}?dryRun=All", signing)
    assert status == 422, answer
    assert says in answer["message"], answer["message"]


@pytest.mark.parametrize(
    "command",
    [
        ["python", "-m", "sign_model.sign"],
        ["/argo-bin/bin/argoexec", "emissary", "--", "python", "-m", "sign_model.promote"],
        ["/argo-bin/bin/argoexec", "emissary", "--", "python", "-m", "sign_model.rollback"],
        ["/argo-bin/bin/argoexec", "emissary", "--", "python", "-m", "sign_model.resign"],
    ],
)
def test_the_signer_s_own_program_is_admitted_however_argo_starts_it(
    installed: Api, signing: Json, command: list[str]
) -> None:
    main(signing)["command"] = command
    status, answer = installed("POST", f"{PODS}?dryRun=All", signing)
    assert status == 201, answer["message"]


def test_a_signer_s_pod_is_not_changed_or_debugged_but_may_be_labelled_after_an_upgrade(
    installed: Api, signing: Json
) -> None:
    policy = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/aegis-signer"

    def admit(image: str) -> None:
        change = [{"op": "replace", "path": "/spec/variables/0/expression", "value": f"'{image}'"}]
        assert installed("PATCH", policy, change, kind="application/json-patch+json")[0] == 200

    strategic = "application/strategic-merge-patch+json"
    path = f"{PODS}/{signing['metadata']['name']}"
    before = installed("GET", policy)[1]["spec"]["variables"][0]["expression"].strip("'")
    assert installed("POST", PODS, signing)[0] == 201
    try:
        image = {"spec": {"containers": [{"name": "main", "image": "busybox"}]}}
        status, answer = installed("PATCH", f"{path}?dryRun=All", image, kind=strategic)
        assert status == 422, answer
        assert "runs aegis-sign-model" in answer["message"]
        debug = {"name": "d", "image": EXECUTOR, "securityContext": main(signing)["securityContext"]}
        spec = {"spec": {"ephemeralContainers": [debug]}}
        status, answer = installed("PATCH", f"{path}/ephemeralcontainers?dryRun=All", spec, kind=strategic)
        assert status == 422, answer
        assert "not debugged from within" in answer["message"]
        admit("aegis-sign-model:0.2.0")
        until(lambda: installed("POST", f"{PODS}?dryRun=All", signing)[0] == 422, "the new image counts")
        label = {"metadata": {"labels": {"workflows.argoproj.io/completed": "true"}}}
        assert installed("PATCH", path, label, kind=MERGE)[0] == 200
    finally:
        admit(before)
        installed("DELETE", f"{path}?gracePeriodSeconds=0")
        until(lambda: installed("POST", f"{PODS}?dryRun=All", signing)[0] == 201, "the image before counts again")


@pytest.mark.parametrize("name", ["aegis-signer", "aegis-workflow-executor"])
def test_a_workflow_that_names_these_accounts_is_refused(installed: Api, name: str) -> None:
    for spec in (
        {"serviceAccountName": name},
        {"templates": [{"name": "main"}, {"name": "x", "serviceAccountName": name}]},
        {"templateDefaults": {"serviceAccountName": name}},
    ):
        workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "w"}, "spec": spec}
        cron = {**workflow, "kind": "CronWorkflow", "spec": {"workflowSpec": spec}}
        for path, document in ((WORKFLOWS, workflow), (CRON, cron)):
            status, answer = installed("POST", path, document)
            assert status == 422, answer
            assert "write aegis-workflow-sa, or refer to the template" in answer["message"]


def test_a_person_s_own_workflow_is_none_of_our_business(installed: Api) -> None:
    spec = {"serviceAccountName": "aegis-workflow-sa", "entrypoint": "main", "templates": [{"name": "main"}]}
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "w"}, "spec": spec}
    assert installed("POST", WORKFLOWS, workflow)[0] == 201


# --- who asked for a retrain ---

LABEL, BY = "aegis.dev/retrain", "aegis.dev/retrain-by"


def managed(name: str, labels: Json | None = None, annotations: Json | None = None) -> Json:
    return {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {
            "name": f"{name}.ask", "namespace": "aegis", "labels": labels or {}, "annotations": annotations or {}
        },
        "spec": {"model": name, "environment": "ask"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def asked(installed: Api) -> str:
    """The path of a model that alice has asked a retrain of."""
    binding = {
        "metadata": {"name": "askers", "namespace": "aegis"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "aegis-managedmodels-edit"
        },
        "subjects": [{"kind": "User", "name": user} for user in ("alice", "bob")],
    }  # fmt: skip
    assert installed("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/aegis/rolebindings", binding)[0] == 201
    assert installed("POST", MODELS, managed("asked", {LABEL: "one"}, {BY: "alice"}), user="alice")[0] == 201
    return f"{MODELS}/asked.ask?dryRun=All"


def patch(label: str | None = None, by: str | None = None, **more: Any) -> Json:
    metadata: Json = {}
    if label is not None:
        metadata["labels"] = {LABEL: label or None}
    if by is not None:
        metadata["annotations"] = {BY: by or None}
    return {"metadata": metadata, **more}


@pytest.mark.parametrize(
    ("user", "change"),
    [
        ("bob", patch("two")),
        ("bob", patch("two", "alice")),
        ("bob", patch(by="carol")),
        ("bob", patch(by="")),
        ("alice", patch("two", "bob")),
        ("alice", patch("two", "")),
        (TRIGGER, patch("two", "alice")),
    ],
)
def test_nobody_asks_in_another_s_name(installed: Api, asked: str, user: str, change: Json) -> None:
    group = "system:masters" if user == TRIGGER else ""
    status, answer = installed("PATCH", asked, change, user=user, group=group, kind=MERGE)
    assert status == 422, answer
    command = f"kubectl annotate mm -n aegis asked.ask --overwrite aegis.dev/retrain-by={user}"
    assert command in answer["message"]


@pytest.mark.parametrize(
    ("user", "change"),
    [
        ("alice", patch("two")),
        ("bob", patch("two", "bob")),
        ("bob", patch("", "")),
        ("bob", patch(spec={"suspend": True})),
        ("bob", patch(by="bob")),
    ],
)
def test_who_signs_with_the_own_name_may_ask(installed: Api, asked: str, user: str, change: Json) -> None:
    status, answer = installed("PATCH", asked, change, user=user, kind=MERGE)
    assert status == 200, answer


def test_a_model_created_with_a_request_names_who_asks_too(installed: Api, asked: str) -> None:
    assert asked
    path = f"{MODELS}?dryRun=All"
    assert installed("POST", path, managed("new"), user="alice")[0] == 201
    assert installed("POST", path, managed("new", {LABEL: "x"}, {BY: "alice"}), user="alice")[0] == 201
    for notes in ({}, {BY: "bob"}):
        status, answer = installed("POST", path, managed("new", {LABEL: "x"}, notes), user="alice")
        assert status == 422, answer
        assert "aegis.dev/retrain-by=alice" in answer["message"]


def test_the_trigger_s_own_writes_are_no_requests(installed: Api, asked: str) -> None:
    path = asked.replace("?", "/status?")
    assert installed("PATCH", path, {"status": {"attempts": 1}}, user=TRIGGER, kind=MERGE)[0] == 200
