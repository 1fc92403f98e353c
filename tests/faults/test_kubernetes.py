"""Each call of the trigger to a real API server goes wrong in each way, and its process is killed at each; then the
event comes again, or reconcile does: one Workflow, never two in flight, nothing lost, and the budget's count is right.

`python -m tests.faults.test_kubernetes` is the process that is killed: it forks one child an order.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from aegis.errors import Temporary
from aegis.events import DriftEvent
from retrain_trigger import kubernetes
from retrain_trigger import workflow as workflows
from retrain_trigger.budget import Budget
from retrain_trigger.function import RetrainTrigger, Settings
from retrain_trigger.kubernetes import Client, KubernetesWorkflows
from retrain_trigger.model import Status
from retrain_trigger.trigger import TRIES, Trigger
from tests.cluster.control_plane import ControlPlane
from tests.faults.proxy import Call, Fault, FaultProxy, Kind, told
from tests.storage.servers import clean
from tests.support import until
from tests.trigger.cluster import ClusterWorld, host_of, trusting
from tests.trigger.test_storm import MODELS, Sender, Tally, storm
from tests.trigger.world import Ports, drift, post

ROOT = Path(__file__).parents[2]
MINUTE = timedelta(seconds=61)
"""A claim older than a minute is reconcile's."""
_SHORT = [
    (re.compile(pattern), short)
    for pattern, short in (
        (r"/apis?/.*/namespaces/[^/]+/", ""),
        (r"aegis-churn-[0-9a-f]{8}-\d+", "<workflow>"),
        (r"churn\.default", "<model>"),
    )
]


def simplify(path: str) -> str:
    """The same for the same call in any namespace."""
    for pattern, short in _SHORT:
        path = pattern.sub(short, path)
    return path


# --- what the trigger does, each beginning where something was left -----------------------------------------------


class Dead(KubernetesWorkflows):
    """A creator that dies between claim and Workflow."""

    __slots__ = ()

    def create(self, *_: object) -> str:
        raise Temporary("dead")


def fire(world: ClusterWorld, trigger: Trigger, **more: Any) -> None:
    trigger.event(drift(seen=world.began, dataset_uri="s3://data/new", **more))


def reconcile(_world: ClusterWorld, trigger: Trigger) -> None:
    counts = trigger.reconcile()
    assert not counts.keys() & {"failed", "invalid"}, "the log says what was wrong"
    if "again" in counts:
        raise Temporary("reconcile will come again")


def nothing(_world: ClusterWorld) -> None:
    """The namespace is empty."""


def known(world: ClusterWorld) -> None:
    world.ports.ledger.create("default", "churn", Status(), world.now)
    world.ports.budgets.write(Budget(), "")


def fired(world: ClusterWorld) -> None:
    fire(world, world.trigger())


def running(world: ClusterWorld) -> None:
    fired(world)
    world.set_status(phase="Running")


def ended(world: ClusterWorld) -> None:
    fired(world)
    world.end("Rejected:Worse")


def collected(world: ClusterWorld) -> None:
    """Argo's TTL, or a person, deleted the Workflow before its end was seen."""
    fired(world)
    world.forget("workflows", world.workflow_names()[0])


def claimed(world: ClusterWorld) -> None:
    ports = Ports(world.ports.ledger, world.ports.budgets, Dead(world.client, world.namespace))
    fire(world, world.trigger(ports=ports))
    world.ahead += MINUTE


def created(world: ClusterWorld) -> None:
    """The Workflow exists, and its creator died before it could note that."""
    claimed(world)
    record = world.record()
    assert record.status.retrain is not None
    world.ports.workflows.create(workflows.manifest(record, record.status.retrain, world.namespace), world.now)


def requested(world: ClusterWorld) -> None:
    ended(world)
    reconcile(world, world.trigger())
    world.ask("t1")


def recreated(world: ClusterWorld) -> None:
    """A person deleted the ledger and applied it again."""
    fired(world)
    world.forget("managedmodels", "churn.default")
    world.ports.ledger.create("default", "churn", Status(), world.now)


