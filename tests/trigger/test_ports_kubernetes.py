"""The cluster's adapters keep the ports' contract on a real API server, and what is particular to Kubernetes."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis.errors import AlreadyExists, Conflict, NotFound, Permanent, Temporary
from retrain_trigger.announce import Announcer
from retrain_trigger.budget import Budget, Reservation
from retrain_trigger.kubernetes import Client, KubernetesLedger, NotInstalled, Refused, Unreachable
from retrain_trigger.model import Condition, Status
from tests.cluster.control_plane import ControlPlane
from tests.faults.proxy import Fault, FaultProxy, Kind, Message, told
from tests.support import free_port, until
from tests.trigger.cluster import ClusterWorld, kubernetes_ports, trusting
from tests.trigger.contract import Opener, PortsContract, full_status, manifest
from tests.trigger.world import NOW, Ports, drift

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return control_plane.kubeconfig(tmp_path_factory.mktemp("ports") / "kubeconfig")


@pytest.fixture(scope="module")
def client(kubeconfig: Path) -> Client:
    return Client(kubeconfig)


@pytest.fixture
def world(client: Client) -> ClusterWorld:
    """A namespace of its own."""
    return ClusterWorld(client, f"ports-{next(_NUMBERS)}").made()


class TestKubernetesPorts(PortsContract):
    @pytest.fixture
    def opener(self, kubeconfig: Path, world: ClusterWorld) -> Opener:
        return functools.partial(kubernetes_ports, kubeconfig, world.namespace)


# --- the ledger -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(world: ClusterWorld) -> KubernetesLedger:
    return KubernetesLedger(world.client, world.namespace)


def status_of(world: ClusterWorld, name: str = "churn.default") -> dict[str, Any]:
    """The ledger as it lies there."""
    found: dict[str, Any] = world.client.call("GET", world.path("managedmodels", name))["status"]
    return found


def policy(world: ClusterWorld, **spec: Any) -> None:
    """The owner changes the policy."""
    world.client.call("PATCH", world.path("managedmodels", "churn.default"), body={"spec": spec})


def calls_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that this client makes from now on."""
    made, before = [], client.call

    def call(method: str, path: str, *more: Any, **named: Any) -> dict[str, Any]:
        made.append(f"{method} {path}")
        return before(method, path, *more, **named)

    monkeypatch.setattr(client, "call", call)
    return made


