"""The commands against a cluster: a real API server, its admission policies, and people with and without rights."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis.events import parse_time, rfc3339
from aegis_cli import main, stack
from aegis_cli.cluster import Cluster, _label
from aegis_cli.stack import State
from retrain_trigger import kubernetes
from retrain_trigger import workflow as workflows
from retrain_trigger.kubernetes import KubernetesBudgets, KubernetesLedger, KubernetesWorkflows, Unreachable
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Evidence, Record, Retrain, Row, Status, object_name
from retrain_trigger.policy import Finish, Outcome
from retrain_trigger.trigger import Limits, Sources, Trigger
from tests.cli.conftest import Aegis, Installed
from tests.cli.test_main import Sink, sink  # noqa: F401  # a fixture
from tests.cli.test_story import HOSTILE
from tests.cli.test_story import retrain as ended_retrain
from tests.support import until

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STARTED = Retrain(sequence=1, workflow="w-1", claim="c", phase="Submitted", first_claimed_at=NOW, claimed_at=NOW)
NAMES = (f"model-{number}" for number in itertools.count())


@pytest.fixture
def place(installed: Installed) -> Cluster:  # noqa: ARG001  # sets KUBECONFIG
    return Cluster("aegis", "aegis-workflows")


@pytest.fixture
def model(place: Cluster) -> str:
    """A model of the test's own, with nothing behind it."""
    name = next(NAMES)
    place.records().create("default", name, Status(), NOW)
    return name


def record(place: Cluster, model: str) -> Record:
    found = place.records().read(object_name("default", model))
    assert found is not None
    return found


def becomes(place: Cluster, model: str, **status: Any) -> None:
    place.records().write(record(place, model), Status(**status), pending=True)


def manifest(place: Cluster, model: str) -> dict[str, Any]:
    found: dict[str, Any] = place.client.call("GET", f"{place.records()._path}/{object_name('default', model)}")
    return found


# --- models, why --------------------------------------------------------------------------------------------------


