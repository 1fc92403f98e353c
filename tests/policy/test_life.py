"""Each thing that a life of `test_properties` watches is seen to be watched: a rule is broken, and the life notices.

The lives here are short stories; random ones find the same faults, in seconds to a minute each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from aegis.events import DriftEvent, rfc3339
from retrain_trigger import model as documents
from retrain_trigger import policy as rules
from retrain_trigger import workflow as workflows
from retrain_trigger.model import Evidence, Policy, Record, Status
from retrain_trigger.policy import Decision

from .test_properties import Life
from .world import HOUR, MINUTE

Breaking = pytest.MonkeyPatch
Story = tuple[Callable[[Life], None], ...]
HOLD_REASON, DECIDE, CONSUME, SUBMITTED = rules.hold_reason, rules.decide, rules._consume, rules.submitted
MANIFEST, NONE = workflows.manifest, timedelta(0)


def live(story: Story) -> None:
    """One life, looked at after each thing that happens in it."""
    life = Life()
    life.holds()
    for happens in story:
        happens(life)
        life.began_rightly()
        life.holds()


def fire(alert: int = 1, ago: timedelta = NONE) -> Callable[[Life], None]:
    return lambda life: life.fires(alert=alert, version="unknown", late=60 * ago, begins=NONE, replica=0)


def end(outcome: str) -> Callable[[Life], None]:
    return lambda life: life.ends(outcome=outcome, took=HOUR)


def unseen(hours: int) -> Callable[[Life], None]:
    return lambda life: life.nobody_looks(gap=hours * HOUR)


def resolve(alert: int) -> Callable[[Life], None]:
    return lambda life: life.resolves(alert=alert, version="unknown", late=NONE, replica=0)


def again(life: Life) -> None:
    life.comes_again(which=0, copies=1)


def storm(life: Life) -> None:
    life.all_fire(version="unknown", replica=0)


def ask(life: Life) -> None:
    life.is_asked()


def suspend(life: Life) -> None:
    life.is_suspended(suspend=True)


def last_words(life: Life) -> None:
    life.fires_about_its_end(outcome="Rejected", after=1, alert=1, rounds=1, resolved=False)


def time_goes_by(life: Life) -> None:
    life.time_goes_by(gap=6 * HOUR)


# --- what is broken ---


def forgets(reason: str) -> Callable[[Breaking], None]:
    """One reason never holds."""

    def hold_reason(policy: Policy, status: Status, now: datetime, *, requested: bool = False) -> str | None:
        found = HOLD_REASON(policy, status, now, requested=requested)
        return None if found == reason and (requested or rules.fresh(status, policy, now)) else found

    return lambda breaking: breaking.setattr(rules, "hold_reason", hold_reason)


def trains_on_old_evidence(breaking: Breaking) -> None:
    def fresh(status: Status, policy: Policy, now: datetime) -> list[Evidence]:
        return [alert for alert in status.evidence if rules.fires(alert, policy, now)]

    breaking.setattr(rules, "fresh", fresh)


def trusts_clocks(breaking: Breaking) -> None:
    breaking.setattr(rules, "CLOCK_SLACK", NONE)


def takes_a_resolve_for_a_moment_to_submit(breaking: Breaking) -> None:
    def decide(record: Record, now: datetime, *, event: DriftEvent | None = None, **more: Any) -> Decision:
        if event is not None and not event.firing:
            status = rules.observe(record.status, record.policy, event, now)
            return DECIDE(replace(record, status=status), now, **more)
        return DECIDE(record, now, event=event, **more)

    breaking.setattr(rules, "decide", decide)


def trains_again_for_a_copy(breaking: Breaking) -> None:
    def decide(record: Record, now: datetime, *, event: DriftEvent | None = None, **more: Any) -> Decision:
        retrain = record.status.retrain
        if event and retrain and retrain.event_id == event.id:
            record = replace(record, status=replace(record.status, retrain=None, settled_at=None))
        return DECIDE(record, now, event=event, **more)

    breaking.setattr(rules, "decide", decide)


def forgets_what_runs(breaking: Breaking) -> None:
    def submitted(record: Record, uid: str, now: datetime) -> Status:
        status = SUBMITTED(record, uid, now)
        return replace(status, retrain=replace(status.retrain, phase="Finished")) if status.retrain else status

    breaking.setattr(rules, "submitted", submitted)


def submits_under_another_name(breaking: Breaking) -> None:
    def manifest(*args: Any, **more: Any) -> dict[str, Any]:
        made = MANIFEST(*args, **more)
        return {**made, "metadata": {**made["metadata"], "name": "another"}}

    breaking.setattr(workflows, "manifest", manifest)


def notes_no_end(breaking: Breaking) -> None:
    breaking.setattr(workflows, "read", lambda _doc, _now: workflows.Running("Running"))


def drops_requests(breaking: Breaking) -> None:
    breaking.setattr(documents, "_request", lambda _metadata: None)


def uses_up_a_request_without_a_run(breaking: Breaking) -> None:
    def decide(record: Record, now: datetime, **more: Any) -> Decision:
        decision = DECIDE(record, now, **more)
        if decision.reason == "Requested" and record.request:
            status = CONSUME(record.status, record.request)
            return Decision(rules.Kind.HOLD, "AlreadyRunning", "", status, write=True)
        return decision

    breaking.setattr(rules, "decide", decide)


def uses_up_a_request_while_suspended(breaking: Breaking) -> None:
    def decide(record: Record, now: datetime, **more: Any) -> Decision:
        decision = DECIDE(record, now, **more)
        if decision.reason == "Suspended" and record.request:
            return replace(decision, status=CONSUME(decision.status, record.request), write=True)
        return decision

    breaking.setattr(rules, "decide", decide)


def keeps_the_attempts_after_a_request(breaking: Breaking) -> None:
    breaking.setattr(rules, "_consume", lambda status, request: replace(CONSUME(status, request), attempts=1))


def keeps_every_alert(breaking: Breaking) -> None:
    breaking.setattr(rules, "MAX_EVIDENCE", 10**6)


def keeps_the_whole_story(breaking: Breaking) -> None:
    breaking.setattr(rules, "MAX_HISTORY", 10**6)


def writes_every_time(breaking: Breaking) -> None:
    breaking.setattr(rules, "_worth_writing", lambda *_: True)


def says_this_and_that(breaking: Breaking) -> None:
    said = random.Random(1)

    def hold_reason(policy: Policy, status: Status, now: datetime, *, requested: bool = False) -> str | None:
        found = HOLD_REASON(policy, status, now, requested=requested)
        return said.choice(["NotFiring", "Cooldown"]) if found == "NotFiring" else found

    breaking.setattr(rules, "hold_reason", hold_reason)


def loses_seconds(breaking: Breaking) -> None:
    breaking.setattr(documents, "rfc3339", lambda moment: rfc3339(moment.replace(second=0)))


CASES: list[tuple[Callable[[Breaking], None], Story, str]] = [
    (forgets("Cooldown"), (fire(), end("Rejected"), unseen(1), fire()), "inside the cooldown"),
    (forgets("InFlight"), (fire(), fire(2)), "two in flight"),
    (forgets("InFlight"), (storm,), "two began at once"),
    (forgets("Suspended"), (suspend, fire()), "while suspended"),
    (forgets("AttemptsSpent"), (*(fire(), end("Rejected"), unseen(7)) * 3, fire()), "beyond the attempts"),
    (trains_on_old_evidence, (fire(), end("Rejected"), time_goes_by), "on old evidence"),
    (trusts_clocks, (fire(), last_words), "on old evidence"),
    (
        takes_a_resolve_for_a_moment_to_submit,
        (fire(1), end("Rejected"), unseen(1), fire(2), unseen(6), resolve(1)),
        "a resolve submitted",
    ),
    (trains_again_for_a_copy, (fire(), again), "a copy submitted"),
    (forgets_what_runs, (fire(),), "forgot what runs"),
    (submits_under_another_name, (fire(),), "began without a claim"),
    (notes_no_end, (fire(), end("Rejected")), "an end that nobody noted"),
    (drops_requests, (ask,), "a request was forgotten"),
    (uses_up_a_request_without_a_run, (ask,), "a request was not carried out"),
    (uses_up_a_request_while_suspended, (suspend, ask), "used up while it had to wait"),
    (keeps_the_attempts_after_a_request, (ask,), "a person's request restarts them"),
    (keeps_every_alert, (storm,), "a ledger that grows"),
    (keeps_the_whole_story, (ask, end("Rejected")) * 11, "a ledger that grows"),
    (writes_every_time, (), "writes again"),
    (says_this_and_that, (fire(), end("Rejected"), unseen(9), fire(2), end("Rejected")), "decides otherwise"),
    (loses_seconds, (fire(ago=30 * MINUTE / 60),), "not what was written"),
]


@pytest.mark.parametrize(("broken", "story", "what"), CASES, ids=[what for *_, what in CASES])
def test_a_life_notices_when_a_rule_is_broken(
    monkeypatch: Breaking, broken: Callable[[Breaking], None], story: Story, what: str
) -> None:
    live(story)  # as it is, nothing is wrong
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=what):
        live(story)
