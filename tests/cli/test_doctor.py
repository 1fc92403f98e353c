"""`aegis doctor` finds each thing that is wrong, says what mends it, and shows no secret and no steering characters."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from aegis import pointer
from aegis.storage import open_store
from aegis_cli import doctor, examine
from aegis_cli.doctor import OK, UNKNOWN, WRONG, Answer, Finding, Right, Unseen
from aegis_cli.stack import State, shipped, template_path
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Status
from sign_model import keys
from tests.cli.conftest import READY, Aegis, Installed
from tests.cli.test_story import HOSTILE
from tests.conftest import needs
from tests.manifests.overlays import built, of
from tests.storage.servers import s3
from tests.support import until

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Found = dict[str, Finding]


def by_check(findings: Any) -> Found:
    found = [Finding(**each) if isinstance(each, dict) else each for each in findings]
    assert len({each.check for each in found}) == len(found)
    return {each.check: each for each in found}


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


# --- a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bucket() -> Iterator[Mapping[str, str]]:
    with s3("models") as env:
        yield env


@pytest.fixture(scope="session")
def _healthy(_cluster: Installed, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What a cluster's controllers and its operator add to what was applied."""
    cluster, folder = _cluster, tmp_path_factory.mktemp("keys")
    keys.ensure(folder / "signing-key.pem", folder / "trusted")
    [public] = (folder / "trusted").glob("*.pub")
    labels = {"app": "workflow-controller"}
    image = "quay.io/argoproj/workflow-controller:v4.1.2"
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "workflow-controller", "image": image}]}}
    cluster.plane.kubectl("create", "namespace", "argo")
    cluster.apply(
        {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "workflow-controller", "namespace": "argo"},
            "spec": {"selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "workflow-controller-configmap", "namespace": "argo"},
            "data": {"artifactRepository": "s3: {bucket: artifacts}"},
        },
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aegis-seal", "namespace": "aegis"},
            "data": {"seal-key": b64("f00d" * 16 + "\n")},
        },
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aegis-signing", "namespace": "aegis-workflows"},
            "data": {"signing-key.pem": b64((folder / "signing-key.pem").read_bytes())},
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "aegis-trusted-keys", "namespace": "aegis-workflows"},
            "data": {"signer.pub": public.read_text(), "README": "not a key"},
        },
    )  # fmt: skip
    token = "-n aegis-workflows secret aegis-workflow-executor.service-account-token"
    cluster.patch(token, {"data": {"token": b64("jwt")}})
    steps = {"MLFLOW_TRACKING_URI": mlflow_server, "AEGIS_MODELS_URI": "s3://models/aegis"}
    cluster.patch("-n aegis-workflows configmap aegis-steps", {"data": steps})
    for name in (
        "-n aegis deploy alert-receiver",
        "-n aegis deploy retrain-trigger",
        "-n argo deploy workflow-controller",
    ):
        cluster.patch(name, {"status": READY}, "--subresource=status")
    return cluster


@pytest.fixture
def healthy(
    _healthy: Installed, installed: Installed, bucket: Mapping[str, str], monkeypatch: pytest.MonkeyPatch  # noqa: ARG001
) -> Installed:  # fmt: skip
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    return _healthy


def test_a_healthy_cluster_has_nothing_wrong_and_all_was_looked_at(healthy: Installed, aegis: Aegis) -> None:  # noqa: ARG001
    done = aegis("doctor", "--cluster", "--json")
    assert {check: f.message for check, f in by_check(done.json["findings"]).items() if f.state != OK} == {}
    assert (done.code, done.json["wrong"], len(done.json["findings"])) == (0, 0, 24)
    told = aegis("doctor", "--cluster")
    assert told.code == 0
    assert told.out.endswith("\n24 ok, 0 wrong, 0 unknown\n")
    assert "f00d" not in told.out + done.out


A, W = "-n aegis", "-n aegis-workflows"
SIGNING = f"{W} secret aegis-signing"
TEMPLATE = yaml.safe_load(template_path().read_text())["spec"]
CRD = yaml.safe_load(shipped("crd/managedmodel.yaml").read_text())["spec"]["versions"][0]
CONTROLLER = "-n argo deploy workflow-controller"


