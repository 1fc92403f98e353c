"""One rule of the policy a test: evidence, holds, outcomes, requests, what people see, and what is written when."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import Permanent, Temporary
from retrain_trigger.model import Policy, Status, from_document, object_name, policy_from, to_doc, workflow_name
from retrain_trigger.policy import Kind, decide
from retrain_trigger.workflow import model_label

from .world import DAY, HOUR, MINUTE, MODELS, NAME, PREFIX, SECOND, World, drift


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def held(world: World, alert: int = 1, **more: Any) -> str:
    decision = world.fire(alert, **more).decision
    assert decision.kind is Kind.HOLD
    return decision.reason


# --- evidence ---


def test_a_resolve_never_submits_although_another_alert_waits_for_it(world: World) -> None:
    world.fire(1)
    world.end("Rejected")
    world.fire(1, starts_at=world.now)
    world.now += HOUR
    world.fire(2)
    world.now += 5 * HOUR  # the cooldown is over; nobody looked
    answer = world.resolve(1)
    assert (answer.decision.kind, answer.decision.reason) == (Kind.HOLD, "Ready")
    assert len(world.workflows()) == 1
    world.reconcile()
    assert len(world.workflows()) == 2


def test_a_firing_copy_within_an_hour_of_its_resolve_is_a_late_delivery_and_later_it_is_alive(world: World) -> None:
    starts_at = world.now - HOUR
    world.resolve(1, starts_at=starts_at)
    world.now += 59 * MINUTE
    assert held(world, 1, starts_at=starts_at) == "NotFiring"
    world.now += 2 * MINUTE
    assert world.fire(1, starts_at=starts_at).decision.kind is Kind.SUBMIT


def test_a_firing_again_after_the_resolve_is_alive_at_once(world: World) -> None:
    world.resolve(1)
    world.now += MINUTE
    assert world.fire(1, starts_at=world.now).decision.kind is Kind.SUBMIT


def test_times_ahead_of_now_count_as_now(world: World) -> None:
    world.fire(1, seen=world.now + DAY, starts_at=world.now + HOUR)
    (alert,) = world.status.evidence
    assert (alert.seen, alert.starts_at, world.status.last_seen) == (world.now,) * 3


def test_a_resolves_dataset_is_not_kept_because_nobody_checked_it(world: World) -> None:
    world.resolve(1, dataset_uri="s3://elsewhere/poison")
    world.ask("now")
    world.reconcile()
    (doc,) = world.workflows()
    parameters = {p["name"]: p["value"] for p in doc["spec"]["arguments"]["parameters"]}
    assert parameters["dataset-uri"] == ""


def test_beyond_16_alerts_resolved_ones_make_room_and_else_only_the_last_sighting_moves(world: World) -> None:
    world.spec(suspend=True)
    for alert in range(16):
        world.fire(alert)
    world.now += 2 * HOUR
    before = world.status
    world.fire(99)
    assert world.status == replace(before, last_seen=world.now, history=world.status.history)
    world.resolve(3)
    world.fire(99)
    assert {int(alert.fingerprint, 16) for alert in world.status.evidence} == {*range(16), 99} - {3}


def test_a_rejected_event_leaves_one_row_and_its_repeats_cost_a_read(world: World) -> None:
    starts_at = world.now
    world.fire(starts_at=starts_at)
    evidence = world.status.evidence
    for _ in range(30):
        world.now += MINUTE
        world.calls.clear()
        answer = world.fire(2, dataset_uri="s3://elsewhere/x")
        assert answer.decision.kind is Kind.REJECT
        world.fire(1, starts_at=starts_at)  # in turn with one that is held: neither may push out the story
    assert world.calls == ["ledger.read"] * 2
    assert [alert.fingerprint for alert in world.status.evidence] == [alert.fingerprint for alert in evidence]
    assert [row.kind for row in world.status.history] == ["Submitted", "Rejected", "Hold"]


# --- what is written when ---


def test_a_heartbeat_costs_one_read_until_evidence_moved_by_an_eighth_of_its_ttl(world: World) -> None:
    starts_at = world.now
    world.fire(starts_at=starts_at)
    world.end("Rejected", took=MINUTE)
    world.now += 3 * MINUTE
    world.fire(starts_at=starts_at)
    world.calls.clear()
    for _ in range(48):
        world.now += 5 * MINUTE
        world.fire(starts_at=starts_at)
    assert world.calls.count("ledger.write") == 4
    assert world.calls.count("ledger.read") == 48
    assert len(world.calls) == 52


@pytest.mark.parametrize("what", ["version", "dataset_uri", "starts_at", "alert", "ends_at"])
def test_news_is_written_at_once(world: World, what: str) -> None:
    starts_at = world.now - MINUTE
    world.fire(starts_at=starts_at)
    world.fire(starts_at=starts_at)
    world.calls.clear()
    world.now += SECOND
    news: dict[str, Any] = {
        "version": "v2",
        "dataset_uri": "s3://data/other",
        "alert": 2,
        "ends_at": world.now,
        "starts_at": world.now,
    }
    world.fire(**{"starts_at": starts_at, what: news[what]})
    assert "ledger.write" in world.calls


def test_reconcile_writes_only_transitions(world: World) -> None:
    world.fire()
    world.end("Rejected")
    world.fire(2)
    world.wait(HOUR)
    world.calls.clear()
    world.wait(HOUR, every=MINUTE)
    assert "ledger.write" not in world.calls


# --- outcomes ---


@pytest.mark.parametrize(
    ("outcome", "attempts", "failures", "pause"),
    [
        ("Promoted", 1, 0, 6 * HOUR),
        ("Rejected", 1, 0, 6 * HOUR),
        ("BadData", 1, 0, 6 * HOUR),
        ("TrainerFailed", 1, 0, 6 * HOUR),
        ("Failed", 0, 1, 10 * MINUTE),
        ("Lost", 0, 1, 10 * MINUTE),
        ("Cancelled", 0, 1, 6 * HOUR),
    ],
)
def test_an_outcome_uses_an_attempt_or_not_and_pauses(
    world: World, outcome: str, attempts: int, failures: int, pause: timedelta
) -> None:
    world.fire(version="unknown")
    world.end(outcome)
    status = world.status
    assert (status.attempts, status.failures) == (attempts, failures)
    assert status.next_eligible_at == world.now + pause
    world.now += pause - SECOND
    assert held(world, version="unknown") in ("Cooldown", "Backoff")
    world.now += SECOND
    assert world.fire(version="unknown").decision.kind is Kind.SUBMIT


def test_failures_back_off_doubling_to_the_cooldown_and_the_fifth_asks_a_person(world: World) -> None:
    pauses = []
    for failure in range(1, 8):
        world.fire()
        world.end("Failed" if failure % 2 else "Lost", took=MINUTE)
        assert world.status.next_eligible_at is not None
        pauses.append(world.status.next_eligible_at - world.now)
        assert (world.human() == "RetrainsFail") == (failure >= 5)
        world.now += pauses[-1]
    assert [pause / MINUTE for pause in pauses] == [10, 20, 40, 80, 160, 320, 360]


def test_a_failure_never_ends_the_pause_that_stood(world: World) -> None:
    world.fire()
    world.end("Promoted")
    stood = world.status.next_eligible_at
    world.ask("now")
    world.reconcile()
    world.end("Failed", took=MINUTE)
    assert world.status.next_eligible_at == stood


def test_attempts_restart_after_the_quiet_period(world: World) -> None:
    world.spec(maxAttempts=1)
    world.fire()
    world.end("Rejected")
    assert world.human() == "AttemptsSpent"
    world.wait(46 * HOUR, every=HOUR)
    assert world.status.attempts == 1
    world.wait(2 * HOUR)
    assert (world.status.attempts, world.human(), world.status.evidence) == (0, None, ())


def test_attempts_restart_when_nothing_fires_at_the_end_of_a_promoted_retrains_cooldown(world: World) -> None:
    world.fire()
    world.end("Promoted")
    world.resolve()
    world.wait(6 * HOUR)
    assert world.status.attempts == 0


def test_attempts_do_not_restart_when_it_still_fires_at_the_end_of_the_cooldown(world: World) -> None:
    world.fire()
    world.end("Promoted")
    world.wait(5 * HOUR)
    world.fire()
    world.wait(2 * HOUR)
    world.resolve()
    world.wait(5 * HOUR)
    assert world.status.attempts == 1


# --- roll-outs ---


def test_waiting_for_the_rollout_ends_when_somebody_else_moves_the_champion(world: World) -> None:
    world.fire()
    world.end("Promoted", pointer="4")
    world.wait(7 * HOUR)
    world.pointer = "4"
    assert held(world) == "WaitingForRollout"
    world.pointer = "5"
    assert world.fire().decision.kind is Kind.SUBMIT


def test_a_version_nobody_knows_never_waits_for_a_rollout(world: World) -> None:
    world.fire(1)
    world.end("Promoted")
    world.wait(7 * HOUR)
    assert held(world, 1) == "WaitingForRollout"
    assert world.fire(2, version="unknown").decision.kind is Kind.SUBMIT


def test_the_new_version_that_drifts_in_its_turn_is_retrained(world: World) -> None:
    world.fire(1)
    world.end("Promoted")
    world.resolve(1)
    world.wait(7 * HOUR)
    assert world.fire(2, version="v2").decision.kind is Kind.SUBMIT


# --- people ---


def test_one_token_is_one_run(world: World) -> None:
    world.spec()
    world.ask("once")
    world.reconcile()
    world.end("Promoted")
    for _ in range(3):
        world.ask("once")
        world.reconcile()
    assert len(world.workflows()) == 1
    world.ask("twice")
    world.reconcile()
    assert len(world.workflows()) == 2


def test_a_request_passes_cooldown_and_spent_attempts_restarts_them_and_uses_none(world: World) -> None:
    world.spec(maxAttempts=1)
    world.fire()
    world.end("Rejected")
    assert world.human() == "AttemptsSpent"
    world.ask("please")
    world.reconcile()
    assert (world.status.attempts, world.human()) == (0, None)
    world.end("Rejected")
    assert (world.status.attempts, world.human()) == (0, None)


def test_suspend_holds_also_a_request_until_it_is_lifted(world: World) -> None:
    world.spec(suspend=True)
    world.ask("later")
    assert held(world) == "Suspended"
    world.wait(HOUR)
    assert world.workflows() == []
    world.spec()
    world.reconcile()
    assert len(world.workflows()) == 1
    assert world.status.tokens == ("later",)


def test_a_request_waits_for_the_budget_and_keeps_its_token(world: World) -> None:
    world.limits = replace(world.limits, budget=1)
    world.trigger = world.start()
    world.fire(model="other")
    world.spec()
    world.ask("mine")
    world.reconcile()
    assert not world.status.tokens
    assert "BudgetSpent" in world.status.waits
    world.wait(HOUR)
    assert world.status.tokens == ("mine",)


# --- what people see ---


def test_data_without_labels_asks_a_person_until_labels_come(world: World) -> None:
    world.fire()
    world.end("BadData", reason="NoLabels")
    assert world.human() == "NoLabels"
    since = world.status.condition("NeedsHuman")
    world.wait(6 * HOUR)
    world.fire()
    assert world.human() == "NoLabels", "a second try is no label"
    world.end("BadData", reason="NoLabels")
    assert world.status.condition("NeedsHuman") == since
    world.wait(6 * HOUR)
    world.fire()
    world.end("Rejected")
    assert world.human() == "AttemptsSpent"


@pytest.mark.parametrize("clear", ["promoted", "asked", "quiet"])
def test_a_call_for_a_person_clears(world: World, clear: str) -> None:
    world.fire()
    world.end("BadData", reason="NoLabels")
    if clear == "quiet":
        world.wait(3 * DAY, every=HOUR)
    elif clear == "asked":
        world.ask("labelled")
        world.reconcile()
    else:
        world.wait(6 * HOUR)
        world.fire()
        world.end("Promoted")
    assert world.human() is None


def test_a_day_without_rollout_asks_a_person_until_a_new_version_drifts(world: World) -> None:
    world.fire()
    world.end("Promoted")
    world.wait(6 * HOUR)
    for hour in range(26):
        world.fire(starts_at=world.now - DAY)
        assert (world.human() == "WaitingForRollout") == (hour >= 24)
        world.wait(HOUR)
    world.fire(2, version="v2")
    assert world.human() is None


def test_a_day_of_spent_budget_asks_a_person(world: World) -> None:
    world.limits = replace(world.limits, budget=1)
    world.trigger = world.start()
    for hour in range(26):
        # Something more severe always comes first.
        world.fire(model=f"urgent-{hour}", severity="critical")
        world.fire(1)
        world.now += HOUR - MINUTE
        world.fire(model=f"urgent-{hour + 1}", severity="critical")
        world.now += MINUTE
    assert not any("churn-" in doc["metadata"]["name"] for doc in world.workflows())
    assert world.human() == "BudgetSpent"
    world.wait(3 * HOUR)
    world.fire(1)
    world.wait(3 * HOUR)
    assert world.human() is None


@pytest.mark.parametrize("wait", ["Queued", "AwaitingApproval"])
def test_a_day_in_the_queue_or_before_approval_asks_a_person(world: World, wait: str) -> None:
    world.fire()
    world.phase("Pending" if wait == "Queued" else "Running", suspended=wait == "AwaitingApproval")
    world.wait(DAY - MINUTE)
    assert world.human() is None
    world.wait(MINUTE)
    assert world.human() == wait
    world.phase("Running")
    assert world.human() is None


def test_a_workflow_past_its_deadline_is_stuck_and_stays_in_flight(world: World) -> None:
    def stuck() -> bool:
        condition = world.status.condition("Stuck")
        return condition is not None and condition.holds

    world.fire()
    world.phase("Pending")
    world.wait(10 * HOUR)
    world.phase("Running")
    world.wait(3 * HOUR)
    assert not stuck()
    world.wait(HOUR)
    assert stuck()
    assert held(world) == "InFlight"
    world.end("Promoted")
    assert not stuck()


def test_a_vanished_workflow_is_lost_and_the_same_evidence_trains_again(world: World) -> None:
    world.fire()
    world.end("Lost")
    assert world.status.retrain is not None
    assert world.status.retrain.outcome == "Lost"
    world.wait(10 * MINUTE)
    assert len(world.workflows()) == 1
    assert world.status.sequence == 2


# --- where the data may lie ---


def narrowed(world: World, *prefixes: str) -> None:
    """The operator changes the prefixes, and the trigger is started anew."""
    world.limits = replace(world.limits, prefixes=prefixes)
    world.trigger = world.start()


def held_for_its_location(world: World) -> None:
    """No Workflow, a person is asked, and looking again and again writes nothing."""
    world.reconcile()
    before = len(world.workflows())
    assert world.human() == "LocationNotAllowed"
    retraining = world.status.condition("Retraining")
    assert retraining is not None
    assert (retraining.status, retraining.reason) == ("False", "LocationNotAllowed")
    world.calls.clear()
    world.wait(90 * MINUTE, every=MINUTE)
    assert "ledger.write" not in world.calls
    assert "budgets.write" not in world.calls, "a hold takes no place in the budget"
    assert len(world.workflows()) == before


def test_evidence_of_older_prefixes_is_not_read_by_reconcile_until_they_allow_it_again(world: World) -> None:
    world.fire(1)
    world.end("Rejected", took=5 * HOUR)
    world.now += 5 * MINUTE
    world.fire(1)
    narrowed(world, "s3://other/")
    world.now += 6 * HOUR
    held_for_its_location(world)
    world.fire(1, dataset_uri="s3://other/new")  # the mended location comes with the next alert
    assert (len(world.workflows()), world.human()) == (2, None)


def test_evidence_of_older_prefixes_is_not_read_by_an_event_that_names_no_place(world: World) -> None:
    world.spec(suspend=True)
    world.fire(1)
    world.spec()
    narrowed(world, "s3://other/")
    decision = world.fire(2, dataset_uri=None, seen=world.now - MINUTE).decision
    assert (decision.kind, decision.reason) == (Kind.HOLD, "LocationNotAllowed")
    assert "s3://data/new" in decision.message
    assert world.workflows() == []


@pytest.mark.parametrize("spec", [{"datasetUri": "s3://elsewhere/x"}, {"evaluationUri": "s3://data/../x"}])
def test_a_location_that_the_owner_wrote_is_checked_before_it_is_read(world: World, spec: dict[str, Any]) -> None:
    world.spec(suspend=True)
    world.fire(1)
    world.spec(**spec)
    held_for_its_location(world)
    world.spec()
    world.reconcile()
    assert (len(world.workflows()), world.human()) == (1, None)


def test_a_request_waits_for_a_location_that_is_allowed_and_keeps_its_token(world: World) -> None:
    world.spec(datasetUri="s3://elsewhere/x")
    world.ask("please")
    held_for_its_location(world)
    assert [(row.reason, row.count) for row in world.status.history] == [("LocationNotAllowed", 1)]
    assert "s3://elsewhere/x" in world.status.history[0].message
    world.spec(datasetUri="s3://data/x")
    world.reconcile()
    assert (len(world.workflows()), world.status.tokens, world.human()) == (1, ("please",), None)


def test_a_request_that_waits_is_told_once(world: World) -> None:
    world.spec(suspend=True)
    world.ask("later")
    world.reconcile()
    world.calls.clear()
    world.wait(5 * HOUR, every=10 * MINUTE)
    assert "ledger.write" not in world.calls
    assert [(row.reason, row.count) for row in world.status.history] == [("Suspended", 1)]


# --- documents ---


def test_a_ledger_from_a_newer_aegis_is_left_alone(world: World) -> None:
    world.spec()
    stored = world.objects.get(MODELS, NAME)
    assert stored is not None
    doc = {**stored.doc, "status": {"formatVersion": 2}}
    world.objects.replace(MODELS, NAME, doc, stored.version, pending=True)
    with pytest.raises(Temporary, match="newer"):
        world.fire()
    assert world.reconcile() == {"again": 1}


def test_every_fault_of_a_spec_is_named_at_once() -> None:
    spec = {
        "suspend": "yes", "cooldown": "soon", "maxAttempts": True, "evidenceTtl": "1h", "datasetUri": "s3://{{x}}",
        "trainer": [], "alias": 3, "quietPeriod": "1m", "evidenceTTL": 5, "evaluationUri": "s3://x}}",
    }  # fmt: skip
    with pytest.raises(Permanent) as caught:
        policy_from(spec)
    assert set(caught.value.faults) == {f"spec.{name}" for name in spec}


def test_the_spec_is_spelled_as_the_design_says() -> None:
    spec = {
        "suspend": True, "datasetUri": "s3://data/x", "evaluationUri": "s3://data/y", "cooldown": "1h",
        "maxAttempts": 2, "quietPeriod": "50h", "evidenceTTL": "9h", "approval": True, "trainer": {"epochs": 3},
        "gate": {"alpha": 0.01}, "alias": "best", "workflowTemplate": "mine",
    }  # fmt: skip
    policy = policy_from(spec)
    assert to_doc(policy).keys() == spec.keys()
    assert (policy.cooldown, policy.quiet_period, policy.evidence_ttl) == (HOUR, 50 * HOUR, 9 * HOUR)
    default = Policy()
    assert not [f for f in Policy.__slots__ if getattr(policy, f) == getattr(default, f)], "each is set by its name"


def test_identity_and_name_of_a_document_must_agree() -> None:
    doc = {"metadata": {"name": "other", "uid": "u"}, "spec": {"environment": "prod", "model": "churn", "suspend": 1}}
    with pytest.raises(Permanent) as caught:
        from_document(doc, "1")
    assert caught.value.faults == {"metadata.name": "must be churn.prod", "spec.suspend": "must be true or false"}


DAMAGE: dict[str, Any] = {
    "history": 7,
    "evidence": [{"fingerprint": "x", "startsAt": "yesterday"}],
    "attempts": "two",
    "failures": True,
    "retrain": {"sequence": 1},
    "nextEligibleAt": "soon",
    "settledAt": 5,
    "waits": ["BudgetSpent"],
    "tokens": "abc",
    "conditions": [None],
    "pointer": 4,
}


def test_every_damaged_field_of_a_ledger_is_named_at_once(world: World) -> None:
    world.spec()
    stored = world.objects.get(MODELS, NAME)
    assert stored is not None
    with pytest.raises(Permanent) as caught:
        from_document({**stored.doc, "status": DAMAGE}, "1")
    assert set(caught.value.faults) == {f"status.{name}" for name in DAMAGE}


@pytest.mark.parametrize(
    "damage",
    [
        {"metadata": None},
        {"metadata": []},
        {"spec": None},
        {"spec": "x"},
        {"status": [1]},
        {"status": {"formatVersion": "2"}},
        {"status": {"evidence": [{"fingerprint": "x", "startsAt": "2026-03-01T00:00:00Z", "severity": "loud"}]}},
        {"spec": {"environment": 7, "model": "churn"}},
        {"metadata": {"name": NAME}},
        {"metadata": {"name": NAME, "uid": "u", "labels": {"aegis.dev/retrain": 7}}},
        {"metadata": {"name": NAME, "uid": "u", "labels": ["x"]}},
    ],
    ids=repr,
)
def test_whatever_is_damaged_in_a_document_it_is_permanent(world: World, damage: dict[str, Any]) -> None:
    world.spec()
    stored = world.objects.get(MODELS, NAME)
    assert stored is not None
    with pytest.raises(Permanent) as caught:
        from_document({**stored.doc, **damage}, "1")
    assert caught.value.faults


@pytest.mark.parametrize(
    ("environment", "model"),
    [("default", "churn"), ("Prod", "My.Model_1"), ("e" * 63, "m" * 63), ("a", "A" * 63), ("x.y", "0-")],
)
def test_names_are_dns_names_of_bounded_length(environment: str, model: str) -> None:
    label = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    name = object_name(environment, model)
    assert len(name) <= 253
    assert re.fullmatch(rf"{label}(\.{label})?", name)
    workflow = workflow_name(model, "uid", 10**9)
    assert len(workflow) <= 63
    assert re.fullmatch(label, workflow)
    assert len(model_label(name)) <= 63
    assert object_name(environment, model.swapcase()) != name or model.swapcase() == model


def test_two_models_whose_long_names_begin_alike_have_two_labels() -> None:
    assert model_label("m" * 63 + ".a") != model_label("m" * 63 + ".b")


def test_decide_is_pure(world: World) -> None:
    world.spec()
    record = world.record()
    decisions = [
        decide(record, world.now, claim="c", prefixes=(PREFIX,), event=drift(world.now), pointer=None) for _ in "ab"
    ]
    assert decisions[0] == decisions[1]
    assert record.status == Status()
    assert Policy() == record.policy
