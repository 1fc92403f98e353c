"""What the service accounts may do, asked of the API server as they."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.conftest import Api, account
from tests.manifests.overlays import Json

RECEIVER, TRIGGER = account("aegis", "alert-receiver"), account("aegis", "retrain-trigger")
STEPS, SIGNER = account("aegis-workflows", "aegis-workflow-sa"), account("aegis-workflows", "aegis-signer")
EXECUTOR = account("aegis-workflows", "aegis-workflow-executor")

MODELS = "/apis/aegis.dev/v1alpha1/namespaces/aegis/managedmodels"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/aegis-workflows/workflows"
RESULTS = "/apis/argoproj.io/v1alpha1/namespaces/aegis-workflows/workflowtaskresults"
CORE = "/api/v1/namespaces"
MERGE = "application/merge-patch+json"


def rules(api: Api, user: str, namespace: str) -> set[tuple[str, str, str, str]]:
    """All that an account may do in a namespace: (verb, group, resource, name or "")."""
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    status, answer = api("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body, user=user)
    assert status == 201, answer
    found = {
        (verb, group, resource, name)
        for rule in answer["status"]["resourceRules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
    }
    return {rule for rule in found if rule[1] not in ("authorization.k8s.io", "authentication.k8s.io")}


def test_the_accounts_may_do_exactly_this(installed: Api) -> None:
    found = {
        (user.rpartition(":")[2], namespace): may
        for user in (RECEIVER, TRIGGER, STEPS, SIGNER, EXECUTOR)
        for namespace in ("aegis", "aegis-workflows", "default", "kube-system")
        if (may := rules(installed, user, namespace))
    }
    assert found == {
        ("retrain-trigger", "aegis"): {
            *((verb, "aegis.dev", "managedmodels", "") for verb in ("get", "list", "create")),
            ("patch", "aegis.dev", "managedmodels/status", ""),
            *((verb, "", "configmaps", "aegis-budget") for verb in ("get", "patch")),
            ("create", "", "events", ""),
        },
        ("retrain-trigger", "aegis-workflows"): {
            *((verb, "argoproj.io", "workflows", "") for verb in ("create", "get", "list"))
        },
        ("aegis-workflow-executor", "aegis-workflows"): {
            *((verb, "argoproj.io", "workflowtaskresults", "") for verb in ("create", "patch"))
        },
    }


def model(name: str = "churn") -> Json:
    return {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": f"{name}.rbac", "namespace": "aegis"},
        "spec": {"model": name, "environment": "rbac"},
    }


def test_the_trigger_can_do_its_work(installed: Api) -> None:
    def ask(method: str, path: str, body: Any = None, kind: str = "") -> Json:
        status, answer = installed(method, path, body, user=TRIGGER, kind=kind)
        assert status in (200, 201), answer
        return answer

    made = ask("POST", MODELS, model())
    patch = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "status": {"attempts": 1}}
    assert ask("PATCH", f"{MODELS}/churn.rbac/status", patch, MERGE)["status"]["attempts"] == 1
    assert ask("GET", f"{MODELS}/churn.rbac")["spec"]["model"] == "churn"
    assert ask("GET", f"{MODELS}?fieldSelector=status.pending%3Dtrue")["items"] == []
    budget = f"{CORE}/aegis/configmaps/aegis-budget"
    version = ask("GET", budget)["metadata"]["resourceVersion"]
    ask("PATCH", budget, {"metadata": {"resourceVersion": version}, "data": {"budget": "{}"}}, MERGE)
    event = {
        "metadata": {"name": "churn.1", "namespace": "aegis"},
        "involvedObject": {"kind": "ManagedModel", "name": "churn.rbac", "namespace": "aegis"},
        "reason": "Drift",
        "type": "Normal",
    }
    ask("POST", f"{CORE}/aegis/events", event)
    ask("GET", f"{WORKFLOWS}?labelSelector=aegis.dev%2Fmanaged-model%3Dchurn.rbac")
    assert installed("GET", f"{WORKFLOWS}/absent", user=TRIGGER)[0] == 404


def test_the_executor_reports_results(installed: Api) -> None:
    result = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTaskResult",
        "metadata": {"name": "one", "namespace": "aegis-workflows"},
    }
    assert installed("POST", RESULTS, result, user=EXECUTOR)[0] == 201
    assert installed("PATCH", f"{RESULTS}/one", {"outputs": {}}, user=EXECUTOR, kind=MERGE)[0] == 200


REFUSED = [
    (user, *request)
    for user, requests in {
        TRIGGER: [
            ("DELETE", f"{MODELS}/x"),
            ("PATCH", f"{MODELS}/x"),
            ("PUT", f"{MODELS}/x"),
            ("PUT", f"{MODELS}/x/status"),
            ("GET", MODELS.replace("aegis/", "default/")),
            ("GET", "/apis/aegis.dev/v1alpha1/managedmodels"),
            ("GET", f"{MODELS}?watch=1"),
            ("GET", f"{CORE}/aegis/configmaps/aegis-receiver"),
            ("GET", f"{CORE}/aegis/configmaps"),
            ("POST", f"{CORE}/aegis/configmaps"),
            ("DELETE", f"{CORE}/aegis/configmaps/aegis-budget"),
            ("PUT", f"{CORE}/aegis/configmaps/aegis-budget"),
            ("GET", f"{CORE}/aegis/secrets/aegis-seal"),
            ("GET", f"{CORE}/aegis-workflows/secrets/aegis-signing"),
            ("GET", f"{CORE}/aegis-workflows/configmaps/aegis-trusted-keys"),
            ("GET", f"{CORE}/aegis/events"),
            ("DELETE", f"{WORKFLOWS}/x"),
            ("PATCH", f"{WORKFLOWS}/x"),
            ("PUT", f"{WORKFLOWS}/x"),
            ("GET", WORKFLOWS.replace("/aegis-workflows/", "/aegis/")),
            ("POST", WORKFLOWS.replace("/aegis-workflows/", "/default/")),
            ("GET", WORKFLOWS.replace("/workflows", "/workflowtemplates")),
            ("POST", f"{CORE}/aegis-workflows/pods"),
            ("POST", f"{CORE}/aegis-workflows/serviceaccounts/aegis-signer/token"),
            ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/aegis/rolebindings"),
            ("DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/aegis-submissions"),
        ],
        RECEIVER: [
            ("GET", MODELS),
            ("POST", MODELS),
            ("GET", f"{CORE}/aegis/configmaps/aegis-receiver"),
            ("GET", f"{CORE}/aegis/secrets/aegis-seal"),
            ("POST", WORKFLOWS),
        ],
        STEPS: [
            ("POST", RESULTS),
            ("GET", WORKFLOWS),
            ("POST", WORKFLOWS),
            ("GET", MODELS),
            ("GET", f"{CORE}/aegis-workflows/pods"),
            ("GET", f"{CORE}/aegis-workflows/secrets/aegis-storage"),
        ],
        SIGNER: [
            ("POST", RESULTS),
            ("GET", WORKFLOWS),
            ("GET", f"{CORE}/aegis-workflows/secrets/aegis-signing"),
        ],
        EXECUTOR: [
            ("GET", RESULTS),
            ("GET", f"{RESULTS}/one"),
            ("DELETE", f"{RESULTS}/one"),
            ("GET", WORKFLOWS),
            ("PATCH", f"{WORKFLOWS}/x"),
            ("GET", f"{CORE}/aegis-workflows/pods"),
            ("GET", f"{CORE}/aegis-workflows/secrets/aegis-signing"),
        ],
    }.items()
    for request in requests
]


@pytest.mark.parametrize(("user", "method", "path"), REFUSED, ids=lambda value: value.rpartition("namespaces/")[2])
def test_nothing_else_is_allowed(installed: Api, user: str, method: str, path: str) -> None:
    body = {"metadata": {"name": "x"}} if method in ("POST", "PUT", "PATCH") else None
    status, answer = installed(method, path, body, user=user, kind=MERGE if method == "PATCH" else "")
    assert status == 403, answer
    assert "cannot" in answer["message"]


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("view", {"get", "list"}, {"create", "patch", "delete"}),
        ("edit", {"get", "list", "create", "patch", "delete"}, set()),
    ],
)
def test_owners_get_their_models_and_never_the_ledger(
    installed: Api, role: str, allowed: set[str], refused: set[str]
) -> None:
    # No controller runs here that would join the cluster's roles, so ours is bound by itself.
    owner = f"{role}er"
    binding = {
        "metadata": {"name": owner, "namespace": "aegis"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": f"aegis-managedmodels-{role}",
        },
        "subjects": [{"kind": "User", "name": owner}],
    }
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/aegis/rolebindings"
    assert installed("POST", path, binding)[0] == 201
    may = {verb for verb, group, resource, _ in rules(installed, owner, "aegis") if resource == "managedmodels"}
    assert may >= allowed
    assert not may & refused
    assert installed("PATCH", f"{MODELS}/x/status", {}, user=owner, kind=MERGE)[0] == 403
    status, _ = installed("POST", f"{MODELS}?dryRun=All", model("owned"), user=owner)
    assert status == (201 if role == "edit" else 403)