@dataclass(frozen=True)
class Scenario:
    """`act` is one call from outside, on what `prepare` leaves. Calls before number `since` are as in another one."""

    prepare: Callable[[ClusterWorld], None]
    act: Callable[[ClusterWorld, Trigger], None]
    since: int = 0


LISTED = 4
"""Calls of a reconcile up to the first read of the model: the budget, two lists, the model."""
SCENARIOS = {
    "an alert for a new model": Scenario(nothing, fire),
    "an alert": Scenario(known, fire),
    "another alert": Scenario(fired, functools.partial(fire, fingerprint="00000000000000bb")),
    "the end is noted": Scenario(ended, reconcile),
    "progress is noted": Scenario(running, reconcile, LISTED),
    "a loss is noted": Scenario(collected, reconcile, LISTED),
    "a claim is taken over": Scenario(claimed, reconcile, LISTED),
    "a Workflow is adopted": Scenario(created, reconcile, LISTED),
    "a person's request": Scenario(requested, reconcile, LISTED),
    "a new ledger remembers": Scenario(recreated, fire),
}


def outline(world: ClusterWorld) -> dict[str, Any]:
    """What has to be the same in the end, whatever went wrong meanwhile."""
    status, found = world.record().status, {doc["metadata"]["name"]: doc for doc in world.workflows()}
    budget, _ = world.ports.budgets.read()
    retrain = status.retrain
    assert retrain is not None
    assert len(world.open()) <= 1
    assert found.keys() <= budget.reservations.keys(), "no Workflow without a place in the budget"
    if retrain.in_flight:
        assert retrain.uid == found[retrain.workflow]["metadata"]["uid"]
    return {
        "Workflows": len(found),
        "retrain": (retrain.sequence, retrain.phase, retrain.outcome, retrain.requested_by),
        "runs": retrain.state == "Running",  # whether it is seen to be queued is a matter of one more reconcile
        "counts": (status.sequence, status.attempts, status.failures, status.tokens),
        "alerts": [alert.fingerprint for alert in status.evidence],
        "story": [(row.kind, row.reason) for row in status.history if row.kind in ("Submitted", "Finished")],
        "conditions": {condition.type: condition.status for condition in status.conditions},
        "budget": (len(budget.reservations), len(budget.waiting)),
    }


# --- the stage ----------------------------------------------------------------------------------------------------


class Victims:
    """A process that forks children which act as a trigger; each is there before it gets its order."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(self._line())

    def act(self, kubeconfig: Path, scenario: str, world: ClusterWorld) -> int:
        """Let the next child do it; its exit code, or minus the signal that ended it."""
        order = {
            "scenario": scenario, "kubeconfig": str(kubeconfig), "namespace": world.namespace,
            "ahead": world.ahead.total_seconds(), "began": world.began.timestamp(),
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._line())
        self.pid = int(self._line())
        return code

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return line


@dataclass
class Stage:
    """The API server, a proxy before it, and two ways to it."""

    plane: ControlPlane
    proxy: FaultProxy
    kubeconfig: Path
    """Through the proxy, as is the client beside it."""
    through: Client
    direct: Client
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    usual: dict[str, tuple[list[Call], dict[str, Any]]] = field(default_factory=dict)

    def world(self) -> ClusterWorld:
        """A namespace that nobody had before."""
        return ClusterWorld(self.direct, f"faults-{next(self.numbers)}").made()

    def plain(self, name: str) -> tuple[list[Call], dict[str, Any]]:
        """The calls of a scenario to which nothing happens, in their order, and how it ends."""
        if name not in self.usual:
            world, scenario = self.world(), SCENARIOS[name]
            scenario.prepare(world)
            self.proxy.clear()
            self.proxy.calls.clear()
            scenario.act(world, world.trigger(self.through))
            calls = list(self.proxy.calls)
            settle(world, scenario)
            self.usual[name] = calls, outline(world)
        return self.usual[name]


def settle(world: ClusterWorld, scenario: Scenario) -> None:
    """Whoever called comes again until it is answered, to another process; a minute later reconcile has its turn."""

    def answered() -> bool:
        try:
            scenario.act(world, world.trigger())
        except Temporary:
            return False
        return True

    until(answered, "an answer", within_s=20)
    world.ahead += MINUTE
    reconcile(world, world.trigger())


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home, upstream = tmp_path_factory.mktemp("faults"), control_plane.port
    with FaultProxy("trigger to API server", upstream, simplify=simplify, tls=trusting(control_plane)) as proxy:
        through = control_plane.kubeconfig(home / "through", server=proxy.url)
        yield Stage(control_plane, proxy, through, Client(through), Client(control_plane.kubeconfig(home / "direct")))


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    command = [sys.executable, "-m", "tests.faults.test_kubernetes"]
    with subprocess.Popen(
        command, env=clean({}), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Victims(process)
        assert process.stdin is not None
        process.stdin.close()


# --- each call, each fault ----------------------------------------------------------------------------------------


def answered(status: int, reason: str, **headers: str) -> Fault:
    """As the API server itself says it."""
    doc = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status,
           "message": "a fault"}  # fmt: skip
    headers["Content_Type"] = "application/json"
    return Fault(Kind.ANSWER, answer=told(status, json.dumps(doc).encode(), **headers))


def conflict(**more: Any) -> Fault:
    return replace(answered(409, "Conflict"), **more)


PATIENCE_S = 0.3
"""The trigger's, for the one answer that is delayed."""


