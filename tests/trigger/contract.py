"""What every adapter of the trigger's three ports must do. A test class inherits `PortsContract` and says how to open
the ports on one store; `opener` is a picklable function, so that other processes can open the same store."""

from __future__ import annotations

import functools
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aegis.errors import AlreadyExists, Conflict, Temporary
from retrain_trigger.budget import Budget, Reservation, Waiting
from retrain_trigger.model import MAX_EVIDENCE, MAX_HISTORY, Condition, Evidence, Retrain, Row, Status
from retrain_trigger.workflow import CLAIM, MODEL_LABEL, SEQUENCE_LABEL
from tests.trigger.world import NOW, Ports

Opener = Callable[[], Ports]
RACERS = 8


def full_status() -> Status:
    """A ledger with every field set, at the bounds of its lists."""
    alerts = tuple(
        Evidence(
            fingerprint=f"{n:016x}", starts_at=NOW, seen=NOW + timedelta(seconds=n), ends_at=NOW, resolve_seen=NOW,
            version="7", severity="critical", dataset_uri="s3://data/x", score=0.25, feature="age", event_id="e",
            source="/alertmanager/test",
        )
        for n in range(MAX_EVIDENCE)
    )  # fmt: skip
    retrain = Retrain(
        sequence=3, workflow="aegis-churn-12345678-3", claim="c", phase="Finished", first_claimed_at=NOW,
        claimed_at=NOW, versions=("6", "7"), uid="u", submitted_at=NOW, state="Running", deadline=NOW, ended_at=NOW,
        outcome="Rejected", outcome_reason="Worse", explanation="0.81 < 0.84", inputs="ab", run_id="r",
        registered_version="4", settled=True, requested_by="ada",
    )  # fmt: skip
    rows = tuple(Row(kind="Hold", reason="Cooldown", message=f"{n} é \U0001f600", first=NOW, last=NOW, count=n + 1)
                 for n in range(MAX_HISTORY))  # fmt: skip
    condition = Condition(type="Drifting", status="True", reason="AlertsFiring", message="", last_transition_time=NOW)
    return Status(
        evidence=alerts, attempts=2, failures=1, sequence=3, retrain=retrain, settled_at=NOW, next_eligible_at=NOW,
        superseded_versions=("5",), pointer="12", last_seen=NOW, waits={"BudgetSpent": NOW}, tokens=("t1", "t2"),
        history=rows, conditions=(condition,),
    )  # fmt: skip


def manifest(name: str, claim: str = "mine", model: str = "churn.default", sequence: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": name,
            "labels": {MODEL_LABEL: model, SEQUENCE_LABEL: str(sequence)},
            "annotations": {CLAIM: claim},
        },
        "spec": {"workflowTemplateRef": {"name": "aegis-retrain"}},
    }


# --- what racers do: one attempt each, from a process or a thread ---


def attempt_create(opener: Opener, _: int) -> bool:
    try:
        opener().ledger.create("default", "raced", Status(), NOW)
    except Conflict:
        return False
    return True


def attempt_write(version: str, opener: Opener, number: int) -> bool:
    """All hold the version that was read before any wrote: a barrier would not cross processes, the version does."""
    ledger = opener().ledger
    record = ledger.read("raced.default")
    assert record is not None
    try:
        # A write that changes nothing gets no new version on Kubernetes, so each writes something else.
        ledger.write(replace(record, version=version), replace(record.status, attempts=number + 1), pending=True)
    except Conflict:
        return False
    return True


def attempt_workflow(opener: Opener, number: int) -> bool:
    try:
        opener().workflows.create(manifest("raced-1", claim=str(number)), NOW)
    except AlreadyExists:
        return False
    return True


def count_up(opener: Opener, number: int) -> int:
    """Take ten reservations, each by compare-and-set until it holds. Returns the number of lost races."""
    budgets, lost = opener().budgets, 0
    for step in range(10):
        while True:
            budget, version = budgets.read()
            mine = Reservation(model=f"m{number}", sequence=step, at=NOW)
            try:
                budgets.write(replace(budget, reservations={**budget.reservations, f"{number}-{step}": mine}), version)
                break
            except Conflict:
                lost += 1
    return lost


def raise_attempts(opener: Opener, _: int) -> int:
    """Add one to a counter in the ledger ten times, each by compare-and-set until it holds."""
    ledger = opener().ledger
    for _step in range(10):
        while True:
            record = ledger.read("raced.default")
            assert record is not None
            try:
                status = replace(record.status, attempts=record.status.attempts + 1)
                ledger.write(record, status, pending=True)
                break
            except Conflict:
                continue
    return 10