def image(name: str) -> Any:
    return {"spec": {"template": {"spec": {"containers": [{"name": "workflow-controller", "image": name}]}}}}


WRONGS: list[tuple[str, Any, str, str, str]] = [
    (f"{A} deploy alert-receiver", {"status": {"availableReplicas": 0}}, "alert-receiver", "no pod that is ready",
     "describe deploy"),
    (f"{A} deploy retrain-trigger", None, "retrain-trigger", "is not there", "apply"),
    (f"{A} cronjob reconcile", None, "reconcile timer", "is not there", "apply"),
    (f"{A} cronjob reconcile", {"spec": {"suspend": True}}, "reconcile timer", "is suspended", "apply"),
    (f"{A} secret aegis-seal", None, "seal", "receiver: seal-key of the Secret aegis-seal is not there",
     "create secret"),
    (f"{A} secret aegis-seal", {"data": {"seal-key": b64("\n")}}, "seal", "not there or empty", "create secret"),
    (f"{A} configmap aegis-trigger", {"data": {"AEGIS_SEAL_KEYS": "/tmp/key"}}, "seal",
     "trigger: a Secret mounted at /tmp/key is not there", "create secret"),
    (f"{A} configmap aegis-trigger", {"data": {"AEGIS_SEAL_KEYS": ""}}, "seal", "trigger: no key is configured",
     "create secret"),
    (f"{W} serviceaccount aegis-signer", None, "account aegis-workflows/aegis-signer", "is not there", "apply"),
    (f"{W} rolebinding aegis-workflow-executor", None, "rights of aegis-workflows/aegis-workflow-executor",
     "may not create workflowtaskresults in aegis-workflows", "apply"),
    (f"{W} rolebinding retrain-trigger", None, "rights of aegis/retrain-trigger",
     "may not create workflows in aegis-workflows", "apply"),
    (f"{W} workflowtemplate aegis-retrain", {"spec": {"serviceAccountName": "default"}},
     "WorkflowTemplate aegis-retrain", "is not this version's: spec.serviceAccountName", "apply"),
    (f"{W} workflowtemplate aegis-retrain", {"spec": {"templates": TEMPLATE["templates"][:-1]}},
     "WorkflowTemplate aegis-retrain", "spec.templates", "a name of its own"),
    (f"{W} workflowtemplate aegis-retrain", {"spec": {"hostNetwork": True}}, "WorkflowTemplate aegis-retrain",
     "spec.hostNetwork", "apply"),
    (f"{W} workflowtemplate aegis-retrain", None, "WorkflowTemplate aegis-retrain", "is not there", "apply"),
    ("crd managedmodels.aegis.dev", {"spec": {"versions": [{**CRD, "selectableFields": None}]}},
     "ManagedModel definition", "is not this version's: spec.versions[0].selectableFields", "managedmodel.yaml"),
    (CONTROLLER, image("quay.io/argoproj/workflow-controller:v4.1.1"), "Argo's controller",
     "4.1.2 or newer is needed: before it,", "v4.1.2/install.yaml"),
    (CONTROLLER, {"status": {"availableReplicas": 0}}, "Argo's controller", "no pod that is ready", "-n argo describe"),
    (CONTROLLER, image("busybox"), "Argo's controller", "no Deployment runs workflow-controller", "install.yaml"),
    ("-n argo configmap workflow-controller-configmap", None, "artifact repository", "none is configured", "configure"),
    ("-n argo configmap workflow-controller-configmap", {"data": {"artifactRepository": "archiveLogs: true"}},
     "artifact repository", "none is configured", "configure"),
    (f"{W} secret aegis-workflow-executor.service-account-token", {"data": {"token": None}},
     "Secret aegis-workflow-executor.service-account-token", "holds no token", "apply"),
    (SIGNING, None, "signing key", "is not there", "openssl"),
    (SIGNING, {"data": {"signing-key.pem": None, "key.pem": "eA=="}}, "signing key", "is not there", "openssl"),
    (SIGNING, {"data": {"signing-key.pem": b64("hello")}}, "signing key", "no P-256 key", "openssl"),
    (f"{W} configmap aegis-trusted-keys", {"data": {"signer.pub": None}}, "signing key", "not among the trusted",
     "openssl pkey -pubout"),
    (f"{W} configmap aegis-trusted-keys", {"data": {"b.pub": "x"}}, "signing key", "not among the trusted",
     "edit configmap"),
    (f"{W} configmap aegis-steps", {"data": {"AEGIS_MODELS_URI": "file:///models"}}, "bucket", "is no bucket", "edit"),
    (f"{W} configmap aegis-steps", {"data": {"AEGIS_MODELS_URI": None}}, "bucket", "is no bucket: not set", "edit"),
    (f"{W} configmap aegis-steps", {"data": {"AEGIS_MODELS_URI": "s3://absent/x"}}, "bucket", "is not there", "edit"),
    (f"{W} configmap aegis-steps", {"data": {"MLFLOW_TRACKING_URI": "sqlite:///x"}}, "MLflow", "is no http", "edit"),
]  # fmt: skip