def test_a_cluster_says_what_one_machine_says(place: Cluster, tmp_path: Path, aegis: Aegis) -> None:
    model, machine = next(NAMES), State(tmp_path)
    row = Row(kind="Rejected", reason="BadAlert", message=HOSTILE, first=NOW, last=NOW)
    retrain = ended_retrain(workflow=f"aegis-{model}", explanation=HOSTILE)
    nodes = {"gate": {"type": "Pod", "templateName": "gate", "phase": "Succeeded"}}
    doc = {"metadata": {"name": f"aegis-{model}", "labels": {}}, "spec": {}, "status": {"nodes": nodes}}
    for ledger in (LocalLedger(machine.objects(), lambda: "uid"), place.records()):
        ledger.create("default", model, Status(history=(row,), retrain=retrain), NOW)
    machine.objects().create("Workflow", f"aegis-{model}", doc)
    place.workflows().create({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", **doc}, NOW)
    machine.addresses.write_text('{"mlflow": "http://mlflow.aegis.svc.cluster.local:5000"}')
    here, there = (aegis("why", model, *where) for where in (("--state", str(tmp_path)), ("--cluster",)))
    logs = f"kubectl -n aegis-workflows logs -l workflows.argoproj.io/workflow=aegis-{model}"
    card = "mlflow artifacts download --run-id run-1 --artifact-path model_card.html"
    own = [line for line in there.out.splitlines() if logs in line or card in line]
    assert [line for line in there.out.splitlines() if line not in own] == here.out.splitlines()
    assert len(own) == 2
    here, there = (aegis("why", model, "--json", *where) for where in (("--state", str(tmp_path)), ("--cluster",)))
    assert there.json["status"] == here.json["status"]
    assert there.json["workflow"]["status"] == here.json["workflow"]["status"]
    [line] = (line for line in aegis("models", "--cluster").out.splitlines() if line.startswith(f"{model} "))
    assert line.split() == aegis("models", "--state", str(tmp_path)).out.splitlines()[1].split()
    assert model in {each["model"] for each in aegis("models", "--cluster", "--json").json}


def test_a_namespace_without_models_is_empty(place: Cluster, aegis: Aegis) -> None:  # noqa: ARG001
    assert aegis("models", "--cluster", "--namespace", "default", "--json").json == []
    assert "No model is known yet" in aegis("models", "--cluster", "--namespace", "default").out


# --- what is not there, and who may not ---------------------------------------------------------------------------

ABOUT = [["why", "absent"], ["retrain", "absent", "--why", "y"], ["approve", "absent"], ["models"]]


@pytest.mark.parametrize("arguments", ABOUT[:3], ids=lambda a: a[0])
def test_an_unknown_model_is_bad_data(place: Cluster, arguments: list[str], aegis: Aegis) -> None:  # noqa: ARG001
    done = aegis(*arguments, "--cluster")
    assert done.code == 65
    assert "no model absent is known in environment default" in done.err


@pytest.mark.parametrize("arguments", ABOUT, ids=lambda a: a[0])
def test_who_has_no_rights_is_told_so(
    as_account: Callable[[str, str], None], arguments: list[str], aegis: Aegis
) -> None:
    as_account("aegis", "alert-receiver")
    done = aegis(*arguments, "--cluster")
    assert done.code == 77
    assert 'User "system:serviceaccount:aegis:alert-receiver" cannot' in done.err
    assert 'resource "managedmodels"' in done.err


def test_who_may_look_but_not_ask_is_told_so(
    place: Cluster, model: str, as_account: Callable[[str, str], None], aegis: Aegis
) -> None:
    as_account("aegis", "retrain-trigger")
    done = aegis("retrain", model, "--why", "y", "--cluster")
    assert done.code == 77
    assert 'cannot patch resource "managedmodels"' in done.err
    assert "labels" not in manifest(place, model)["metadata"]


@pytest.mark.parametrize("arguments", [*ABOUT, ["doctor"]], ids=lambda a: a[0])
@pytest.mark.parametrize(
    ("kubeconfig", "told"),
    [
        (None, "no cluster is configured"),
        ("{{{: x", "no cluster is configured: not a kubeconfig"),
        ("current-context: x\ncontexts: []\nclusters: []\nusers: []", "no cluster is configured"),
        (
            json.dumps({"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
                        "users": [{"name": "u", "user": {}}]}),
            "the API server https://127.0.0.1:9 did not answer",
        ),
    ],
    ids=["no file", "no YAML", "no context", "no server"],
)  # fmt: skip
def test_without_a_cluster_that_is_said(
    kubeconfig: str | None,
    told: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aegis: Aegis,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    if kubeconfig is not None:
        (tmp_path / "kubeconfig").write_text(kubeconfig)
    done = aegis(*arguments, "--cluster")
    assert done.code == 69
    assert done.err.startswith(f"aegis: {told}")
    assert done.err.count("\n") == 1


@pytest.mark.usefixtures("installed")
def test_where_aegis_is_not_installed_the_next_step_is_told(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "API_VERSION", "absent.example/v1")
    done = aegis("models", "--cluster")
    assert done.code == 69
    assert "does not know this kind" in done.err
    assert "`aegis doctor --cluster` says what is missing" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["models", "--namespace", "aegis"], "add --cluster"),
        (["models", "--workflow-namespace", "aegis"], "add --cluster"),
        (["send", "digits", "--cluster"], "port-forward"),
        (["send", "digits", "--cluster", "--url", "http://127.0.0.1:9/alertmanager"], "--token-file FILE"),
        (["send", "digits", "--cluster", "--namespace", "ours"], "kubectl -n ours port-forward"),
    ],
)
def test_what_a_cluster_needs_is_told_before_anything_is_done(
    arguments: list[str], told: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    done = aegis(*arguments)
    assert done.code == 64
    assert told in done.err


@pytest.mark.parametrize("name", ["", "Aegis", "../x", "a/b", "-a", "a" * 64])
def test_a_namespace_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["models", "--cluster", f"--namespace={name}"])
    assert end.value.code == 64


# --- retrain ------------------------------------------------------------------------------------------------------