class PortsContract:
    """Inherit, and give a fixture `opener`."""

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest.fixture
    def ports(self, opener: Opener) -> Ports:
        return opener()

    @pytest.fixture(params=["threads", "processes"])
    def race(self, request: pytest.FixtureRequest, opener: Opener) -> Callable[[Callable[[Opener, int], Any]], Any]:
        """Run one function eight times at once, each on ports of its own."""

        def run(work: Callable[[Opener, int], Any]) -> list[Any]:
            if request.param == "threads":
                with ThreadPoolExecutor(RACERS) as pool:
                    return list(pool.map(lambda n: work(opener, n), range(RACERS)))
            with ProcessPoolExecutor(RACERS, mp_context=_context()) as processes:
                return list(processes.map(work, [opener] * RACERS, range(RACERS)))

        return run

    # --- ledger ---

    def test_a_model_that_nobody_created_is_none(self, ports: Ports) -> None:
        assert ports.ledger.read("churn.default") is None
        assert ports.ledger.count() == 0
        assert list(ports.ledger.pending()) == []

    def test_a_created_record_reads_back(self, ports: Ports) -> None:
        made = ports.ledger.create("default", "churn", Status(attempts=1), NOW)
        assert (made.name, made.environment, made.model) == ("churn.default", "default", "churn")
        assert made.uid
        assert made.version
        assert ports.ledger.read("churn.default") == made
        assert ports.ledger.count() == 1

    def test_two_records_have_two_uids(self, ports: Ports) -> None:
        one = ports.ledger.create("default", "churn", Status(), NOW)
        other = ports.ledger.create("default", "fraud", Status(), NOW)
        assert one.uid != other.uid

    def test_names_that_are_no_dns_labels_are_kept_apart(self, ports: Ports) -> None:
        names = {ports.ledger.create(e, m, Status(), NOW).name for e, m in (("a", "B"), ("a", "b"), ("A", "b"))}
        assert len(names) == 3
        for name in names:
            record = ports.ledger.read(name)
            assert record is not None
            assert record.name == name

    def test_creating_twice_is_a_conflict(self, ports: Ports) -> None:
        ports.ledger.create("default", "churn", Status(), NOW)
        with pytest.raises(Conflict):
            ports.ledger.create("default", "churn", Status(), NOW)

    def test_every_field_of_a_ledger_survives_a_write(self, ports: Ports) -> None:
        made = ports.ledger.create("default", "churn", Status(), NOW)
        written = ports.ledger.write(made, full_status(), pending=True)
        assert written.version != made.version
        found = ports.ledger.read("churn.default")
        assert found == written
        assert found is not None
        assert found.status == full_status()

    def test_a_write_with_an_old_version_is_a_conflict_and_changes_nothing(self, ports: Ports) -> None:
        made = ports.ledger.create("default", "churn", Status(), NOW)
        written = ports.ledger.write(made, Status(attempts=1), pending=False)
        with pytest.raises(Conflict):
            ports.ledger.write(made, Status(attempts=9), pending=True)
        assert ports.ledger.read("churn.default") == written

    def test_a_write_to_a_record_that_is_gone_is_a_conflict(self, ports: Ports) -> None:
        made = ports.ledger.create("default", "churn", Status(), NOW)
        with pytest.raises(Conflict):
            ports.ledger.write(replace(made, name="fraud.default", model="fraud"), Status(), pending=False)

    def test_pending_lists_exactly_those_with_work(self, ports: Ports) -> None:
        for model in ("a", "b", "c"):
            made = ports.ledger.create("default", model, Status(), NOW)
            ports.ledger.write(made, Status(), pending=model != "b")
        assert sorted(ports.ledger.pending()) == ["a.default", "c.default"]

    def test_work_that_is_done_leaves_the_pending_list(self, ports: Ports) -> None:
        made = ports.ledger.create("default", "churn", Status(), NOW)
        written = ports.ledger.write(made, Status(), pending=True)
        ports.ledger.write(written, Status(), pending=False)
        assert list(ports.ledger.pending()) == []

    def test_a_new_record_that_says_something_is_pending_so_that_a_crash_after_it_is_seen(self, ports: Ports) -> None:
        ports.ledger.create("default", "churn", Status(attempts=1), NOW)
        assert list(ports.ledger.pending()) == ["churn.default"]

    def test_one_of_eight_creators_wins(self, ports: Ports, race: Any) -> None:
        assert sum(race(attempt_create)) == 1
        assert ports.ledger.count() == 1

    def test_one_of_eight_writers_of_one_version_wins(self, ports: Ports, race: Any) -> None:
        made = ports.ledger.create("default", "raced", Status(), NOW)
        won: list[bool] = race(functools.partial(attempt_write, made.version))
        assert sum(won) == 1
        found = ports.ledger.read("raced.default")
        assert found is not None
        assert found.status.attempts == won.index(True) + 1

    def test_no_write_of_eight_racing_counters_is_lost(self, ports: Ports, race: Any) -> None:
        ports.ledger.create("default", "raced", Status(), NOW)
        assert sum(race(raise_attempts)) == 80
        found = ports.ledger.read("raced.default")
        assert found is not None
        assert found.status.attempts == 80

    # --- budget ---

    def test_a_budget_that_nobody_wrote_is_empty(self, ports: Ports) -> None:
        budget, _ = ports.budgets.read()
        assert budget == Budget()

    def test_a_budget_reads_back(self, ports: Ports) -> None:
        full = Budget(
            reservations={"w": Reservation(model="churn.default", sequence=2, at=NOW, claimed=True)},
            waiting={"fraud.default": Waiting(severity="critical", since=NOW, refreshed=NOW)},
        )
        ports.budgets.write(full, ports.budgets.read()[1])
        assert ports.budgets.read()[0] == full
        ports.budgets.write(Budget(), ports.budgets.read()[1])
        assert ports.budgets.read()[0] == Budget()

    def test_an_old_version_of_the_budget_is_a_conflict(self, ports: Ports) -> None:
        def budget(number: int) -> Budget:
            return Budget(reservations={"w": Reservation(model="churn.default", sequence=number, at=NOW)})

        _, first = ports.budgets.read()
        ports.budgets.write(budget(1), first)
        with pytest.raises(Conflict):
            ports.budgets.write(budget(2), first)
        _, second = ports.budgets.read()
        ports.budgets.write(budget(3), second)
        with pytest.raises(Conflict):
            ports.budgets.write(budget(4), second)
        assert ports.budgets.read()[0] == budget(3)

    def test_no_reservation_of_eight_racers_is_lost(self, ports: Ports, race: Any) -> None:
        race(count_up)
        assert len(ports.budgets.read()[0].reservations) == 80

    # --- Workflows ---

    def test_a_workflow_that_nobody_created_is_none(self, ports: Ports) -> None:
        assert ports.workflows.get("aegis-churn-1") is None
        assert ports.workflows.of_model("churn.default") == []

    def test_a_workflow_keeps_what_the_manifest_says_and_gets_a_uid_and_a_time(self, ports: Ports) -> None:
        wanted = manifest("aegis-churn-1")
        uid = ports.workflows.create(wanted, NOW)
        found = ports.workflows.get("aegis-churn-1")
        assert found is not None
        assert found["metadata"]["uid"] == uid
        assert found["metadata"]["creationTimestamp"]
        assert found["spec"] == wanted["spec"]
        assert {k: found["metadata"][k] for k in wanted["metadata"]} == wanted["metadata"]
        assert "uid" not in wanted["metadata"], "the caller's manifest is not changed"

    def test_a_workflow_is_created_once(self, ports: Ports) -> None:
        uid = ports.workflows.create(manifest("aegis-churn-1", claim="first"), NOW)
        with pytest.raises(AlreadyExists):
            ports.workflows.create(manifest("aegis-churn-1", claim="second"), NOW)
        found = ports.workflows.get("aegis-churn-1")
        assert found is not None
        assert found["metadata"]["uid"] == uid
        assert found["metadata"]["annotations"][CLAIM] == "first"

    def test_workflows_are_found_by_their_models_label_alone(self, ports: Ports) -> None:
        for name, model in (("w1", "churn.default"), ("w2", "churn.default"), ("w3", "fraud.default")):
            ports.workflows.create(manifest(name, model=model), NOW)
        assert sorted(w["metadata"]["name"] for w in ports.workflows.of_model("churn.default")) == ["w1", "w2"]

    def test_one_of_eight_creators_of_a_workflow_wins(self, ports: Ports, race: Any) -> None:
        won: list[bool] = race(attempt_workflow)
        assert sum(won) == 1
        found = ports.workflows.get("raced-1")
        assert found is not None
        assert found["metadata"]["annotations"][CLAIM] == str(won.index(True))

    # --- threads share one adapter ---

    def test_one_adapter_serves_many_threads(self, ports: Ports) -> None:
        ready = threading.Barrier(RACERS)

        def work(number: int) -> bool:
            ready.wait(10)
            ports.ledger.create("default", f"m{number}", Status(), NOW)
            return ports.ledger.read(f"m{number}.default") is not None

        with ThreadPoolExecutor(RACERS) as pool:
            assert all(pool.map(work, range(RACERS)))
        assert ports.ledger.count() == RACERS


def expects_temporary(call: Callable[[], object]) -> None:
    """Whatever the store's own error is, the ports say Temporary."""
    with pytest.raises(Temporary):
        call()


def _context() -> multiprocessing.context.ForkServerContext:
    return multiprocessing.get_context("forkserver")  # a plain fork would copy this process's threads and locks