def in_rounds() -> list[list[tuple[str, Any, str, str, str]]]:
    """All that may be wrong, so divided that no object and no check comes twice in a round."""
    rounds: list[list[tuple[str, Any, str, str, str]]] = []
    for wrong in WRONGS:
        fits = (r for r in rounds if not any(wrong[0] == other[0] or wrong[2] == other[2] for other in r))
        found = next(fits, None)
        if found is None:
            rounds.append([wrong])
        else:
            found.append(wrong)
    return rounds


STEPS_GONE = (f"{W} configmap aegis-steps", None, "ConfigMap aegis-steps", "is not there", "apply")


@pytest.mark.parametrize("wrongs", [*in_rounds(), [STEPS_GONE]])
def test_each_wrong_thing_is_found_and_its_mend_told(
    healthy: Installed, wrongs: list[tuple[str, Any, str, str, str]], aegis: Aegis
) -> None:
    with ExitStack() as stack:
        for what, patch, *_ in wrongs:
            stack.enter_context(healthy.changed(what, patch))
        done = aegis("doctor", "--cluster", "--json")
    assert done.code == 3
    found = by_check(done.json["findings"])
    missed = []
    for what, _, check, message, mend in wrongs:
        finding = found.get(check) or Finding(check, "not looked at", "")
        if finding.state != WRONG or message not in finding.message or mend not in finding.mend:
            missed.append((what, finding))
    assert missed == []


def test_a_bound_account_is_found_whatever_bound_it(healthy: Installed, aegis: Aegis) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "too-much"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io",
                      "name": "system:serviceaccounts:aegis-workflows"}],
    }  # fmt: skip
    healthy.apply(binding)
    accounts = ("aegis-workflow-sa", "aegis-signer", "aegis-workflow-executor")
    names = [f"rights of aegis-workflows/{name}" for name in accounts]

    def looked() -> Found | None:
        found = by_check(aegis("doctor", "--cluster", "--json").json["findings"])
        return found if all(found[name].state == WRONG for name in names) else None

    try:
        found = until(looked, "the API server's cache has the binding", within_s=30)
    finally:
        healthy.plane.kubectl("delete", "clusterrolebinding", "too-much")
    assert found is not None
    for name in names:
        assert re.fullmatch(r"may .*, may .* and \d+ more, which it has no use for", found[name].message)
    assert found["rights of aegis/alert-receiver"].state == OK


def test_seals_of_two_secrets_are_compared_and_not_shown(healthy: Installed, aegis: Aegis) -> None:
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": "aegis"}}
    volume = {"name": "seal", "secret": {"secretName": "other", "items": [{"key": "k", "path": "seal-key"}]}}
    pod = healthy.get("-n", "aegis", "deploy", "retrain-trigger")["spec"]["template"]["spec"]
    volumes = [volume if each["name"] == "seal" else each for each in pod["volumes"]]
    with healthy.changed(f"{A} deploy retrain-trigger", {"spec": {"template": {"spec": {"volumes": volumes}}}}):
        for value, state in (("beef" * 16, WRONG), ("f00d" * 16, OK)):
            healthy.apply({**other, "data": {"k": b64(value)}})
            done = aegis("doctor", "--cluster", "--json")
            assert by_check(done.json["findings"])["seal"].state == state
            assert value not in done.out