class Impatient(Client):
    """Waits that long for one answer; for the others it has all the time that the product has."""

    def __init__(self, kubeconfig: Path, nth: int, patch: Callable[[str, tuple[float, float]], None]) -> None:
        super().__init__(kubeconfig)
        self._left, self._patch = nth, patch

    def call(self, *call: Any, **more: Any) -> dict[str, Any]:
        self._left -= 1
        if self._left != 0:
            return super().call(*call, **more)
        usual = kubernetes.TIMEOUT_S
        self._patch("TIMEOUT_S", (usual[0], PATIENCE_S))
        try:
            return super().call(*call, **more)
        finally:
            self._patch("TIMEOUT_S", usual)


FAULTS: dict[str, Callable[[], list[Fault]]] = {
    "reset before the work": lambda: [Fault(Kind.REFUSE)],
    "reset after the work": lambda: [Fault(Kind.RESET_AFTER)],
    "500 after the work": lambda: [Fault(Kind.ERROR_AFTER)],
    "too late": lambda: [Fault(Kind.DELAY, delay_s=4 * PATIENCE_S)],
    "a conflict": lambda: [conflict()],
    "403, 429 and 503 in turn": lambda: [
        answered(403, "Forbidden"),
        answered(429, "TooManyRequests", Retry_After="1"),
        Fault(Kind.ANSWER),
    ],
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_call_loses_nothing_and_doubles_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    calls, wanted = stage.plain(name)
    scenario = SCENARIOS[name]
    for number, call in list(enumerate(calls))[scenario.since :]:
        world = stage.world()
        scenario.prepare(world)
        # The client tries a GET three times, unless it was answered.
        times = 3 if call.method == "GET" and what.startswith("reset") else 1
        first, *more = FAULTS[what]()
        first.nth, first.times = number + 1, times
        # Who comes again meets the others at the first such call.
        for fault in (first, *(replace(fault, method=call.method, path=re.escape(call.path)) for fault in more)):
            stage.proxy.add(fault)
            client = stage.through
            if what == "too late":
                client = Impatient(stage.kubeconfig, number + 1, functools.partial(monkeypatch.setattr, kubernetes))
            with suppress(Temporary):  # 503, so the caller comes again
                scenario.act(world, world.trigger(client))
            stage.proxy.clear()
        until(lambda first=first: first.fired, f"a fault at {call}", within_s=20)  # type: ignore[misc]  # a late answer
        assert first.fired == times, call
        settle(world, scenario)
        assert outline(world) == wanted, f"{what} at call {number + 1}, {call}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_call_loses_nothing_and_doubles_nothing(stage: Stage, victims: Victims, name: str) -> None:
    calls, wanted = stage.plain(name)
    scenario = SCENARIOS[name]
    for number, kind in itertools.product(range(scenario.since, len(calls)), (Kind.KILL_BEFORE, Kind.KILL_AFTER)):
        world = stage.world()
        scenario.prepare(world)
        fault = stage.proxy.add(Fault(kind, nth=number + 1, pid=lambda: victims.pid, whom="trigger"))
        code = victims.act(stage.kubeconfig, name, world)
        stage.proxy.clear()
        assert (code, fault.fired) == (-9, 1), calls[number]
        settle(world, scenario)
        assert outline(world) == wanted, f"{kind} at call {number + 1}, {calls[number]}"


def test_a_process_to_which_nothing_happens_does_its_work(stage: Stage, victims: Victims) -> None:
    world = stage.world()
    assert victims.act(stage.kubeconfig, "an alert for a new model", world) == 0
    assert len(world.workflow_names()) == 1


def test_a_storm_of_conflicts_is_answered_503_and_passes(stage: Stage) -> None:
    world = stage.world()
    known(world)
    fault = stage.proxy.add(conflict(method="PATCH", path="managedmodels/<model>/status", times=TRIES))
    with pytest.raises(Temporary, match="too many others"):
        fire(world, world.trigger(stage.through))
    assert fault.fired == TRIES
    fire(world, world.trigger(stage.through))
    stage.proxy.clear()
    assert len(world.workflow_names()) == 1


def test_a_storm_of_conflicts_at_the_budget_is_a_hold_that_reconcile_ends(stage: Stage) -> None:
    world = stage.world()
    known(world)
    stage.proxy.add(conflict(method="PUT|PATCH", path="configmaps/aegis-budget", times=TRIES))
    fire(world, world.trigger(stage.through))
    stage.proxy.clear()
    assert world.record().status.history[-1].reason == "BudgetContention"
    assert world.workflow_names() == []
    reconcile(world, world.trigger())
    assert len(world.workflow_names()) == 1


def test_while_nobody_listens_nothing_is_decided(stage: Stage) -> None:
    world = stage.world()
    trigger = world.trigger(stage.through)
    stage.proxy.down()
    try:
        with pytest.raises(Temporary, match="did not answer"):
            fire(world, trigger)
        with pytest.raises(Temporary, match="did not answer"):
            trigger.reconcile()
    finally:
        stage.proxy.up()
    fire(world, trigger)
    assert len(world.workflow_names()) == 1


# --- what only an API server can say --------------------------------------------------------------------------------


def ask(world: ClusterWorld, trigger: Trigger, **more: Any) -> tuple[int, str]:
    """POST one alert to the routes: status and body."""
    sources = world.trigger()._sources
    settings = Settings(trust_loopback=True, create_unknown=True)
    function = RetrainTrigger(settings, trigger, sources, lambda: "").function
    answer = post(function, drift(seen=world.began, **more))
    return answer.status, answer.body.decode()


def test_without_its_definition_the_answer_is_503_and_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    world = stage.world()
    with monkeypatch.context() as patched:
        patched.setattr("retrain_trigger.kubernetes.API_VERSION", "absent.aegis.dev/v1alpha1")
        status, body = ask(world, world.trigger())
    assert status == 503
    assert "the cluster does not know this kind" in body
    assert "managedmodels" in body
    assert ask(world, world.trigger())[0] == 200


def test_a_ledger_of_a_newer_aegis_is_503_and_is_left_alone(stage: Stage) -> None:
    world = stage.world()
    ended(world)
    where, patch = world.path("managedmodels", "churn.default"), {"op": "replace", "path": "/status/formatVersion"}
    before = world.client.call("PATCH", f"{where}/status", body=[{**patch, "value": 2}])
    status, body = ask(world, world.trigger())
    assert status == 503
    assert "newer Aegis" in body
    assert world.client.call("GET", where)["metadata"] == before["metadata"]
    assert len(world.workflow_names()) == 1, "the one that ended"


def test_a_workflow_that_was_collected_before_its_end_was_seen_is_lost(stage: Stage) -> None:
    world = stage.world()
    collected(world)
    reconcile(world, world.trigger())
    retrain = world.record().status.retrain
    assert retrain is not None
    assert (retrain.phase, retrain.outcome) == ("Finished", "Lost")
    assert world.workflow_names() == []
    world.ahead += timedelta(minutes=11)  # the backoff
    reconcile(world, world.trigger())
    assert [name[-2:] for name in world.workflow_names()] == ["-2"]


def test_a_model_that_is_not_valid_keeps_no_other_waiting(stage: Stage) -> None:
    world = stage.world()
    wrong = {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": "a-name-of-its-own-00000000"},
        "spec": {"environment": "default", "model": "Churn"},  # the trigger's name for it is another
    }
    where = world.path("managedmodels")
    world.client.call("POST", where, body=wrong)
    status = {"formatVersion": 1, "attempts": 0, "failures": 0, "sequence": 0, "pending": True}
    patch = [{"op": "add", "path": "/status", "value": status}]
    world.client.call("PATCH", f"{where}/{wrong['metadata']['name']}/status", body=patch)  # type: ignore[index]
    ended(world)
    assert world.trigger().reconcile() == {"invalid": 1, "hold": 1}
    retrain = world.record().status.retrain
    assert retrain is not None
    assert retrain.outcome == "Rejected"


RIGHTS = {
    "get managedmodels": ("aegis.dev", "managedmodels", "get"),
    "list managedmodels": ("aegis.dev", "managedmodels", "list"),
    "create managedmodels": ("aegis.dev", "managedmodels", "create"),
    "patch managedmodels/status": ("aegis.dev", "managedmodels/status", "patch"),
    "list workflows": ("argoproj.io", "workflows", "list"),
    "get configmaps": ("", "configmaps", "get"),
    "create configmaps": ("", "configmaps", "create"),
    "patch configmaps": ("", "configmaps", "patch"),
    "create workflows": ("argoproj.io", "workflows", "create"),
}
"""All that the first alert of a model needs where no manifest brought the budget's ConfigMap, and to come again."""
NAMED = [right for right in RIGHTS if right not in ("patch configmaps", "create workflows")]
"""Those without which the first alert is not answered with 2xx."""


def account(stage: Stage, world: ClusterWorld, folder: Path, without: str) -> Client:
    """The client of a service account that has all rights but one."""
    where = f"/api/v1/namespaces/{world.namespace}/serviceaccounts"
    world.client.call("POST", where, body={"metadata": {"name": "trigger"}})
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = world.client.call("POST", f"{where}/trigger/token", body=request)["status"]["token"]
    allow(world, without)
    doc = yaml.safe_load(stage.plane.kubeconfig(folder / "account").read_text())
    doc["users"][0]["user"] = {"token": token}
    (folder / "account").write_text(yaml.safe_dump(doc))
    return Client(folder / "account")


def allow(world: ClusterWorld, without: str, name: str = "trigger") -> None:
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for right, (group, resource, verb) in RIGHTS.items()
        if right != without
    ]
    where = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}"
    world.client.call("POST", f"{where}/roles", body={"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "trigger", "namespace": world.namespace}],
    }
    world.client.call("POST", f"{where}/rolebindings", body=binding)


@pytest.mark.parametrize("right", NAMED)
def test_a_right_that_is_missing_is_503_and_is_named(stage: Stage, tmp_path: Path, right: str) -> None:
    world = stage.world()
    trigger = world.trigger(account(stage, world, tmp_path, right))
    verb, resource = right.split(" ")
    said: list[tuple[int, str]] = []

    def names_it() -> bool:  # once the API server has seen the other rights
        said.append(ask(world, trigger))
        assert said[-1][0] == 503, said
        return f'cannot {verb} resource \\"{resource}\\"' in said[-1][1]

    until(names_it, "the missing right is named", within_s=20)
    allow(world, "", "all")
    until(lambda: ask(world, trigger)[0] in (200, 204), "all rights are seen", within_s=20)
    world.ahead += MINUTE
    reconcile(world, world.trigger())
    assert len(world.workflow_names()) == 1


def test_without_the_right_to_create_workflows_the_claim_waits_and_a_person_gets_to_know(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = stage.world()
    trigger = world.trigger(account(stage, world, tmp_path, "create workflows"))
    until(lambda: ask(world, trigger)[0] in (200, 204), "the other rights are seen", within_s=20)
    told = next(record for record in caplog.records if record.getMessage() == "the Workflow was not created")
    assert 'cannot create resource "workflows"' in str(vars(told)["error"])
    retrain = world.record().status.retrain
    assert retrain is not None
    assert retrain.phase == "Claimed"
    world.ahead += MINUTE
    reconcile(world, world.trigger())
    assert len(world.workflow_names()) == 1


# --- an API server that restarts ------------------------------------------------------------------------------------


class Patient(Sender):
    """A Broker that waits between deliveries, and notes how often it was told to come again."""

    def _post(self, port: int, headers: dict[str, str], body: bytes) -> str | None:
        reason = super()._post(port, headers, body)
        if reason is None:
            threading.Event().wait(0.2)
        return reason


def test_an_api_server_that_restarts_under_load_loses_nothing_and_doubles_nothing(stage: Stage, tmp_path: Path) -> None:
    """Once it is stopped and once it is killed, while two triggers get a storm; they come back by themselves."""
    world, plane = stage.world(), stage.plane
    sent = storm(random.Random(5), datetime.now(UTC), rounds=8)
    tally, restarted = Tally(), threading.Event()
    with ExitStack() as stack:
        hosts = [stack.enter_context(host_of(stage.plane, world, tmp_path / f"trigger-{n}.log")) for n in range(2)]
        ports = [host.ready().port for host in hosts]

        def work(share: list[DriftEvent]) -> int:
            """Deliver them, then repeats for as long as there are restarts, and one after all; how many that were."""
            sender, repeats = Patient(ports, tally, random.Random(len(share))), 0
            try:
                for event in share:
                    sender.deliver(event)
                while not restarted.wait(0.02):
                    sender.deliver(share[repeats % len(share)])
                    repeats += 1
                sender.deliver(share[0])
            finally:
                sender.close()
            return len(share) + repeats + 1

        with ThreadPoolExecutor(8) as pool:
            sending = [pool.submit(work, sent[n::8]) for n in range(8)]
            try:
                for kill in (False, True):
                    seen = sum(tally.answers.values())
                    until(lambda seen=seen: sum(tally.answers.values()) > seen + 20, "the storm goes on")  # type: ignore[misc]
                    if kill:
                        plane._processes["kubernetes"].kill()
                    plane.stop_api_server()
                    refused = tally.redelivered
                    until(lambda refused=refused: tally.redelivered > refused + 4, "503 meanwhile")  # type: ignore[misc]
                    assert hosts[0].request("GET", "/health/readiness")[0] == 200, "its own settings are all right"
                    plane.start_api_server()
            finally:
                restarted.set()
                if "kubernetes" not in plane._processes:
                    plane.start_api_server()
            delivered = sum(done.result(120) for done in sending)
    assert sum(tally.answers.values()) == delivered
    until(world._serves, "the API server stores again")
    world.ahead += MINUTE
    reconcile(world, world.trigger())
    assert len(world.workflow_names()) == len(MODELS)
    for model in MODELS:
        status = world.record(model).status
        assert status.retrain is not None
        assert (status.sequence, status.retrain.phase) == (1, "Submitted")
        assert len(status.evidence) == 3
    budget, _ = world.ports.budgets.read()
    assert set(budget.reservations) == set(world.workflow_names())


# --- the process that is killed -------------------------------------------------------------------------------------


def main() -> None:
    """Fork a child that waits for an order; say its process id, and how it ended; and again."""
    importlib.import_module("kubernetes.client")  # here, not in each child

    assert threading.active_count() == 1, "a fork would lose the other threads"
    while True:
        pid = os.fork()
        if pid == 0:
            child()
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == NO_MORE:
            return
        print(code, flush=True)


NO_MORE = 3


def child() -> NoReturn:
    code = 1
    try:
        line = b"".join(iter(lambda: os.read(0, 1), b"\n")) if (first := os.read(0, 1)) else b""
        code = NO_MORE if not first else obey(json.loads(first + line))
    except BaseException:  # noqa: BLE001  # the outermost boundary of this process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def obey(order: Mapping[str, Any]) -> int:
    client = Client(Path(order["kubeconfig"]))
    began = datetime.fromtimestamp(order["began"], UTC)
    world = ClusterWorld(client, order["namespace"], timedelta(seconds=order["ahead"]), began)
    SCENARIOS[order["scenario"]].act(world, world.trigger())
    return 0


if __name__ == "__main__":
    main()