@contextmanager
def trigger_and_argo(place: Cluster, outcome: str) -> Iterator[None]:
    """What a cluster does by itself meanwhile: reconcile, and run each Workflow to this outcome."""
    ledger = KubernetesLedger(place.client, place.namespace)
    budgets = KubernetesBudgets(place.client, place.namespace)
    argo = KubernetesWorkflows(place.client, place.workflow_namespace)
    sources = Sources(lambda: datetime.now(UTC), lambda: secrets.token_hex(16), lambda _: None)
    trigger = Trigger(ledger, budgets, argo, Limits(namespace=place.workflow_namespace, budget=1000), sources)
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.1):
            trigger.reconcile()
            for doc in place.client.pages(argo._path, {"labelSelector": workflows.MODEL_LABEL}):
                if not (doc.get("status") or {}).get("phase"):
                    outputs = {"parameters": [{"name": "outcome", "value": outcome}]}
                    doc["status"] = {"phase": "Succeeded", "finishedAt": rfc3339(datetime.now(UTC)), "outputs": outputs}
                    place.client.call("PUT", f"{argo._path}/{doc['metadata']['name']}", body=doc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_request_is_one_patch_in_the_askers_name(place: Cluster, model: str, aegis: Aegis) -> None:
    before = manifest(place, model)
    done = aegis("retrain", model, "--why", f"new labels {HOSTILE}", "--cluster")
    assert (done.code, done.err) == (0, "")
    assert f"Noted. The trigger looks every minute; `aegis why {model} --cluster` tells." in done.out
    after = manifest(place, model)
    [token] = after["metadata"]["labels"].values()
    assert after["metadata"]["annotations"] == {
        "aegis.dev/retrain-by": "admin",
        "aegis.dev/retrain-why": f"new labels {HOSTILE}",
    }
    assert after["spec"] == before["spec"]
    request = record(place, model).request
    assert request is not None
    assert request.token == token
    assert aegis("retrain", model, "--why", "again", "--cluster", "--json").json["model"] == model
    assert manifest(place, model)["metadata"]["labels"] != after["metadata"]["labels"]


def test_an_owner_asks_in_the_own_name(
    place: Cluster, model: str, installed: Installed, as_account: Callable[[str, str], None], aegis: Aegis
) -> None:
    installed.plane.kubectl("-n", "default", "create", "serviceaccount", "owner")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "owner", "namespace": "aegis"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "aegis-managedmodels-edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "owner", "namespace": "default"}],
    }  # fmt: skip
    installed.apply(binding)
    as_account("default", "owner")
    assert aegis("retrain", model, "--why", "mine", "--cluster").code == 0
    assert manifest(place, model)["metadata"]["annotations"]["aegis.dev/retrain-by"] == (
        "system:serviceaccount:default:owner"
    )


@pytest.mark.parametrize(("outcome", "code"), [("Promoted", 0), ("Rejected", 3)])
def test_wait_follows_a_request_to_its_outcome(
    place: Cluster, model: str, outcome: str, code: int, aegis: Aegis
) -> None:
    with trigger_and_argo(place, outcome):
        done = aegis("retrain", model, "--why", "new labels", "--cluster", "--wait", "--timeout", "60")
    assert done.code == code, done
    assert f"default/{model}: retrain ended: {outcome}" in done.out
    status = record(place, model).status
    assert status.retrain is not None
    assert status.retrain.requested_by == "admin"


def test_a_request_that_nobody_takes_up_is_for_another_try(place: Cluster, model: str, aegis: Aegis) -> None:  # noqa: ARG001
    done = aegis("retrain", model, "--why", "y", "--cluster", "--wait", "--timeout", "0.5")
    assert done.code == 75
    assert "has not taken it up within 0.5 s" in done.err


def test_a_suspended_model_is_not_waited_for(place: Cluster, model: str, installed: Installed, aegis: Aegis) -> None:  # noqa: ARG001
    installed.patch(f"-n aegis mm {model}.default", {"spec": {"suspend": True}})
    assert aegis("retrain", model, "--why", "y", "--cluster", "--wait", "--timeout", "60").code == 3