def test_who_may_see_little_learns_little_and_nothing_is_guessed(
    healthy: Installed, as_account: Callable[[str, str], None], aegis: Aegis  # noqa: ARG001
) -> None:  # fmt: skip
    as_account("aegis", "alert-receiver")
    done = aegis("doctor", "--cluster", "--json")
    found = by_check(done.json["findings"])
    known = {check for check, finding in found.items() if finding.state != UNKNOWN}
    assert (done.code, known) == (0, {"clock of the API server", "Argo's definitions"})
    assert "cannot get resource" in found["namespace aegis"].message


def test_an_mlflow_that_does_not_know_its_own_name_is_explained(
    healthy: Installed, mlflow_server: str, aegis: Aegis
) -> None:
    """A real one, which refuses all names but those of its own machine."""
    named = {"data": {"MLFLOW_TRACKING_URI": "http://user:pass@mlflow.aegis.svc.cluster.local:5000/"}}
    with healthy.changed(f"{W} configmap aegis-steps", named):
        done = aegis("doctor", "--cluster", "--json")
        assert by_check(done.json["findings"])["MLflow"].state == UNKNOWN
        assert "cannot be reached from here" in by_check(done.json["findings"])["MLflow"].message
        done = aegis("doctor", "--cluster", "--json", "--mlflow", mlflow_server)
    found = by_check(done.json["findings"])["MLflow"]
    assert (done.code, found.state) == (3, WRONG)
    assert "refuses the name mlflow.aegis.svc.cluster.local:5000 (403 Invalid Host header)" in found.message
    assert "--allowed-hosts mlflow.aegis.svc.cluster.local:5000" in found.mend
    assert "pass" not in done.out


@pytest.mark.parametrize("uri", ["s3://models/aegis", "s3://models"])
def test_the_bucket_is_written_to_again_and_again_and_nothing_else_is_touched(
    bucket: Mapping[str, str], uri: str
) -> None:
    store = open_store(uri, env=bucket)
    before = [each for each in store.list() if not each.path.endswith(examine.PROBE)]
    for _ in range(2):
        assert examine._bucket(uri, bucket, local=False).state == OK
    assert [each for each in store.list() if not each.path.endswith(examine.PROBE)] == before
    assert store.read(examine.PROBE, limit=100).startswith(b"aegis doctor")


