"""What stands in the ledger after each step of a retrain, whole: every field, and the words that people read."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from retrain_trigger import policy as rules
from retrain_trigger.model import Evidence, Policy, Record, Request, Retrain, Row, Status, workflow_name
from retrain_trigger.policy import Decision, Finish, Kind, Outcome, decide

from .world import DAY, HOUR, MINUTE, PREFIX, SECOND, START, drift

NOW = START
UID = "uid-of-churn"


def record(status: Status | None = None, *, request: Request | None = None, **policy: Any) -> Record:
    return Record(
        name="churn.default", uid=UID, version="1", environment="default", model="churn", policy=Policy(**policy),
        status=status or Status(), request=request,
    )  # fmt: skip


def alert(number: int = 1, **more: Any) -> Evidence:
    fields: dict[str, Any] = {
        "fingerprint": f"{number:016x}",
        "starts_at": NOW - HOUR,
        "seen": NOW - MINUTE,
        "version": f"v{number}",
        "dataset_uri": f"{PREFIX}{number}",
        "event_id": f"event-{number}",
        "source": f"/alertmanager/{number}",
    }
    return Evidence(**{**fields, **more})


def claimed(**more: Any) -> Retrain:
    fields: dict[str, Any] = {
        "sequence": 4, "workflow": workflow_name("churn", UID, 4), "claim": "token", "phase": "Claimed",
        "first_claimed_at": NOW - HOUR, "claimed_at": NOW - HOUR, "versions": ("v1",), "version": "v1",
        "event_id": "event-1", "reason": "version v1 drifts",
    }  # fmt: skip
    return Retrain(**{**fields, **more})


def reasons(status: Status) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


def ask(given: Record, **more: Any) -> Decision:
    return decide(given, NOW, claim="token", prefixes=(PREFIX,), **more)


# --- evidence ---


def test_what_an_alert_says_is_kept_whole_and_bounded() -> None:
    event = replace(drift(NOW - MINUTE, alert=7, severity="critical"), score=0.5, feature="f" * 300, version="v7")
    (kept,) = rules.observe(Status(), Policy(), event, NOW).evidence
    assert kept == Evidence(
        fingerprint=f"{7:016x}", starts_at=NOW - 2 * MINUTE, seen=NOW - MINUTE, version="v7", severity="critical",
        dataset_uri="s3://data/new", score=0.5, feature="f" * 200, event_id=event.id, source="/alertmanager/test",
    )  # fmt: skip
    (plain,) = rules.observe(Status(), Policy(), replace(event, feature=None), NOW).evidence
    assert plain.feature is None


def test_a_resolve_is_kept_whole() -> None:
    event = drift(NOW, ends_at=NOW - MINUTE, starts_at=NOW - HOUR)
    (kept,) = rules.observe(Status(), Policy(), event, NOW).evidence
    assert kept == Evidence(
        fingerprint=f"{1:016x}", starts_at=NOW - HOUR, ends_at=NOW - MINUTE, resolve_seen=NOW, version="v1",
        feature="feature-1", event_id=event.id, source="/alertmanager/test",
    )  # fmt: skip


def test_what_a_firing_alert_says_is_not_replaced_by_its_resolve() -> None:
    firing = drift(NOW - HOUR, starts_at=NOW - 2 * HOUR, severity="critical")
    resolve = drift(NOW, ends_at=NOW, starts_at=NOW - 2 * HOUR, severity="info")
    for events in ((firing, resolve), (resolve, firing)):
        status = Status()
        for event in events:
            status = rules.observe(status, Policy(), event, NOW)
        (kept,) = status.evidence
        assert (kept.severity, kept.dataset_uri, kept.event_id) == ("critical", "s3://data/new", firing.id)
        assert (kept.seen, kept.ends_at) == (NOW - HOUR, NOW)


def test_room_is_made_by_the_alert_of_which_nothing_was_heard_for_longest() -> None:
    over = [alert(n, seen=None, ends_at=NOW - n * MINUTE, resolve_seen=NOW - n * MINUTE) for n in range(1, 17)]
    ordered = (over[3], *over[:3], *over[4:])
    after = rules.observe(Status(evidence=ordered), Policy(), drift(NOW, alert=99), NOW)
    assert {a.fingerprint for a in over} - {a.fingerprint for a in after.evidence} == {f"{16:016x}"}


# --- what is not a claim ---


def test_a_rejection_is_told_whole() -> None:
    given = record(Status(attempts=1), dataset_uri="s3://other/x")
    decision = ask(given, event=drift(NOW))
    message = "dataset_uri is not below an allowed dataset prefix"
    row = Row(kind="Rejected", reason="Invalid", message=message, first=NOW, last=NOW)
    assert decision == Decision(
        Kind.REJECT, "Invalid", message, replace(given.status, history=(row,)), write=True,
        faults={"dataset_uri": "is not below an allowed dataset prefix"},
    )  # fmt: skip


def test_a_late_redelivery_changes_nothing() -> None:
    given = record(Status(attempts=1))
    decision = ask(given, event=drift(NOW - 9 * HOUR))
    message = "older than evidenceTTL: a late redelivery"
    assert decision == Decision(Kind.IGNORE, "Stale", message, given.status, write=False)


def test_another_champion_ends_the_wait_for_a_roll_out_and_is_remembered() -> None:
    waits = {"WaitingForRollout": NOW - HOUR, "BudgetSpent": NOW - HOUR}
    status = Status(
        evidence=(alert(),), superseded_versions=("v1",), pointer="1", waits=waits, next_eligible_at=NOW + HOUR
    )
    same = ask(record(status), pointer="1").status
    assert (same.superseded_versions, same.waits) == (("v1",), waits)
    other = ask(record(status), pointer="2").status
    assert (other.pointer, other.superseded_versions) == ("2", ())
    assert other.waits == {"BudgetSpent": NOW - HOUR}


def test_a_model_that_needs_a_person_stays_pending_though_nothing_fires() -> None:
    status = rules._conditions(Policy(), Status(failures=5), "NotFiring", NOW)
    assert rules.pending(record(status), status, NOW)
    calm = rules._conditions(Policy(), Status(), "NotFiring", NOW)
    assert not rules.pending(record(calm), calm, NOW)


def test_only_a_condition_that_changed_is_worth_a_write() -> None:
    before = rules._conditions(Policy(), Status(), "NotFiring", NOW)
    after = rules._conditions(Policy(), Status(), "Suspended", NOW)
    assert rules._worth_writing(Policy(), before, after, NOW)
    assert not rules._worth_writing(Policy(), before, before, NOW)


def test_the_first_sighting_after_an_outcome_is_worth_a_write() -> None:
    before = Status(
        settled_at=NOW - 10 * MINUTE, evidence=(alert(seen=NOW - 10 * MINUTE),), last_seen=NOW - 10 * MINUTE
    )
    now_fresh = replace(before, evidence=(alert(seen=NOW - MINUTE),), last_seen=NOW - MINUTE)
    assert rules._worth_writing(Policy(), before, now_fresh, NOW)
    again = replace(now_fresh, evidence=(alert(seen=NOW),), last_seen=NOW)
    assert not rules._worth_writing(Policy(), now_fresh, again, NOW)


def test_the_first_sighting_of_all_is_worth_a_write() -> None:
    over = alert(seen=None, ends_at=NOW - HOUR, resolve_seen=NOW - HOUR, starts_at=NOW - 2 * HOUR)
    seen = replace(over, seen=NOW - 30 * MINUTE)
    assert rules._worth_writing(Policy(), Status(evidence=(over,)), Status(evidence=(seen,)), NOW)


def test_a_resolve_that_leaves_a_retrain_due_only_says_so() -> None:
    given = record(Status(evidence=(alert(2),)))
    decision = ask(given, event=drift(NOW, ends_at=NOW, starts_at=NOW - HOUR))
    words = "a retrain is due, but a resolve never submits; the next firing alert or reconcile does"
    assert (decision.kind, decision.reason, decision.message, decision.write) == (Kind.HOLD, "Ready", words, True)


def test_a_request_during_a_retrain_is_answered_by_it() -> None:
    given = record(Status(retrain=claimed(), sequence=4), request=Request("mine", by="ann"))
    decision = ask(given)
    row, *_ = decision.status.history
    assert row == Row(
        kind="Request", reason="AlreadyRunning", message="requested by ann", first=NOW, last=NOW,
        workflow=claimed().workflow,
    )  # fmt: skip
    assert decision.status.tokens == ("mine",)


def test_a_request_restarts_what_was_counted_and_says_that_it_was_one() -> None:
    given = record(Status(attempts=3, failures=2, evidence=(alert(),)), request=Request("mine", by="ann"))
    status = ask(given).status
    assert (status.attempts, status.failures) == (0, 0)
    assert [(row.kind, row.reason) for row in status.history] == [("Submitted", "Requested")]


def test_a_location_that_is_not_allowed_is_told_to_each_firing_alert() -> None:
    given = record(Status(), evaluation_uri="s3://other/y")
    first = ask(given, event=drift(NOW))
    again = ask(replace(given, status=first.status), event=drift(NOW, alert=2))
    assert [(row.reason, row.count) for row in again.status.history] == [("LocationNotAllowed", 2)]


# --- the claim ---


def test_a_claim_names_the_most_severe_alert_and_the_newest_data() -> None:
    status = Status(
        evidence=(
            alert(1, severity="critical", feature="age"),
            alert(2, seen=NOW - SECOND),
            alert(3, dataset_uri=None),
        ),
        sequence=3,
    )
    decision = ask(record(status))
    assert decision.kind is Kind.SUBMIT
    assert decision.status.retrain == Retrain(
        sequence=4, workflow=workflow_name("churn", UID, 4), claim="token", phase="Claimed", first_claimed_at=NOW,
        claimed_at=NOW, severity="critical", dataset_uri=PREFIX + "2", versions=("v1", "v2", "v3"), event_id="event-1",
        fingerprint=f"{1:016x}", source="/alertmanager/1", version="v1", reason="version v1 drifts on age",
    )  # fmt: skip
    assert decision.status.sequence == 4
    assert (decision.reason, decision.message) == ("Drift", "version v1 drifts on age")
    assert decision.status.history == (
        Row(
            kind="Submitted", reason="Drift", message="version v1 drifts on age", first=NOW, last=NOW,
            workflow=workflow_name("churn", UID, 4),
        ),
    )  # fmt: skip
    assert decision.unclaimed == replace(status)


def test_a_claim_without_a_feature_names_only_the_version() -> None:
    assert ask(record(Status(evidence=(alert(),)))).message == "version v1 drifts"


@pytest.mark.parametrize("severity", ["info", "warning", "critical"])
def test_a_claim_is_as_urgent_as_its_alert_and_a_request_is_critical(severity: str) -> None:
    status = Status(evidence=(alert(severity=severity),))
    for request, wanted in ((None, severity), (Request("mine"), "critical")):
        retrain = ask(record(status, request=request)).status.retrain
        assert retrain is not None
        assert retrain.severity == wanted


def test_a_request_without_any_alert_takes_the_last_data_again() -> None:
    last = claimed(phase="Finished", outcome="Rejected", inputs="ab" * 32, dataset_uri=PREFIX + "old", settled=True)
    request = Request("mine", by="ann", why="new labels")
    decision = ask(record(Status(retrain=last, sequence=4), request=request))
    assert decision.status.retrain == Retrain(
        sequence=5, workflow=workflow_name("churn", UID, 5), claim="token", phase="Claimed", first_claimed_at=NOW,
        claimed_at=NOW, severity="critical", dataset_uri=PREFIX + "old", reason="requested by ann: new labels",
        requested_by="ann",
    )  # fmt: skip
    assert decision.status.tokens == ("mine",)
    assert decision.reason == "Requested"
    assert ask(record(Status(sequence=4), request=Request("mine", by="ann"))).message == "requested by ann"


def test_a_request_names_alerts_that_are_over_too_and_those_that_fire_before_them() -> None:
    over = alert(1, seen=NOW - 10 * HOUR)
    resolved = alert(2, seen=None, ends_at=NOW - HOUR, resolve_seen=NOW - HOUR)
    request = Request("mine")

    def versions(*evidence: Evidence) -> tuple[str, ...]:
        retrain = ask(record(Status(evidence=evidence), request=request)).status.retrain
        assert retrain is not None
        return retrain.versions

    assert versions(over, resolved) == ("v1",)
    assert versions(resolved) == ("v2",)
    assert versions(over, resolved, alert(3)) == ("v3",)


@pytest.mark.parametrize(("outcome", "kept"), [("Rejected", "ab" * 32), ("Promoted", None), ("BadData", None)])
def test_only_after_a_rejection_the_inputs_are_told_to_the_next(outcome: str, kept: str | None) -> None:
    last = claimed(phase="Finished", outcome=outcome, inputs="ab" * 32, settled=True)
    retrain = ask(record(Status(evidence=(alert(9),), retrain=last, sequence=4))).status.retrain
    assert retrain is not None
    assert retrain.inputs == kept


def test_a_location_that_is_not_allowed_is_named() -> None:
    decision = ask(record(Status(evidence=(alert(dataset_uri="s3://other/x"),)), evaluation_uri="s3://other/y"))
    assert decision.reason == "LocationNotAllowed"
    assert decision.message.endswith(
        ": dataset s3://other/x is not below an allowed dataset prefix; "
        "spec.evaluationUri s3://other/y is not below an allowed dataset prefix"
    )
    refused = ask(record(), event=drift(NOW, dataset_uri="s3://other/x"))
    assert refused.faults == {"dataset_uri": "is not below an allowed dataset prefix"}


def test_a_claim_that_is_taken_over_or_renamed_stays_the_same_claim() -> None:
    status = Status(retrain=claimed(), sequence=4, attempts=1)
    assert rules.renewed(record(status), NOW) == replace(status, retrain=claimed(claimed_at=NOW))
    row = Row(
        kind="Hold", reason="NameTaken", message="the Workflow's name is taken; using the next", first=NOW, last=NOW
    )
    assert rules.name_taken(record(status), NOW) == replace(
        status, retrain=claimed(sequence=5, workflow=workflow_name("churn", UID, 5)), sequence=5, history=(row,)
    )


@pytest.mark.parametrize(("known", "found", "after"), [(4, 7, 7), (9, 7, 9)])
def test_a_workflow_that_was_forgotten_is_taken_over(known: int, found: int, after: int) -> None:
    retrain = claimed(sequence=found, phase="Submitted")
    assert rules.taken_over(Status(sequence=known), retrain) == Status(sequence=after, retrain=retrain)


def test_a_budget_that_is_spent_is_told_as_if_no_claim_had_been_made() -> None:
    given = record(Status(evidence=(alert(),)))
    decision = rules.hold_for_budget(given, ask(given), "BudgetSpent", NOW)
    assert decision.status.retrain is None
    assert decision.status.waits == {"BudgetSpent": NOW}
    assert [(row.kind, row.reason) for row in decision.status.history] == [("Hold", "BudgetSpent")]


# --- under way ---


def test_a_workflow_that_exists_is_submitted() -> None:
    after = rules.submitted(record(Status(retrain=claimed(), evidence=(alert(),))), "uid-4", NOW)
    assert after.retrain == claimed(phase="Submitted", uid="uid-4", submitted_at=NOW)
    assert reasons(after)["Retraining"] == ("True", "Submitted")


def test_queue_and_approval_are_waited_for_and_only_running_has_a_deadline() -> None:
    status = Status(retrain=claimed(phase="Submitted"), waits={"NoLabels": NOW - DAY})

    def seen(state: str, at: datetime) -> Status:
        nonlocal status
        status = rules.progressed(record(status), state, 4 * HOUR, at)
        assert reasons(status)["Retraining"] == ("True", state)
        return status

    queued = seen("Queued", NOW)
    assert queued.retrain == claimed(phase="Submitted", state="Queued")
    assert queued.waits == {"Queued": NOW, "NoLabels": NOW - DAY}
    assert seen("Queued", NOW + HOUR).waits == queued.waits
    running = seen("Running", NOW + HOUR)
    assert running.retrain == claimed(phase="Submitted", state="Running", deadline=NOW + 5 * HOUR)
    assert running.waits == {"NoLabels": NOW - DAY}
    asks = seen("AwaitingApproval", NOW + 2 * HOUR)
    assert asks.retrain == claimed(phase="Submitted", state="AwaitingApproval")
    assert asks.waits == {"AwaitingApproval": NOW + 2 * HOUR, "NoLabels": NOW - DAY}
    assert seen("Running", NOW + 3 * HOUR).waits == {"NoLabels": NOW - DAY}


# --- the end ---


def under_way(**more: Any) -> Status:
    waits = {"Queued": NOW - HOUR, "AwaitingApproval": NOW - HOUR, "WaitingForRollout": NOW - DAY}
    retrain = claimed(phase="Submitted", state="Running", deadline=NOW + HOUR, uid="uid-4")
    return Status(**{"retrain": retrain, "sequence": 4, "attempts": 1, "failures": 2, "waits": waits, **more})


def test_the_end_of_a_promotion_is_noted_whole() -> None:
    status = under_way(
        evidence=(alert(1), alert(2, starts_at=NOW), alert(3, starts_at=NOW + SECOND), alert(4, version="unknown")),
        superseded_versions=("v0", "v1"),
        pointer="1",
    )
    finish = Finish(
        outcome=Outcome.PROMOTED, ended_at=NOW, reason="why", explanation="better", inputs="ab" * 32, pointer="2",
        run_id="run", registered_version="7",
    )  # fmt: skip
    after = rules.finished(record(status), finish, NOW + MINUTE)
    assert after.retrain == claimed(
        phase="Finished", uid="uid-4", ended_at=NOW, outcome="Promoted", outcome_reason="why", explanation="better",
        inputs="ab" * 32, run_id="run", registered_version="7",
    )  # fmt: skip
    assert after.superseded_versions == ("v0", "v1", "v2")
    assert (after.attempts, after.failures, after.pointer, after.waits) == (2, 0, "2", {})
    assert (after.settled_at, after.next_eligible_at) == (NOW, NOW + 6 * HOUR)
    assert after.history == (
        Row(
            kind="Finished", reason="Promoted", message="better", first=NOW + MINUTE, last=NOW + MINUTE,
            workflow=workflow_name("churn", UID, 4),
        ),
    )  # fmt: skip
    assert reasons(after)["Retraining"] == ("False", "Cooldown")


def test_the_end_of_a_failure_keeps_what_it_waits_for_and_settles_nothing() -> None:
    status = under_way(settled_at=NOW - DAY, next_eligible_at=NOW - DAY)
    after = rules.finished(record(status), Finish(outcome=Outcome.FAILED, ended_at=NOW, reason="exit code 75"), NOW)
    assert (after.attempts, after.failures, after.settled_at) == (1, 3, NOW - DAY)
    assert after.next_eligible_at == NOW + 40 * MINUTE
    assert after.waits == {"WaitingForRollout": NOW - DAY}
    assert after.history[-1].message == "exit code 75"
    told = rules.finished(record(status), Finish(outcome=Outcome.LOST, ended_at=NOW), NOW)
    assert told.history[-1].message == ""


def test_data_without_labels_waits_for_a_person_only_when_the_data_is_bad() -> None:
    for outcome, waits in ((Outcome.BAD_DATA, True), (Outcome.TRAINER_FAILED, False)):
        finish = Finish(outcome=outcome, ended_at=NOW, reason="NoLabels")
        assert ("NoLabels" in rules.finished(record(under_way()), finish, NOW).waits) == waits
    other = Finish(outcome=Outcome.BAD_DATA, ended_at=NOW, reason="TooFewRows")
    assert "NoLabels" not in rules.finished(record(under_way()), other, NOW).waits


def test_a_retrain_that_may_go_on_at_once_is_ready() -> None:
    given = record(under_way(evidence=(alert(seen=NOW),)), cooldown=timedelta(0))
    ended = Finish(outcome=Outcome.REJECTED, ended_at=NOW - 10 * MINUTE)
    assert reasons(rules.finished(given, ended, NOW))["Retraining"] == ("False", "Ready")


# --- in words ---


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Cooldown", "the last retrain ended too recently; next at 2026-03-02 09:00:00 UTC"),
        ("Backoff", "the last retrain failed; it is tried again after a pause; next at 2026-03-02 09:00:00 UTC"),
        ("InFlight", "a retrain is in flight: " + workflow_name("churn", UID, 4)),
        ("AttemptsSpent", "the attempts are spent; a person is needed (2 of 3)"),
        ("NotFiring", "no alert of this model fires"),
    ],
)
def test_a_hold_is_told_with_the_times_that_matter(reason: str, words: str) -> None:
    status = Status(retrain=claimed(), next_eligible_at=NOW + HOUR, attempts=2)
    assert rules.explain(Policy(), status, reason) == words
    assert rules.explain(Policy(), Status(), "Cooldown") == "the last retrain ended too recently"


def told(status: Status, now: datetime = NOW, reason: str = "Cooldown", **policy: Any) -> dict[str, tuple[str, ...]]:
    after = rules._conditions(Policy(**policy), status, reason, now)
    return {c.type: (c.status, c.reason, c.message) for c in after.conditions}


def test_conditions_say_how_a_quiet_model_stands() -> None:
    assert told(Status(), reason="NotFiring") == {
        "Drifting": ("False", "NotFiring", "0 alerts fire"),
        "Retraining": ("False", "NotFiring", "no alert of this model fires"),
        "NeedsHuman": ("False", "No", ""),
        "Stuck": ("False", "No", ""),
    }
    assert told(Status(), reason="Unheard")["Retraining"] == ("False", "Unheard", "")


def test_conditions_say_what_runs_and_when_it_is_stuck() -> None:
    status = Status(evidence=(alert(1), alert(2)), retrain=claimed(state="Running", deadline=NOW))
    name = workflow_name("churn", UID, 4)
    assert told(status) == {
        "Drifting": ("True", "AlertsFiring", "2 alerts fire"),
        "Retraining": ("True", "Running", name),
        "NeedsHuman": ("False", "No", ""),
        "Stuck": ("True", "PastDeadline", "the Workflow runs past its deadline"),
    }
    assert told(status, NOW - SECOND)["Stuck"][0] == "False"
    ended = replace(status, retrain=claimed(phase="Finished", deadline=NOW))
    assert told(ended)["Stuck"] == ("False", "No", "")


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = rules._conditions(Policy(), Status(), "NotFiring", NOW)
    second = rules._conditions(Policy(), first, "Suspended", NOW + HOUR)
    third = rules._conditions(Policy(), replace(second, retrain=claimed()), "InFlight", NOW + DAY)

    def retraining(status: Status) -> tuple[str, datetime]:
        found = status.condition("Retraining")
        assert found is not None
        return found.reason, found.last_transition_time

    assert retraining(second) == ("Suspended", NOW)
    assert retraining(third) == ("Claimed", NOW + DAY)


def test_repeats_of_one_hold_are_counted_in_one_row() -> None:
    status = rules._row(Status(), "Hold", "Cooldown", "first", NOW)
    status = rules._row(status, "Hold", "InFlight", "another", NOW + MINUTE)
    status = rules._row(status, "Hold", "Cooldown", "m" * 600, NOW + HOUR)
    assert status.history == (
        Row(kind="Hold", reason="Cooldown", message="m" * 500, first=NOW, last=NOW + HOUR, count=2),
        Row(kind="Hold", reason="InFlight", message="another", first=NOW + MINUTE, last=NOW + MINUTE),
    )
    status = rules._row(status, "Finished", "Failed", "n" * 600, NOW + HOUR)
    assert status.history[-1].message == "n" * 500
    status = rules._row(status, "Finished", "Failed", "again", NOW + 2 * HOUR)
    assert [(row.kind, row.count) for row in status.history[-2:]] == [("Finished", 1)] * 2


def asks(status: Status, reason: str = "NotFiring", **policy: Any) -> tuple[str, str] | None:
    return rules.needs_human(Policy(**policy), status, reason, NOW)


def test_why_a_person_is_needed_is_said() -> None:
    day = NOW - DAY
    assert asks(Status(failures=5)) == ("RetrainsFail", "5 retrains in a row failed, were lost or cancelled")
    assert asks(Status(failures=4)) is None
    labels = "the new data has no labels; label it, or set spec.datasetUri"
    assert asks(Status(waits={"NoLabels": NOW})) == ("NoLabels", labels)
    queued = Status(waits={"Queued": day}, retrain=claimed(state="Queued"))
    assert asks(queued, "InFlight") == ("Queued", "Queued, since 2026-03-01 08:00 UTC")
    assert asks(replace(queued, retrain=claimed(state="Running")), "InFlight") is None
    assert asks(replace(queued, waits={"Queued": day + SECOND}), "InFlight") is None
    rollout = Status(waits={"WaitingForRollout": day})
    assert asks(rollout, "WaitingForRollout") == (
        "WaitingForRollout",
        "a better model was promoted, but the versions that drift still serve, since 2026-03-01 08:00 UTC",
    )
    assert asks(rollout, "Cooldown") is None
    ended = claimed(phase="Finished", outcome="Promoted")
    assert asks(Status(attempts=3, retrain=ended), "Cooldown") is None
    spent = ("AttemptsSpent", "3 retrains did not end the drift")
    assert asks(Status(attempts=3, retrain=ended), "AttemptsSpent") == spent
    assert asks(Status(attempts=3, retrain=replace(ended, outcome="Rejected")), "Cooldown") == spent
    told_status = rules._conditions(Policy(), Status(failures=5), "NotFiring", NOW).condition("NeedsHuman")
    assert told_status is not None
    assert told_status.message == "5 retrains in a row failed, were lost or cancelled"
    over = rules._conditions(Policy(), Status(retrain=ended), "Cooldown", NOW).condition("Retraining")
    assert over is not None
    assert over.message == "the last retrain ended too recently"


# --- what restarts ---


def test_quiet_restarts_everything_at_its_very_end_and_keeps_what_may_still_matter() -> None:
    heard = alert(1, seen=NOW - 9 * HOUR + SECOND)
    forgotten = alert(2, seen=NOW - 9 * HOUR)
    status = Status(
        attempts=2, failures=3, waits={"Queued": NOW}, evidence=(heard, forgotten), last_seen=NOW - 48 * HOUR
    )  # fmt: skip
    assert rules.restart(Policy(), status, NOW) == replace(status, attempts=0, failures=0, waits={}, evidence=(heard,))
    assert rules.restart(Policy(), replace(status, last_seen=NOW - 48 * HOUR + SECOND), NOW).attempts == 2


@pytest.mark.parametrize(("outcome", "attempts"), [("Promoted", 0), ("Rejected", 2)])
def test_silence_at_the_end_of_a_promotions_cooldown_restarts_the_attempts(outcome: str, attempts: int) -> None:
    retrain = claimed(phase="Finished", outcome=outcome)
    status = Status(attempts=2, failures=2, retrain=retrain, next_eligible_at=NOW, last_seen=NOW - 9 * HOUR)
    assert rules.restart(Policy(), status, NOW) == replace(
        status, attempts=attempts, failures=attempts, retrain=replace(retrain, settled=True)
    )
    assert rules.restart(Policy(), status, NOW - SECOND) == status


def test_evidence_is_fresh_only_after_the_end_and_the_clocks_slack() -> None:
    status = Status(settled_at=NOW - HOUR)

    def fresh(seen: datetime) -> bool:
        return bool(rules.fresh(replace(status, evidence=(alert(seen=seen),)), Policy(), NOW))

    slack = NOW - HOUR + 2 * MINUTE
    assert [fresh(slack - SECOND), fresh(slack), fresh(slack + SECOND)] == [False, False, True]


@pytest.mark.parametrize(("outcome", "reason"), [("Failed", "Backoff"), ("Lost", "Backoff"), ("Rejected", "Cooldown")])
def test_the_pause_after_a_failure_has_a_name_of_its_own(outcome: str, reason: str) -> None:
    retrain = claimed(phase="Finished", outcome=outcome)
    status = Status(evidence=(alert(),), retrain=retrain, next_eligible_at=NOW + SECOND)
    assert rules.hold_reason(Policy(), status, NOW) == reason
    assert rules.hold_reason(Policy(), replace(status, next_eligible_at=NOW), NOW) is None


# --- edges ---


def test_an_alert_ends_at_the_very_edge_of_its_rules() -> None:
    end = NOW - 2 * HOUR
    resolved = alert(starts_at=end, seen=None, ends_at=end, resolve_seen=end)
    assert rules.ended(resolved), "it began at its end"
    assert rules.ended(replace(resolved, seen=end + HOUR)), "an hour after the resolve is a late delivery still"
    assert not rules.ended(replace(resolved, seen=end + HOUR + SECOND))
    assert not rules.ended(alert(ends_at=None, resolve_seen=end))
    assert not rules.ended(alert(ends_at=end, resolve_seen=None))


def test_a_merge_keeps_the_latest_of_each_time_whichever_copy_came_first() -> None:
    early = drift(NOW - 3 * HOUR, starts_at=NOW - 5 * HOUR)
    late = drift(NOW - HOUR, starts_at=NOW - 4 * HOUR)
    for copies in ((early, late), (late, early)):
        status = Status()
        for copy in copies:
            status = rules.observe(status, Policy(), copy, NOW)
        (merged,) = status.evidence
        assert (merged.starts_at, merged.seen) == (NOW - 4 * HOUR, NOW - HOUR)


def test_a_start_that_moves_back_is_not_believed() -> None:
    status = rules.observe(Status(), Policy(), drift(NOW - HOUR, starts_at=NOW - 2 * HOUR), NOW)
    status = rules.observe(status, Policy(), drift(NOW, starts_at=NOW - 3 * HOUR), NOW)
    assert [(a.starts_at, a.seen) for a in status.evidence] == [(NOW - 2 * HOUR, NOW)]


@pytest.mark.parametrize(("later", "written"), [(HOUR - SECOND, False), (HOUR, True)])
def test_a_heartbeat_is_written_after_an_eighth_of_the_evidences_life(later: timedelta, written: bool) -> None:
    seen = NOW - 2 * HOUR
    held = decide(record(Status(), suspend=True), seen, claim="", prefixes=(PREFIX,), event=drift(seen))
    again = drift(seen + later, starts_at=seen - MINUTE)
    decision = decide(
        record(held.status, suspend=True), seen + later, claim="", prefixes=(PREFIX,), event=again
    )  # fmt: skip
    assert decision.write is written
    if not written:
        assert decision.status.history == held.status.history