def test_an_api_server_that_is_away_for_a_moment_ends_no_wait(
    place: Cluster, model: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(place, model, retrain=STARTED)
    end = Row(kind="Finished", reason="Promoted", message="", first=NOW, last=NOW, workflow="w-1")
    found = record(place, model)
    over = replace(found.status, retrain=replace(STARTED, phase="Finished"), history=(end,))
    looks: Iterator[Record | Unreachable]
    looks = iter([found, found, Unreachable("restarting"), Unreachable("restarting"), replace(found, status=over)])

    def read(_: KubernetesLedger, __: str) -> Record:
        look = next(looks)
        if isinstance(look, Unreachable):
            raise look
        return replace(look, status=replace(look.status, tokens=(token,)))

    token = "t"
    monkeypatch.setattr(Cluster, "request", lambda *_: token)
    monkeypatch.setattr(KubernetesLedger, "read", read)
    assert aegis("retrain", model, "--why", "y", "--cluster", "--wait", "--timeout", "60").code == 0


# --- approve ------------------------------------------------------------------------------------------------------

ASKED = {"type": "Suspend", "phase": "Running", "templateName": "approve", "id": "a-1", "displayName": "approve"}
TRAINED = {"type": "Pod", "phase": "Succeeded", "templateName": "train", "id": "t-1"}


def waiting(place: Cluster, model: str, *nodes: dict[str, Any], **status: Any) -> str:
    """The model's retrain is in flight, its Workflow as given; the Workflow's name."""
    name = f"wf-{model}"
    becomes(place, model, retrain=replace(STARTED, workflow=name))
    doc = {
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": {},
        "status": {"phase": "Running", "nodes": {f"{name}-{n}": node for n, node in enumerate(nodes)}, **status},
    }  # fmt: skip
    place.workflows().create(doc, NOW)
    return name


def answered(place: Cluster, name: str) -> dict[str, Any]:
    doc = place.workflows().get(name)
    assert doc is not None
    return doc


def test_a_person_releases_an_accepted_model(place: Cluster, model: str, aegis: Aegis) -> None:
    name = waiting(place, model, ASKED, TRAINED)
    assert aegis("approve", model, "--cluster").code == 0
    doc = answered(place, name)
    asked, trained = doc["status"]["nodes"].values()
    assert trained == TRAINED
    assert (asked["phase"], asked["message"]) == ("Succeeded", "approved by admin")
    assert abs(datetime.fromisoformat(asked["finishedAt"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert {**asked, **ASKED, "phase": ""} == {**asked, "phase": ""}
    assert doc["metadata"]["labels"] == {
        "workflows.argoproj.io/actor": "admin",
        "workflows.argoproj.io/action": "Resume",
    }
    assert workflows._state("Running", doc["status"]) == "Running"


def test_a_person_refuses_an_accepted_model_and_that_is_a_cancellation(
    place: Cluster, model: str, aegis: Aegis
) -> None:
    name = waiting(place, model, TRAINED, ASKED)
    assert aegis("approve", model, "--cluster", "--reject", "it looks odd").code == 0
    doc = answered(place, name)
    assert doc["metadata"]["labels"]["workflows.argoproj.io/action"] == "Stop"
    doc["status"]["phase"] = "Failed"  # as Argo then does
    found = workflows.read(doc, NOW)
    assert isinstance(found, Finish)
    assert (found.outcome, found.explanation) == (Outcome.CANCELLED, "rejected by admin: it looks odd")


@pytest.mark.parametrize(
    ("meanwhile", "code", "phase"),
    [({"progress": "1/2"}, 0, "Succeeded"), ({"nodes": {"NODE": {"phase": "Failed"}}}, 65, "Failed")],
    ids=["goes on", "ends the wait"],
)
def test_an_answer_overtakes_no_controller(
    place: Cluster, model: str, meanwhile: Any, code: int, phase: str, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    name = waiting(place, model, ASKED)
    status = json.loads(json.dumps(meanwhile).replace("NODE", f"{name}-0"))
    get, looks = KubernetesWorkflows.get, itertools.count()

    def overtaken(self: KubernetesWorkflows, name: str) -> dict[str, Any] | None:
        doc = get(self, name)
        if next(looks) == 0:
            self.client.call("PATCH", f"{self._path}/{name}", body={"status": status})
        return doc

    monkeypatch.setattr(KubernetesWorkflows, "get", overtaken)
    assert aegis("approve", model, "--cluster").code == code
    monkeypatch.undo()
    [node] = answered(place, name)["status"]["nodes"].values()
    assert node["phase"] == phase
    assert answered(place, name)["status"].get("progress") == meanwhile.get("progress")


@pytest.mark.parametrize(
    ("nodes", "status", "told"),
    [
        ([TRAINED], {}, "doesn't wait for a person"),
        ([{**ASKED, "phase": "Succeeded"}], {}, "doesn't wait for a person"),
        ([], {"compressedNodes": "H4sI"}, "so use `argo resume wf-"),
    ],
)
def test_what_does_not_wait_is_not_answered(
    place: Cluster, model: str, nodes: list[dict[str, Any]], status: dict[str, Any], told: str, aegis: Aegis
) -> None:
    name = waiting(place, model, *nodes, **status)
    before = answered(place, name)
    done = aegis("approve", model, "--cluster")
    assert done.code == 65
    assert told in done.err
    assert answered(place, name) == before


def test_there_is_nothing_to_approve_without_a_retrain_or_its_workflow(
    place: Cluster, model: str, aegis: Aegis
) -> None:
    done = aegis("approve", model, "--cluster")
    assert (done.code, f"no retrain of {model} is in flight" in done.err) == (65, True)
    becomes(place, model, retrain=STARTED)
    done = aegis("approve", model, "--cluster")
    assert (done.code, "the Workflow w-1 is gone" in done.err) == (65, True)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("admin", "admin"),
        ("system:serviceaccount:ns:x", "system-serviceaccount-ns-x"),
        ("a" * 70 + "@x", "a" * 61 + "-x"),
        ("@ü@", ""),
        (":" * 80 + "b:", "b"),
    ],
)
def test_a_name_becomes_a_label_as_argo_makes_one(name: str, label: str) -> None:
    assert _label(name) == label


# --- send ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


def test_an_alert_is_sent_with_the_token_and_its_decision_waited_for(
    place: Cluster, model: str, sink: Sink, token_file: Path, aegis: Aegis, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    given: list[dict[str, str]] = []
    call = stack.call

    def kept(*arguments: Any, **options: Any) -> Any:
        given.append(dict(arguments[4]))
        return call(*arguments, **options)

    monkeypatch.setattr(main, "call", kept)
    monkeypatch.setattr(main, "NOTICED_WITHIN_S", 60.0)

    def broker() -> None:  # delivers when it likes
        until(lambda: sink.got, "the alert arrives")
        [alert] = json.loads(sink.got[0])["alerts"]
        row = Row(kind="Hold", reason="Cooldown", message="too soon", first=NOW, last=NOW)
        evidence = Evidence(fingerprint="f", starts_at=parse_time(alert["startsAt"]))
        becomes(place, model, history=(row,), evidence=(evidence,))

    thread = threading.Thread(target=broker)
    thread.start()
    began = time.monotonic()
    done = aegis("send", model, "--cluster", "--url", sink.url, "--token-file", str(token_file))
    thread.join()
    assert time.monotonic() - began < 50  # the wait was not sat out
    assert (done.code, done.out) == (0, f"default/{model}: held: Cooldown (too soon)\n")
    assert given[0]["authorization"] == "Bearer s3cret"


def test_where_no_receiver_answers_the_port_forward_is_asked_about(
    place: Cluster, token_file: Path, aegis: Aegis  # noqa: ARG001
) -> None:  # fmt: skip
    done = aegis("send", "x", "--cluster", "--url", "http://127.0.0.1:9/", "--token-file", str(token_file))
    assert done.code == 69
    assert "is the port-forward up?" in done.err


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\x1b[2J", b"\xff", "gehe\u0131m".encode()])
def test_a_file_without_a_token_is_refused_and_not_shown(
    content: bytes | None, sink: Sink, tmp_path: Path, aegis: Aegis  # noqa: F811
) -> None:  # fmt: skip
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    done = aegis("send", "x", "--url", sink.url, "--token-file", str(path))
    assert done.code == 64
    assert "is not a token" in done.err
    assert "lines" not in done.err
    assert sink.got == []


@pytest.mark.parametrize(
    "url", ["localhost:12000/alertmanager", "ftp://x/", "http://", "http://x:99999/", "http://\x1b/"]
)
def test_a_url_is_one_of_http(url: str) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["send", "x", "--url", url])
    assert end.value.code == 64


def test_https_is_spoken_where_it_is_asked_for(sink: Sink) -> None:  # noqa: F811
    with pytest.raises(OSError, match="SSL"):
        stack.call(sink.url.replace("http:", "https:").removesuffix("/alertmanager"), "GET", "/")