class Lax(ThreadingHTTPServer):
    """A bucket that honours one condition or none, or that says no to everything."""

    def __init__(self, refuses: bool, honours: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            objects: ClassVar[dict[str, int]] = {}

            def answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.send_header("etag", f'"{self.objects.get(self.path, 0)}"')
                self.end_headers()

            def do_HEAD(self) -> None:  # the library's name
                self.answer(403 if refuses else 200 if self.path in self.objects else 404)

            def do_PUT(self) -> None:  # the library's name
                self.rfile.read(int(self.headers.get("content-length") or 0))
                here = f'"{self.objects.get(self.path, 0)}"'
                if (honours == "if-match" and self.headers.get(honours) not in (None, here)) or (
                    honours == "if-none-match" and self.headers.get(honours) and self.path in self.objects
                ):
                    return self.answer(412)
                self.objects[self.path] = self.objects.get(self.path, 0) + 1
                return self.answer(403 if refuses else 200)

            def log_message(self, format: str, *args: object) -> None:  # the library's name
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.mark.parametrize(
    ("refuses", "honours", "state", "told"),
    [
        (False, "", WRONG, "overwrite another"),
        (False, "if-none-match", WRONG, "overwrite another"),
        (False, "if-match", WRONG, "overwrite another"),
        (True, "", UNKNOWN, "refuses"),
    ],
)
def test_a_bucket_without_preconditions_is_found_and_one_that_refuses_us_is_not_judged(
    refuses: bool, honours: str, state: str, told: str, bucket: Mapping[str, str]
) -> None:
    server = Lax(refuses, honours)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        env = {**bucket, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}"}
        found = examine._bucket("s3://models/aegis", env, local=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (found.state, told in found.message) == (state, True), found


def test_without_credentials_a_bucket_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = examine._bucket("s3://models/aegis", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, local=False)
    assert found.state == UNKNOWN
    assert "your own environment names no credentials" in found.message
    assert "export AWS_" in found.mend


def test_on_knative_broker_and_triggers_are_looked_at(healthy: Installed, aegis: Aegis) -> None:
    documents = built(needs("kubectl"), "quickstart")
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    groups = ("serving.knative.dev/v1", "eventing.knative.dev/v1", "sources.knative.dev/v1")
    ours = [{**doc, **ready} for doc in documents if doc["apiVersion"] in groups]
    for doc in ours:
        doc["metadata"] = {**doc["metadata"], "namespace": "knative"}
    healthy.plane.kubectl("create", "namespace", "knative")
    healthy.apply(*ours)
    ask = ("doctor", "--cluster", "--namespace", "knative", "--json")
    checks = ("alert-receiver", "retrain-trigger", "Broker", "Triggers", "reconcile timer")
    found = by_check(aegis(*ask).json["findings"])
    assert {check: found[check].state for check in checks} == dict.fromkeys(checks, OK)
    with ExitStack() as stack:
        waits = {
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NoDNS", "message": HOSTILE}]}
        }
        for what in ("services.serving.knative.dev alert-receiver", "broker default", "pingsource reconcile"):
            stack.enter_context(healthy.replaced(f"-n knative {what}", waits))
        timeout = {"spec": {"delivery": {"timeout": None, "retry": None}}}
        stack.enter_context(healthy.changed("-n knative trigger drift-detected", timeout))
        stack.enter_context(healthy.changed("-n knative trigger retrain-finished", None))
        found = by_check(aegis(*ask).json["findings"])
        aegis(*ask[:-1])
    for check in ("alert-receiver", "Broker", "reconcile timer"):
        assert (found[check].state, "is not Ready: NoDNS" in found[check].message) == (WRONG, True)
    assert found["Triggers"].message == (
        "drift-detected leaves retry, timeout of its delivery to defaults, "
        "nothing delivers dev.aegis.retrain.finished.v1"
    )
    assert found["retrain-trigger"].state == OK


def test_suspended_and_unreadable_models_are_told(healthy: Installed, aegis: Aegis) -> None:
    model = {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": "s.t", "namespace": "aegis"},
    }
    healthy.apply({**model, "spec": {"model": "s", "environment": "t", "suspend": True}})
    found = by_check(aegis("doctor", "--cluster", "--json").json["findings"])["models"]
    assert found.state == OK
    assert re.search(r"; suspended, so never retrained: .*\bs\.t\b", found.message)
    healthy.patch(f"{A} mm s.t", {"status": {"formatVersion": 99}}, "--subresource=status")
    found = by_check(aegis("doctor", "--cluster", "--json").json["findings"])["models"]
    healthy.plane.kubectl("-n", "aegis", "delete", "mm", "s.t")
    assert (found.state, "newer Aegis" in found.message) == (WRONG, True)


# --- one machine --------------------------------------------------------------------------------------------------


class Ready(ThreadingHTTPServer):
    """A function that says how ready it is."""

    status = 200

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                self.send_response(server.status)
                self.end_headers()
                self.wfile.write(HOSTILE.encode())

            def log_message(self, format: str, *args: object) -> None:  # the library's name
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def function() -> Iterator[Ready]:
    server = Ready()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def up(tmp_path: Path, function: Ready, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> State:
    """The state of an `aegis up` with a real MLflow, and a function that stands for both."""
    state = State(tmp_path / "state")
    monkeypatch.setenv("AEGIS_STATE", str(state.root))
    state.root.mkdir(mode=0o700)
    state.models.mkdir()
    keys.ensure(state.signing_key, state.trusted)
    (state.root / "keys" / "seal.key").write_text("f00d" * 16)
    here = f"http://127.0.0.1:{function.server_address[1]}"
    state.addresses.write_text(json.dumps({"receiver": here, "trigger": here, "mlflow": mlflow_server}))
    LocalLedger(state.objects(), lambda: "uid").create("default", "digits", Status(), NOW)
    return state


def test_a_machine_that_is_well_has_nothing_wrong(up: State, aegis: Aegis) -> None:  # noqa: ARG001
    done = aegis("doctor", "--json")
    found = by_check(done.json["findings"])
    assert {check: f for check, f in found.items() if f.state != OK} == {}
    checks = ["receiver", "trigger", "models", "seal", "signing key", "bucket", "MLflow", "clock of MLflow", "aliases"]
    assert (done.code, list(found)) == (0, checks)
    assert aegis("doctor").out.endswith("\n9 ok, 0 wrong, 0 unknown\n")
    assert "f00d" not in done.out


def test_where_nothing_was_started_that_is_wrong(tmp_path: Path, aegis: Aegis) -> None:
    done = aegis("doctor", "--state", str(tmp_path))
    assert done.code == 3
    assert "run `aegis up` first" in done.out
    assert "\n           aegis up\n" in done.out


def break_ledger(state: State, _: Ready) -> None:
    for path in state.root.glob("ledger.db*"):
        path.write_bytes(b"no database")


def suspend_badly(state: State, _: Ready) -> None:
    stored = state.objects().get("ManagedModel", "digits.default")
    assert stored is not None
    doc = {**stored.doc, "spec": {**stored.doc["spec"], "cooldown": HOSTILE}}
    state.objects().replace("ManagedModel", "digits.default", doc, stored.version)


def move_addresses(state: State, _: Ready) -> None:
    state.addresses.write_text(json.dumps(dict.fromkeys(("receiver", "trigger", "mlflow"), "http://127.0.0.1:9")))


def promote(state: State) -> None:
    signer = keys.load(state.signing_key.as_uri())
    champion = pointer.Pointer("digits", "default", 1, "0" * 64, "r", "p", "run", "4", "uid", "2026-03-01T12:00:00Z")
    store = open_store(state.models.as_uri(), env={})
    store.create(pointer.path_of("default", "digits"), pointer.seal(champion, signer))


@pytest.mark.parametrize(
    ("harm", "check", "message", "mend"),
    [
        (lambda _, function: setattr(function, "status", 503), "receiver", "answers 503: \x1b[2J", "receiver.log"),
        (move_addresses, "trigger", "cannot be reached", "aegis up"),
        (move_addresses, "MLflow", "cannot be reached", "aegis up"),
        (break_ledger, "models", "", "ls -l"),
        (suspend_badly, "models", "spec.cooldown", "edit"),
        (lambda state, _: (state.root / "keys" / "seal.key").unlink(), "seal", "seal.key is not there", "aegis up"),
        (lambda state, _: state.signing_key.unlink(), "signing key", "is not there", "aegis up"),
        (lambda state, _: next(state.trusted.iterdir()).unlink(), "signing key", "not among", "aegis up"),
        (lambda state, _: (state.trusted / "x.pub").write_text("x"), "signing key", "not among", "aegis up"),
        (lambda state, _: (state.models / "doctor").write_text("in the way"), "bucket", "", ""),
        (lambda state, _: promote(state), "aliases", "champion of digits is not set, the signed pointer 4",
         "set_registered"),
    ],
)  # fmt: skip
def test_each_wrong_thing_of_a_machine_is_found(
    up: State, function: Ready, harm: Callable[[State, Ready], object], check: str, message: str, mend: str,
    aegis: Aegis,
) -> None:  # fmt: skip
    harm(up, function)
    done = aegis("doctor", "--json")
    found = by_check(done.json["findings"])[check]
    assert (done.code, found.state) == (3, WRONG), found
    assert message in found.message
    assert mend in found.mend
    aegis("doctor")  # which checks that all of it is printable


def test_an_alias_that_is_set_as_told_is_where_the_pointer_is(up: State, mlflow_server: str, aegis: Aegis) -> None:
    from mlflow import MlflowClient

    promote(up)
    client = MlflowClient(mlflow_server, mlflow_server)
    client.create_registered_model("digits")
    versions = [client.create_model_version("digits", source="s3://models/x").version for _ in range(4)]
    client.set_registered_model_alias("digits", "champion", versions[0])
    found = by_check(aegis("doctor", "--json").json["findings"])["aliases"]
    assert (found.state, found.message) == (WRONG, "champion of digits is 1, the signed pointer 4")
    assert 'set_registered_model_alias("digits", "champion", "4")' in found.mend
    client.set_registered_model_alias("digits", "champion", versions[3])
    assert by_check(aegis("doctor", "--json").json["findings"])["aliases"].state == OK
    client.delete_registered_model("digits")


# --- the pure core ------------------------------------------------------------------------------------------------


def deployment(image: str, *arguments: str, **status: int) -> dict[str, Any]:
    container = {"name": "c", "image": image, "args": list(arguments)}
    pod = {"spec": {"containers": [container]}}
    return {"metadata": {"name": "d", "namespace": "argo"}, "spec": {"template": pod}, "status": status}


@pytest.mark.parametrize(
    ("image", "state"),
    [
        ("quay.io/argoproj/workflow-controller:v4.1.2", OK),
        ("workflow-controller:4.1.2", OK),
        ("registry:5000/mirror/workflow-controller:v4.2.0-rc1", OK),
        ("workflow-controller:v10.0.0@sha256:00", OK),
        ("workflow-controller:v4.1.2-rc1", WRONG),
        ("workflow-controller:v4.1.1", WRONG),
        ("workflow-controller:v4.0.10", WRONG),
        ("workflow-controller:v3.99.99@sha256:00", WRONG),
        ("workflow-controller@sha256:00", UNKNOWN),
        ("workflow-controller:latest", UNKNOWN),
        ("workflow-controller", UNKNOWN),
        ("my-workflow-controller:v4.1.2", WRONG),
        ("workflow-controller-extra:v4.1.2", WRONG),
    ],
)
def test_the_controllers_version_is_what_its_tag_says_or_unknown(image: str, state: str) -> None:
    found = doctor.argo_version(doctor.controllers([deployment("nginx"), deployment(image, availableReplicas=1)]))
    assert found.state == state, found
    assert ("4.1.2/install.yaml" in found.mend) == (state == WRONG)


@pytest.mark.parametrize(
    ("own", "controller", "state"),
    [
        (None, None, WRONG),
        (None, {"data": {"artifactRepository": "s3: {bucket: b}"}}, OK),
        (None, {"data": {"artifactRepository": "archiveLogs: true"}}, WRONG),
        (None, {"data": {"artifactRepository": "s3: {}"}}, WRONG),
        (None, {"data": {"artifactRepository": "{{{"}}, WRONG),
        (None, {"data": {"artifactRepository": "text"}}, WRONG),
        (None, {"data": {"config": "artifactRepository: {gcs: {bucket: b}}"}}, OK),
        (None, {"data": {"config": "text"}}, WRONG),
        (None, {}, WRONG),
        (None, Unseen("no"), UNKNOWN),
        (Unseen("no"), {}, UNKNOWN),
        (Unseen("no"), {"data": {"artifactRepository": "s3: {bucket: b}"}}, OK),
        ("a", {"data": {"artifactRepository": "s3: {bucket: b}"}}, OK),
        ("b", {"data": {"artifactRepository": "s3: {bucket: b}"}}, WRONG),
        ("c", {"data": {"artifactRepository": "s3: {bucket: b}"}}, OK),
        ("c", None, WRONG),
        ("", None, WRONG),
    ],
)
def test_the_artifact_repository_is_the_one_that_argo_would_take(own: Any, controller: Any, state: str) -> None:
    if isinstance(own, str) and not isinstance(own, Unseen):
        annotations = {"workflows.argoproj.io/default-artifact-repository": own} if own else None
        own = {"metadata": {"annotations": annotations}, "data": {"a": "s3: {bucket: b}", "b": "s3:"}}
    assert doctor.artifact_repository(own, controller).state == state


GET = Right("get", "", "secrets", "aegis")
ASK = Right("get", "aegis.dev", "managedmodels", "aegis")


@pytest.mark.parametrize(
    ("may", "state", "told"),
    [
        ({ASK: True, GET: False}, OK, "what it needs"),
        ({ASK: False, GET: False}, WRONG, "may not get managedmodels in aegis"),
        ({ASK: True, GET: True}, WRONG, "may get secrets in aegis, which it has no use for"),
        ({ASK: False, GET: True}, WRONG, "may not get managedmodels"),
        (Unseen("refused"), UNKNOWN, "refused"),
    ],
)
def test_rights_are_those_that_are_needed(may: Any, state: str, told: str) -> None:
    found = doctor.rights("aegis/x", [ASK], may)
    assert (found.state, told in found.message) == (state, True)


def test_what_an_account_needs_is_never_called_dangerous() -> None:
    for must in doctor.needed("aegis", "aegis-workflows").values():
        may = dict.fromkeys([*doctor.dangerous("aegis", "aegis-workflows"), *must], False) | dict.fromkeys(must, True)
        assert doctor.rights("x", must, may).state == OK


@pytest.mark.parametrize(
    ("receiver", "trigger", "state"),
    [
        ({"a": b"1"}, {"b": b"1"}, OK),
        ({"a": b"1"}, {"b": b"2", "c": b"1"}, OK),  # while the key is rotated
        ({"a": b"1"}, {"b": b"2"}, WRONG),
        ({"a": b"1"}, {"b": b"1", "c": b""}, WRONG),
        ({}, {"b": b"1"}, WRONG),
        ({"a": b"1"}, {}, WRONG),
        (Unseen("no"), {"b": b"1"}, UNKNOWN),
        ({"a": b"1"}, Unseen("no"), UNKNOWN),
    ],
)
def test_both_sides_have_to_hold_the_seals_key(receiver: Any, trigger: Any, state: str) -> None:
    assert doctor.seal([receiver, trigger]).state == state


@pytest.mark.parametrize("overlay", ["plain", "quickstart", "production"])
def test_every_overlay_mounts_the_key_where_its_functions_look(overlay: str) -> None:
    documents = built(needs("kubectl"), overlay)
    kind, group = ("Deployment", "apps") if overlay == "plain" else ("Service", "serving.knative.dev")
    for name in ("alert-receiver", "retrain-trigger"):
        pod = of(documents, kind, group)[name]["spec"]["template"]["spec"]
        assert doctor.mounted(pod, "/etc/aegis/seal/seal-key") == ("aegis-seal", "seal-key")
        assert doctor.mounted(pod, "/tmp/seal-key") is None
        assert doctor.mounted(pod, "/elsewhere/seal-key") is None


def test_what_clusters_adapt_is_no_difference_and_anything_else_is() -> None:
    ours = {"a": [{"image": "x", "b": 1}], "text": "one two"}
    assert (
        list(doctor.differences(ours, {"a": [{"image": "y", "b": 1, "resources": {}}], "text": "one\n two"}, "s")) == []
    )
    assert list(doctor.differences(ours, {"a": [{"b": 2}], "text": "one"}, "s")) == ["s.a[0].b", "s.text"]
    assert list(doctor.differences(ours, {"a": [], "text": "one two", "c": 0}, "s")) == ["s.a", "s.c"]
    assert list(doctor.differences(ours, None, "s")) == ["s"]


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        (Answer(200, "{}", NOW, NOW), OK, "answers"),
        (Answer(401, "", NOW, NOW), OK, "asks for a credential"),
        (Answer(403, "Invalid Host header - possible DNS rebinding", NOW, NOW), WRONG, "refuses the name m:5"),
        (Answer(403, "no", NOW, NOW), WRONG, "answers 403: no"),
        (Answer(502, HOSTILE, NOW, NOW), WRONG, "answers 502"),
        (Unseen("no route"), UNKNOWN, "no route"),
    ],
)  # fmt: skip
def test_what_mlflow_says_is_judged(answer: Any, state: str, told: str) -> None:
    found = doctor.mlflow("m:5", answer)
    assert (found.state, told in found.message) == (state, True)
    if isinstance(answer, Unseen):
        assert doctor.mlflow("m:5", answer, local=True).state == WRONG


def test_clocks_may_differ_by_a_minute() -> None:
    minute = timedelta(seconds=60)
    for apart, state in ((minute, OK), (-minute, OK), (minute * 1.1, WRONG), (-minute * 1.1, WRONG)):
        assert doctor.clock("x", NOW + apart, NOW).state == state
    assert doctor.clock("x", None, NOW).state == UNKNOWN


def test_nothing_that_is_said_can_steer_a_terminal() -> None:
    hostile = Finding(HOSTILE, WRONG, HOSTILE, f"{HOSTILE}\n{HOSTILE}")
    said = doctor.told([hostile, replace(hostile, mend="x"), replace(hostile, mend="x", state=UNKNOWN)])
    assert all(line.isprintable() for line in said.split("\n"))
    assert said.count("\n           x") == 1  # one command for both
    assert said.endswith("\n\n0 ok, 2 wrong, 1 unknown")