def test_what_became_empty_leaves_the_ledger(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    full = ledger.write(ledger.create("default", "churn", Status(), NOW), full_status(), pending=True)
    assert {"evidence", "retrain", "waits", "tokens", "history", "conditions"} <= status_of(world).keys()
    ledger.write(full, Status(), pending=False)
    assert status_of(world) == {
        "formatVersion": 1, "attempts": 0, "failures": 0, "sequence": 0, "pending": False, "observedGeneration": 1,
    }  # fmt: skip


def test_the_ledger_names_the_policy_that_was_decided_upon(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    ledger.create("default", "churn", Status(), NOW)
    policy(world, cooldown="2h")
    record = ledger.read("churn.default")
    assert record is not None
    condition = Condition(type="Drifting", status="True", reason="X", message="", last_transition_time=NOW)
    ledger.write(record, Status(conditions=(condition,)), pending=True)
    found = status_of(world)
    assert (found["observedGeneration"], found["conditions"][0]["observedGeneration"]) == (2, 2)
    again = ledger.read("churn.default")
    assert again is not None
    assert again.generation == 2, "the ledger itself is no new generation"
    assert again.policy.cooldown == timedelta(hours=2)


def test_a_policy_that_changes_under_a_decision_is_a_conflict(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    made = ledger.create("default", "churn", Status(), NOW)
    policy(world, suspend=True)
    with pytest.raises(Conflict):
        ledger.write(made, Status(attempts=1), pending=False)


def test_a_write_leaves_the_policy_and_the_labels_alone(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    ledger.create("default", "churn", Status(), NOW)
    world.ask("t1")
    record = ledger.read("churn.default")
    assert record is not None
    before = world.client.call("GET", world.path("managedmodels", "churn.default"))
    ledger.write(record, Status(attempts=1), pending=True)
    after = world.client.call("GET", world.path("managedmodels", "churn.default"))
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == {"aegis.dev/retrain": "t1"}


def test_a_request_is_pending_until_its_token_was_consumed(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    made = ledger.create("default", "churn", Status(), NOW)
    quiet = ledger.write(made, Status(), pending=False)
    assert list(ledger.pending()) == []
    world.ask("t1")
    assert list(ledger.pending()) == ["churn.default"]
    record = ledger.read("churn.default")
    assert record is not None
    assert record.request is not None
    ledger.write(replace(quiet, version=record.version), Status(tokens=("t1",)), pending=False)
    assert list(ledger.pending()) == [], "the label is still there, its token done"
    world.ask("t2")
    assert list(ledger.pending()) == ["churn.default"]


def test_the_pending_are_found_page_by_page_and_the_others_are_never_listed(
    world: ClusterWorld, ledger: KubernetesLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        made = ledger.create("default", f"m{number}", Status(), NOW)
        ledger.write(made, Status(), pending=number < 5)
    monkeypatch.setattr("retrain_trigger.kubernetes.PAGE", 2)
    calls = calls_of(world.client, monkeypatch)
    assert list(ledger.pending()) == [f"m{number}.default" for number in range(5)]
    assert len(calls) == 4, "three pages of pending ones, one of labelled ones"
    for number in range(5):
        world.ask("t", f"m{number}")
    calls.clear()
    assert len(list(ledger.pending())) == 5
    assert len(calls) == 3 + 3


def test_counting_takes_one_call_however_many_there_are(
    world: ClusterWorld, ledger: KubernetesLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        ledger.create("default", f"m{number}", Status(), NOW)
    calls = calls_of(world.client, monkeypatch)
    assert (ledger.count(), len(calls)) == (3, 1)


def test_workflows_of_a_model_are_found_over_more_than_one_page(
    world: ClusterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        world.ports.workflows.create(manifest(f"w{number}"), NOW)
    monkeypatch.setattr("retrain_trigger.kubernetes.PAGE", 2)
    assert len(world.ports.workflows.of_model("churn.default")) == 5


def test_a_model_that_is_not_valid_is_not_shown_as_one(world: ClusterWorld, ledger: KubernetesLedger) -> None:
    doc = {"apiVersion": "aegis.dev/v1alpha1", "kind": "ManagedModel", "metadata": {"name": "x-00000000"}}
    spec = {"environment": "default", "model": "Churn"}  # the trigger's own name for it is another
    world.client.call("POST", world.path("managedmodels"), body={**doc, "spec": spec})
    ledger.create("default", "churn", Status(), NOW)
    assert [record.name for record in ledger.records()] == ["churn.default"]
    with pytest.raises(Permanent, match=r"metadata\.name: must be churn-default-"):
        ledger.read("x-00000000")


def test_a_definition_of_another_version_is_no_fault_of_the_event(ledger: KubernetesLedger) -> None:
    made = ledger.create("default", "churn", Status(), NOW)
    odd = Condition(type="Drifting", status="Perhaps", reason="X", message="", last_transition_time=NOW)
    with pytest.raises(Temporary, match="CustomResourceDefinition does not match"):
        ledger.write(made, Status(conditions=(odd,)), pending=True)
    with pytest.raises(Temporary, match="CustomResourceDefinition does not match"):
        ledger.create("no environment", "churn", Status(), NOW)


def test_a_new_ledger_is_rebuilt_from_the_workflows_of_its_model(world: ClusterWorld) -> None:
    trigger = world.trigger()
    first = trigger.event(drift(seen=world.began, dataset_uri="s3://data/new"))
    world.forget("managedmodels", "churn.default")
    again = trigger.event(drift(seen=world.began, dataset_uri="s3://data/new"))
    assert (first.decision.reason, again.decision.reason) == ("Drift", "InFlight")
    assert world.workflow_names() == [first.workflow]
    world.end("Rejected:Worse")
    trigger.reconcile()
    status = world.record().status
    assert status.retrain is not None
    assert (status.retrain.workflow, status.retrain.outcome, status.attempts) == (first.workflow, "Rejected", 1)
    assert trigger.event(drift(seen=world.now)).decision.reason == "Cooldown"


# --- the budget -----------------------------------------------------------------------------------------------------


def config_map(world: ClusterWorld, data: dict[str, str] | None) -> str:
    """The ConfigMap as a person or the manifests make it; its path."""
    where = f"/api/v1/namespaces/{world.namespace}/configmaps"
    metadata = {"name": "aegis-budget", "labels": {"app.kubernetes.io/name": "aegis"}}
    world.client.call("POST", where, body={"metadata": metadata, **({"data": data} if data else {})})
    return f"{where}/aegis-budget"


def test_the_budget_that_the_manifests_ship_is_empty_and_keeps_its_labels(world: ClusterWorld) -> None:
    where = config_map(world, None)
    budget, version = world.ports.budgets.read()
    assert (budget, bool(version)) == (Budget(), True)
    full = Budget(reservations={"w": Reservation(model="churn.default", sequence=1, at=NOW)})
    world.ports.budgets.write(full, version)
    assert world.ports.budgets.read()[0] == full
    assert world.client.call("GET", where)["metadata"]["labels"] == {"app.kubernetes.io/name": "aegis"}


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"reservations": []}', '{"reservations": {"w": {"model": 1}}}'])
def test_a_budget_that_is_damaged_lets_nothing_count_as_decided(world: ClusterWorld, text: str) -> None:
    where = config_map(world, {"budget": text})
    trigger = world.trigger()
    with pytest.raises(Temporary, match=f"ConfigMap {world.namespace}/aegis-budget cannot be read"):
        trigger.event(drift(seen=world.began))
    with pytest.raises(Temporary, match="cannot be read"):
        trigger.reconcile()
    world.client.call("DELETE", where)
    assert trigger.event(drift(seen=world.began)).decision.reason == "Drift"


# --- Kubernetes Events ----------------------------------------------------------------------------------------------


def events_in(world: ClusterWorld) -> list[dict[str, Any]]:
    return list(world.client.pages(f"/api/v1/namespaces/{world.namespace}/events", {}))


def telling(world: ClusterWorld) -> Any:
    """A trigger that writes Events."""
    announcer = Announcer(world.client, world.namespace)
    ports = replace(world.ports, ledger=KubernetesLedger(world.client, world.namespace, announcer))
    return world.trigger(ports=ports)


def test_each_transition_is_one_event_whoever_notes_it(world: ClusterWorld) -> None:
    triggers = [telling(world) for _ in range(4)]

    def at_once(act: Callable[[Any], object]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(act, triggers * 2))

    at_once(lambda trigger: trigger.event(drift(seen=world.began, dataset_uri="s3://data/new")))
    world.end("Rejected:Worse")
    at_once(lambda trigger: trigger.reconcile())
    at_once(lambda trigger: trigger.event(drift(seen=world.now)))
    wanted = {"Drift", "RetrainRejected"} | {row.reason for row in world.record().status.history if row.kind == "Hold"}
    until(lambda: {event["reason"] for event in events_in(world)} >= wanted, "every Event", within_s=20)
    for trigger in triggers:
        trigger._ledger.announce._waiting.join()
    told = Counter(event["reason"] for event in events_in(world))
    rows = Counter(f"Retrain{row.reason}" if row.kind == "Finished" else row.reason
                   for row in world.record().status.history)  # fmt: skip
    assert told == rows
    uid = world.record().uid
    assert {event["involvedObject"]["uid"] for event in events_in(world)} == {uid}
    drifted = next(event for event in events_in(world) if event["reason"] == "Drift")
    assert world.workflow_names()[0] in drifted["message"]
    assert (drifted["type"], drifted["source"]["component"]) == ("Normal", "retrain-trigger")


def test_an_event_that_cannot_be_written_costs_nobody_a_retrain(
    world: ClusterWorld, proxied: tuple[FaultProxy, Client]
) -> None:
    proxy, client = proxied
    fault = proxy.add(Fault(Kind.ANSWER, method="POST", path=".*/events", times=100))
    trigger = telling(ClusterWorld(client, world.namespace))
    assert trigger.event(drift(seen=world.began)).decision.reason == "Drift"
    trigger._ledger.announce._waiting.join()
    assert fault.fired >= 1
    assert len(world.workflow_names()) == 1
    assert events_in(world) == []


# --- what the API server, or whoever stands before it, says -----------------------------------------------------------


@pytest.fixture
def proxied(control_plane: ControlPlane, tmp_path: Path) -> Iterator[tuple[FaultProxy, Client]]:
    """A proxy before the API server, and a client through it."""
    with FaultProxy("adapters to API server", control_plane.port, tls=trusting(control_plane)) as proxy:
        yield proxy, Client(control_plane.kubeconfig(tmp_path / "through", server=proxy.url))


def said(status: int, reason: str) -> Message:
    """As the API server says it."""
    doc = {"kind": "Status", "reason": reason, "message": f"it is {reason}", "code": status}
    return told(status, json.dumps(doc).encode(), Content_Type="application/json")


SAID = [
    (Fault(Kind.ANSWER, answer=said(400, "BadRequest")), Temporary, "it is BadRequest"),
    (Fault(Kind.ANSWER, answer=said(401, "Unauthorized")), Refused, "it is Unauthorized"),
    (Fault(Kind.ANSWER, answer=said(403, "Forbidden")), Refused, "it is Forbidden"),
    (Fault(Kind.ANSWER, answer=said(404, "NotFound")), NotFound, "it is NotFound"),
    (Fault(Kind.ANSWER, answer=told(404, b"404 page not found\n")), NotInstalled, "does not know this kind"),
    (Fault(Kind.ANSWER, answer=said(409, "AlreadyExists")), AlreadyExists, "it is AlreadyExists"),
    (Fault(Kind.ANSWER, answer=said(409, "Conflict")), Conflict, "it is Conflict"),
    (Fault(Kind.ANSWER, answer=told(409, b"")), Conflict, "409"),
    (Fault(Kind.ANSWER, answer=said(410, "Expired")), Temporary, "it is Expired"),
    (Fault(Kind.ANSWER, answer=said(413, "RequestEntityTooLarge")), Temporary, "it is RequestEntityTooLarge"),
    (Fault(Kind.ANSWER, answer=said(422, "Invalid")), Permanent, "it is Invalid"),
    (Fault(Kind.ANSWER, answer=said(429, "TooManyRequests")), Temporary, "it is TooManyRequests"),
    (Fault(Kind.ANSWER, answer=said(500, "InternalError")), Temporary, "it is InternalError"),
    (Fault(Kind.ANSWER, answer=told(500, b'["no", "Status"]')), Temporary, "500"),
    (Fault(Kind.ANSWER, answer=told(502, b"<html>Bad Gateway</html>")), Temporary, "502"),
    (Fault(Kind.ANSWER, answer=told(503, b"")), Temporary, "503"),
    (Fault(Kind.ANSWER, answer=said(504, "Timeout")), Temporary, "it is Timeout"),
    (Fault(Kind.ANSWER, answer=told(302, b"", Location="http://127.0.0.1:1/")), Unreachable, "redirect"),
    (Fault(Kind.ANSWER, answer=told(200, b"<html>Please log in</html>")), Temporary, "no JSON object"),
    (Fault(Kind.ANSWER, answer=told(200, b"[]", Content_Type="application/json")), Temporary, "no JSON object"),
    (Fault(Kind.REFUSE), Unreachable, "did not answer"),
    (Fault(Kind.RESET_AFTER), Unreachable, "did not answer"),
]


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize(("fault", "meaning", "message"), SAID, ids=[f"{f.kind}-{m.__name__}-{t}" for f, m, t in SAID])
def test_whatever_is_said_has_one_meaning(
    proxied: tuple[FaultProxy, Client], fault: Fault, meaning: type[Exception], message: str, method: str
) -> None:
    proxy, client = proxied
    proxy.add(replace(fault, times=3 if method == "GET" and fault.kind is not Kind.ANSWER else 1, seen=0, fired=0))
    with pytest.raises(meaning, match=message) as caught:
        client.call(method, "/api/v1/namespaces/default/configmaps/x", body=[] if method == "PATCH" else None)
    assert caught.type is meaning
    assert f"{method} /api/v1/namespaces/default/configmaps/x" in str(caught.value), "it says what was asked for"


def test_an_answer_that_takes_too_long_is_temporary_and_takes_one_patience(
    proxied: tuple[FaultProxy, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, client = proxied
    monkeypatch.setattr("retrain_trigger.kubernetes.TIMEOUT_S", (0.3, 0.3))
    fault = proxy.add(Fault(Kind.DELAY, delay_s=30, times=9))
    for method in ("GET", "POST"):
        with pytest.raises(Unreachable, match="did not answer"):
            client.call(method, "/api/v1/namespaces/default/configmaps", body={"metadata": {"name": "late"}})
    assert fault.fired == 2, "once each: a second try would outlast the Broker that waits for us"


def test_a_read_on_a_connection_that_the_api_server_closed_is_tried_again(proxied: tuple[FaultProxy, Client]) -> None:
    proxy, client = proxied
    proxy.add(Fault(Kind.REFUSE, times=2))
    assert client.call("GET", "/api/v1/namespaces/default")["metadata"]["name"] == "default"


def test_a_write_is_never_sent_twice(proxied: tuple[FaultProxy, Client], world: ClusterWorld) -> None:
    proxy, client = proxied
    fault = proxy.add(Fault(Kind.RESET_AFTER, method="POST", times=9))
    with pytest.raises(Unreachable):
        client.call("POST", world.path("workflows"), body=manifest("w1"))
    assert fault.fired == 1


def test_nobody_listening_is_temporary(control_plane: ControlPlane, tmp_path: Path) -> None:
    where = control_plane.kubeconfig(tmp_path / "nobody", server=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unreachable, match="did not answer"):
        kubernetes_ports(where, "default").ledger.count()


def test_an_api_server_that_is_not_trusted_is_temporary_and_says_so(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    where = control_plane.kubeconfig(tmp_path / "other")
    doc = yaml.safe_load(where.read_text())
    del doc["clusters"][0]["cluster"]["certificate-authority"]
    where.write_text(yaml.safe_dump(doc))
    with pytest.raises(Temporary, match=r"(?i)certificate"):
        kubernetes_ports(where, "default").ledger.count()


def test_a_token_that_nobody_knows_is_refused(control_plane: ControlPlane, tmp_path: Path) -> None:
    where = control_plane.kubeconfig(tmp_path / "stranger")
    where.write_text(where.read_text().replace(control_plane.token, "stranger"))
    with pytest.raises(Refused, match="Unauthorized"):
        kubernetes_ports(where, "default").ledger.count()


@pytest.mark.parametrize("text", [None, "", "x: [", "clusters: 3"])
def test_a_kubeconfig_that_is_none_is_temporary(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config").write_text(text)
    with pytest.raises(Temporary, match="no cluster is configured"):
        kubernetes_ports(tmp_path / "config", "default").ledger.count()


def test_a_namespace_that_does_not_exist_takes_no_model_and_says_so(client: Client) -> None:
    ports: Ports = ClusterWorld(client, "nowhere").ports
    assert (ports.ledger.read("churn.default"), ports.ledger.count(), list(ports.ledger.pending())) == (None, 0, [])
    with pytest.raises(Temporary, match='namespaces "nowhere" not found'):
        ports.ledger.create("default", "churn", Status(), NOW)
