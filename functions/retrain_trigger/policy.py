"""Decide on retraining. No I/O, no clock, no randomness: a ledger and an event in, a decision and a new ledger out.

What is stored of an alert is a merge (maxima), so the order in which copies arrive cannot matter; whether an alert
fires is derived from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile

from aegis import datasets
from aegis.events import SEVERITIES, UNKNOWN_VERSION, DriftEvent

from .model import (
    MAX_EVIDENCE,
    MAX_HISTORY,
    MAX_SUPERSEDED,
    MAX_TOKENS,
    Condition,
    Evidence,
    Policy,
    Record,
    Request,
    Retrain,
    Row,
    Status,
    workflow_name,
)

CLOCK_SLACK = timedelta(minutes=2)
"""How far apart the clocks of receiver and cluster may be."""
LATE_DELIVERY = timedelta(hours=1)
"""A firing copy seen this long after its alert's resolve is a late delivery; later it is a live alert again."""
FIRST_BACKOFF = timedelta(minutes=10)
CREATE_WITHIN = timedelta(seconds=60)
"""A creator whose claim is older gives up; then reconcile may take the claim over."""
CLAIM_EXPIRES = timedelta(hours=1)
ASK_AFTER = timedelta(hours=24)
"""How long a wait that only a person can end goes on before one is asked."""
FAILURES_TO_ASK = 5
MAX_TEXT = 200
"""Characters kept of text that others choose: the ledger's size is bounded."""
NO_LABELS = "NoLabels"
NOT_ALLOWED = "LocationNotAllowed"


class Kind(StrEnum):
    REJECT = "Reject"
    IGNORE = "Ignore"
    HOLD = "Hold"
    SUBMIT = "Submit"


class Outcome(StrEnum):
    PROMOTED = "Promoted"
    REJECTED = "Rejected"
    BAD_DATA = "BadData"
    TRAINER_FAILED = "TrainerFailed"
    FAILED = "Failed"
    LOST = "Lost"
    CANCELLED = "Cancelled"


UNSETTLED = frozenset({Outcome.FAILED, Outcome.LOST})
"""After these the same evidence may train again."""
NO_ATTEMPT = UNSETTLED | {Outcome.CANCELLED}

SPELLED = {
    "NotFiring": "no alert of this model fires",
    "Suspended": "the owner suspended retraining",
    "InFlight": "a retrain is in flight",
    "Cooldown": "the last retrain ended too recently",
    "Backoff": "the last retrain failed; it is tried again after a pause",
    "NoNewEvidence": "every firing alert was last seen before the end of the last retrain",
    "WaitingForRollout": "a better model was promoted, but the versions that drift still serve",
    "AttemptsSpent": "the attempts are spent; a person is needed",
    NOT_ALLOWED: "its data would be read from a place that no dataset prefix allows",
    "BudgetSpent": "the budget of submissions is spent",
    "BudgetContention": "the budget is being written by others",
    "Ready": "a retrain is due, but a resolve never submits; the next firing alert or reconcile does",
}
REPEATED = ("Hold", "Rejected")
"""Rows of the history that count repeats."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and the ledger after it.

    `write`: whether that ledger is worth a write. `unclaimed`: the ledger if a Submit is not carried out.
    """

    kind: Kind
    reason: str
    message: str
    status: Status
    write: bool
    faults: Mapping[str, str] | None = None
    unclaimed: Status | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a retrain ended, as its Workflow tells."""

    outcome: Outcome
    ended_at: datetime
    reason: str | None = None
    explanation: str | None = None
    inputs: str | None = None
    pointer: str | None = None
    run_id: str | None = None
    registered_version: str | None = None


# --- alerts ------------------------------------------------------------------------------------------------------


def fires(alert: Evidence, policy: Policy, at: datetime) -> bool:
    """Whether an alert counts as firing at a time."""
    return alert.seen is not None and alert.seen + policy.evidence_ttl > at and not ended(alert)


def ended(alert: Evidence) -> bool:
    """Whether its last resolve ended it: it began not after that, and was not seen long after it."""
    if alert.ends_at is None or alert.resolve_seen is None:
        return False
    seen = alert.seen or alert.resolve_seen
    return alert.starts_at <= alert.ends_at and seen <= alert.resolve_seen + LATE_DELIVERY


def fresh(status: Status, policy: Policy, now: datetime) -> list[Evidence]:
    """The firing alerts seen after the last retrain that settled anything."""
    return [
        alert
        for alert in status.evidence
        if fires(alert, policy, now)
        and (status.settled_at is None or (alert.seen or now) > status.settled_at + CLOCK_SLACK)
    ]


def observe(status: Status, policy: Policy, event: DriftEvent, now: datetime) -> Status:
    """Merge an event into the evidence. Times ahead of `now` count as now."""
    seen, starts_at = min(event.seen, now), min(event.starts_at, now)
    new = Evidence(
        fingerprint=event.fingerprint,
        starts_at=starts_at,
        seen=seen if event.firing else None,
        ends_at=None if event.ends_at is None else min(event.ends_at, now),
        resolve_seen=None if event.firing else seen,
        version=event.version,
        severity=event.severity,
        dataset_uri=event.dataset_uri if event.firing else None,  # a resolve's was not checked
        score=event.score,
        feature=event.feature and event.feature[:MAX_TEXT],
        event_id=event.id,
        source=event.source,
    )
    if event.firing:
        status = replace(status, last_seen=max(filter(None, (status.last_seen, seen))))
    alerts = {alert.fingerprint: alert for alert in status.evidence}
    old = alerts.get(new.fingerprint)
    if old is None and len(alerts) >= MAX_EVIDENCE:
        done = [alert for alert in status.evidence if not fires(alert, policy, now)]
        if not done:
            return status  # all fire: one more only moves the model's own last-seen time
        del alerts[min(done, key=_last_heard).fingerprint]
    alerts[new.fingerprint] = new if old is None else _merge(old, new)
    return replace(status, evidence=tuple(alerts[key] for key in sorted(alerts)))


def _merge(old: Evidence, new: Evidence) -> Evidence:
    # The latest sighting tells what the alert says; equal times are settled by the id, so order cannot matter.
    telling = max(old, new, key=lambda e: (e.seen is not None, e.seen or e.resolve_seen, e.event_id))
    resolves = [(e.ends_at, e.resolve_seen) for e in (old, new) if e.ends_at and e.resolve_seen]
    ends_at, resolve_seen = max(resolves, default=(None, None))
    return replace(
        telling,
        starts_at=max(old.starts_at, new.starts_at),
        seen=max(filter(None, (old.seen, new.seen)), default=None),
        ends_at=ends_at,
        resolve_seen=resolve_seen,
    )


def _last_heard(alert: Evidence) -> datetime:
    return max(filter(None, (alert.seen, alert.resolve_seen)))


# --- decide ------------------------------------------------------------------------------------------------------


def decide(
    record: Record,
    now: datetime,
    *,
    claim: str,
    prefixes: Sequence[str],
    event: DriftEvent | None = None,
    pointer: str | None = None,
) -> Decision:
    """Decide about one model, because of an event or because time went by.

    `claim` is a fresh random token for the Workflow that a Submit will create. `pointer` is the champion's serial
    where it could be read: a change other than by our own promotion ends the wait for a roll-out.
    """
    policy, before = record.policy, record.status
    status = restart(policy, before, now)
    if pointer is not None and status.pointer is not None and pointer != status.pointer:
        status = replace(
            status, pointer=pointer, superseded_versions=(), waits=_without(status.waits, "WaitingForRollout")
        )
    if event is not None:
        found = faults(policy, event, prefixes)
        if found:
            message = "; ".join(f"{field} {what}" for field, what in found.items())
            rejected = _row(before, "Rejected", "Invalid", message, now)
            write = _worth_writing(policy, before, rejected, now)
            return Decision(Kind.REJECT, "Invalid", message, rejected, write, faults=found)
        if now - event.seen > policy.evidence_ttl:
            return Decision(Kind.IGNORE, "Stale", "older than evidenceTTL: a late redelivery", before, write=False)
        status = observe(status, policy, event, now)
    request = record.request if record.request and record.request.token not in status.tokens else None
    running = status.retrain if status.retrain and status.retrain.in_flight else None
    if request and running and not policy.suspend:
        status = _consume(status, request)
        status = _row(status, "Request", "AlreadyRunning", _who(request), now, running.workflow)
        request = None
    reason = hold_reason(policy, status, now, requested=request is not None)
    if reason is not None:
        tell = _tells(status, event, request, reason)
        return _hold(policy, before, status, reason, now, tell=tell)
    if event is not None and not event.firing:
        return Decision(Kind.HOLD, "Ready", SPELLED["Ready"], status, _worth_writing(policy, before, status, now))
    unclaimed = status
    retrain = _claimed(record, status, request, claim, now)
    wrong = _locations_fault(policy, retrain, prefixes)
    if wrong:
        tell = _tells(status, event, request, NOT_ALLOWED)
        return _hold(policy, before, status, NOT_ALLOWED, now, tell=tell, detail=wrong)
    if request:
        status = _consume(replace(status, attempts=0, failures=0), request)
    waits = {} if request else {name: since for name, since in status.waits.items() if name == NO_LABELS}
    status = replace(status, retrain=retrain, sequence=retrain.sequence, waits=waits)
    status = _row(status, "Submitted", "Requested" if request else "Drift", retrain.reason, now, retrain.workflow)
    status = _conditions(policy, status, "InFlight", now)
    why = "Requested" if request else "Drift"
    return Decision(Kind.SUBMIT, why, retrain.reason, status, write=True, unclaimed=unclaimed)


def hold_reason(policy: Policy, status: Status, now: datetime, *, requested: bool = False) -> str | None:
    """Why not to retrain now, or None. A person's request passes every hold but suspend and a retrain in flight."""
    retrain = status.retrain
    if not requested and not any(fires(alert, policy, now) for alert in status.evidence):
        return "NotFiring"
    if policy.suspend:
        return "Suspended"
    if retrain and retrain.in_flight:
        return "InFlight"
    if requested:
        return None
    if status.next_eligible_at and now < status.next_eligible_at:
        return "Backoff" if retrain and retrain.outcome in UNSETTLED else "Cooldown"
    alerts = fresh(status, policy, now)
    if not alerts:
        return "NoNewEvidence"
    versions = {alert.version for alert in alerts}
    if UNKNOWN_VERSION not in versions and versions <= set(status.superseded_versions):
        return "WaitingForRollout"
    if status.attempts >= policy.max_attempts:
        return "AttemptsSpent"
    return None


def hold_for_budget(record: Record, submit: Decision, reason: str, now: datetime) -> Decision:
    """Turn a Submit that the budget refused into a hold, as if the claim had never been made."""
    assert submit.unclaimed is not None  # noqa: S101  # every Submit has it
    return _hold(record.policy, record.status, submit.unclaimed, reason, now, tell=True)


def restart(policy: Policy, status: Status, now: datetime) -> Status:
    """Restart attempts and failures after a quiet period, or when a promoted model's cooldown ended in silence."""
    retrain = status.retrain
    if retrain and retrain.in_flight:
        return status
    if retrain and not retrain.settled and status.next_eligible_at and now >= status.next_eligible_at:
        silent = not any(fires(alert, policy, status.next_eligible_at) for alert in status.evidence)
        if retrain.outcome == Outcome.PROMOTED and silent:
            status = replace(status, attempts=0, failures=0)
        status = replace(status, retrain=replace(retrain, settled=True))
    if status.last_seen and now - status.last_seen >= policy.quiet_period:
        kept = tuple(a for a in status.evidence if now - _last_heard(a) < policy.evidence_ttl + LATE_DELIVERY)
        status = replace(status, attempts=0, failures=0, waits={}, evidence=kept)
    return status


def pending(record: Record, status: Status, now: datetime) -> bool:
    """Whether reconcile has something to do for the model."""
    needs_human = status.condition("NeedsHuman")
    return bool(
        (status.retrain and status.retrain.in_flight)
        or any(fires(alert, record.policy, now) for alert in status.evidence)
        or (needs_human and needs_human.holds)
        or status.attempts > 0
        or (record.request and record.request.token not in status.tokens)
    )


def faults(policy: Policy, event: DriftEvent, prefixes: Sequence[str]) -> dict[str, str]:
    """What makes an event unusable for a model, by field."""
    # Identity was checked when the event was read; a resolve reads no data. The operator's prefixes hold for the
    # owner's location too: the step that reads it knows no other rule.
    uri = policy.dataset_uri or event.dataset_uri
    fault = datasets.fault(uri, prefixes) if event.firing and uri else None
    return {} if fault is None else {"dataset_uri": fault}


def _locations_fault(policy: Policy, retrain: Retrain, prefixes: Sequence[str]) -> str:
    """What is wrong with the locations that a retrain would read, or "".

    An event's own was checked when it came. But the owner may have written one since, or the operator have narrowed
    the prefixes; the step that reads would refuse it, at the price of an attempt.
    """
    found = {"dataset": retrain.dataset_uri, "spec.evaluationUri": policy.evaluation_uri}
    faults = {f"{name} {uri}": datasets.fault(uri, prefixes) for name, uri in found.items() if uri}
    return "; ".join(f"{what} {fault}" for what, fault in faults.items() if fault)


def _tells(status: Status, event: DriftEvent | None, request: Request | None, reason: str) -> bool:
    """Whether a hold belongs into the story: one of a firing alert does, a waiting request's only when it is new."""
    if event is not None and event.firing:
        return True
    return request is not None and not any((row.kind, row.reason) == ("Hold", reason) for row in _repeats(status))


def _hold(
    policy: Policy, before: Status, status: Status, reason: str, now: datetime, *, tell: bool, detail: str = ""
) -> Decision:
    if reason in ("WaitingForRollout", "BudgetSpent"):
        status = replace(status, waits={reason: now} | dict(status.waits))
    message = explain(policy, status, reason) + (detail and f": {detail}")
    told = _row(status, "Hold", reason, message, now) if tell else status
    told = _conditions(policy, told, reason, now)
    write = _worth_writing(policy, before, told, now)
    return Decision(Kind.HOLD, reason, message, told if write else status, write)


def explain(policy: Policy, status: Status, reason: str) -> str:
    """The reason of a hold in plain words, with the times that matter."""
    text = SPELLED[reason]
    if reason in ("Cooldown", "Backoff") and status.next_eligible_at:
        text += f"; next at {status.next_eligible_at:%Y-%m-%d %H:%M:%S} UTC"
    if reason == "InFlight" and status.retrain:
        text += f": {status.retrain.workflow}"
    if reason == "AttemptsSpent":
        text += f" ({status.attempts} of {policy.max_attempts})"
    return text


def _claimed(record: Record, status: Status, request: Request | None, claim: str, now: datetime) -> Retrain:
    policy = record.policy
    alerts = fresh(status, policy, now) or [a for a in status.evidence if a.seen] or list(status.evidence)
    if request is None:
        alerts = fresh(status, policy, now)
    best = max(alerts, key=lambda a: (SEVERITIES.index(a.severity), _last_heard(a), a.event_id), default=None)
    located = [a for a in alerts if a.dataset_uri]
    newest = max(located, key=lambda a: (_last_heard(a), a.event_id), default=None)
    last = status.retrain
    dataset_uri = policy.dataset_uri or (newest.dataset_uri if newest else last.dataset_uri if last else None)
    what = "" if best is None else f"version {best.version} drifts" + (f" on {best.feature}" if best.feature else "")
    return Retrain(
        sequence=status.sequence + 1,
        workflow=workflow_name(record.model, record.uid, status.sequence + 1),
        claim=claim,
        phase="Claimed",
        first_claimed_at=now,
        claimed_at=now,
        severity="critical" if request else best.severity if best else "warning",
        dataset_uri=dataset_uri,
        versions=tuple(sorted({a.version for a in alerts})),
        event_id=best.event_id if best else "",
        fingerprint=best.fingerprint if best else "",
        source=best.source if best else "",
        version=best.version if best else UNKNOWN_VERSION,
        reason=_who(request) if request else what,
        requested_by=request.by if request else None,
        inputs=last.inputs if last and last.outcome == Outcome.REJECTED and request is None else None,
    )


def _consume(status: Status, request: Request) -> Status:
    return replace(status, tokens=(*status.tokens, request.token)[-MAX_TOKENS:])


def _who(request: Request) -> str:
    return f"requested by {request.by}" + (f": {request.why}" if request.why else "")


# --- the life of a retrain ---------------------------------------------------------------------------------------


def renewed(record: Record, now: datetime) -> Status:
    """The ledger with its claim taken over by a new creator."""
    assert record.status.retrain is not None  # noqa: S101  # the caller looked
    return replace(record.status, retrain=replace(record.status.retrain, claimed_at=now))


def submitted(record: Record, uid: str, now: datetime) -> Status:
    """The ledger after the Workflow was seen to exist."""
    retrain = record.status.retrain
    assert retrain is not None  # noqa: S101  # the caller looked
    retrain = replace(retrain, phase="Submitted", uid=uid, submitted_at=now)
    return _conditions(record.policy, replace(record.status, retrain=retrain), "InFlight", now)


def progressed(record: Record, state: str, limit: timedelta, now: datetime) -> Status:
    """The ledger after the Workflow was seen `Queued`, `Running` or `AwaitingApproval`.

    Only running time counts against the deadline `limit`; past it the retrain stays in flight and is Stuck.
    """
    retrain, waits = record.status.retrain, record.status.waits
    assert retrain is not None  # noqa: S101  # the caller looked
    if state != retrain.state:
        retrain = replace(retrain, state=state, deadline=now + limit if state == "Running" else None)
        kept = _without(waits, "Queued", "AwaitingApproval")
        waits = kept if state == "Running" else {state: now} | kept
    return _conditions(record.policy, replace(record.status, retrain=retrain, waits=waits), "InFlight", now)


def name_taken(record: Record, now: datetime) -> Status:
    """The ledger after the claimed name was found to belong to another Workflow: the same claim, the next number."""
    retrain = record.status.retrain
    assert retrain is not None  # noqa: S101  # the caller looked
    sequence = retrain.sequence + 1
    retrain = replace(retrain, sequence=sequence, workflow=workflow_name(record.model, record.uid, sequence))
    status = _row(record.status, "Hold", "NameTaken", "the Workflow's name is taken; using the next", now)
    return replace(status, retrain=retrain, sequence=sequence)


def taken_over(status: Status, retrain: Retrain) -> Status:
    """A ledger that forgot, after an existing Workflow of its model was found."""
    return replace(status, retrain=retrain, sequence=max(status.sequence, retrain.sequence))


def finished(record: Record, finish: Finish, now: datetime) -> Status:
    """The ledger after the retrain in flight ended."""
    policy, status = record.policy, record.status
    retrain = status.retrain
    assert retrain is not None  # noqa: S101  # the caller looked
    ended_at = max(min(finish.ended_at, now), retrain.first_claimed_at)
    outcome = finish.outcome
    failures = status.failures + 1 if outcome in NO_ATTEMPT else 0
    waits = _without(status.waits, "Queued", "AwaitingApproval")
    if outcome not in NO_ATTEMPT:
        unlabelled = outcome == Outcome.BAD_DATA and finish.reason == NO_LABELS
        waits = _without(waits, NO_LABELS) | ({NO_LABELS: now} if unlabelled else {})
    if outcome in UNSETTLED:
        pause = min(policy.cooldown, FIRST_BACKOFF * 2 ** min(failures - 1, 16))
        eligible = max(filter(None, (status.next_eligible_at, ended_at + pause)))
    else:
        eligible = ended_at + policy.cooldown
    retrain = replace(
        retrain,
        phase="Finished",
        state=None,
        deadline=None,
        ended_at=ended_at,
        outcome=outcome.value,
        outcome_reason=finish.reason,
        explanation=finish.explanation,
        inputs=finish.inputs,
        run_id=finish.run_id,
        registered_version=finish.registered_version,
        settled=False,
    )
    status = replace(
        status,
        retrain=retrain,
        attempts=status.attempts + (outcome not in NO_ATTEMPT and retrain.requested_by is None),
        failures=failures,
        next_eligible_at=eligible,
        settled_at=status.settled_at if outcome in UNSETTLED else ended_at,
        waits=waits,
    )
    if outcome == Outcome.PROMOTED:
        # What had begun to fire by the end is what the promoted model replaces; its own version begins later.
        replaced = {a.version for a in status.evidence if a.starts_at <= ended_at} | set(retrain.versions)
        old = [v for v in status.superseded_versions if v not in replaced]
        known = (*old, *sorted(replaced - {UNKNOWN_VERSION}))[-MAX_SUPERSEDED:]
        status = replace(status, superseded_versions=known, pointer=finish.pointer or status.pointer, waits={})
    message = finish.explanation or finish.reason or ""
    status = _row(status, "Finished", outcome.value, message, now, retrain.workflow)
    reason = hold_reason(policy, status, now)
    return _conditions(policy, status, reason or "Ready", now)


def _without(waits: Mapping[str, datetime], *names: str) -> dict[str, datetime]:
    return {name: since for name, since in waits.items() if name not in names}


# --- what people see ---------------------------------------------------------------------------------------------


def _row(status: Status, kind: str, reason: str, message: str, now: datetime, workflow: str | None = None) -> Status:
    # Repeats are counted in one row until something else happens, or two alerts in turn would push out the story.
    repeats = _repeats(status)
    same = next((row for row in repeats if kind in REPEATED and (row.kind, row.reason) == (kind, reason)), None)
    if same:
        again = replace(same, last=now, count=same.count + 1, message=message[:500])
        return replace(status, history=tuple(again if row is same else row for row in status.history))
    new = Row(kind=kind, reason=reason, message=message[:500], first=now, last=now, workflow=workflow)
    return replace(status, history=(*status.history, new)[-MAX_HISTORY:])


def _repeats(status: Status) -> Iterable[Row]:
    """The rows that may still count repeats: those since something else happened, newest first."""
    return takewhile(lambda row: row.kind in REPEATED, reversed(status.history))


def needs_human(policy: Policy, status: Status, reason: str, now: datetime) -> tuple[str, str] | None:
    """Why a person is needed, as reason and message, or None."""
    retrain = status.retrain
    outcome = retrain.outcome if retrain else None
    if status.failures >= FAILURES_TO_ASK:
        return "RetrainsFail", f"{status.failures} retrains in a row failed, were lost or cancelled"
    if NO_LABELS in status.waits:
        return NO_LABELS, "the new data has no labels; label it, or set spec.datasetUri"
    if reason == NOT_ALLOWED:
        return NOT_ALLOWED, f"{SPELLED[NOT_ALLOWED]}; change spec.datasetUri, spec.evaluationUri or the prefixes"
    if status.attempts >= policy.max_attempts and (outcome != Outcome.PROMOTED or reason == "AttemptsSpent"):
        return "AttemptsSpent", f"{status.attempts} retrains did not end the drift"
    for wait, current in (
        ("WaitingForRollout", reason),
        ("BudgetSpent", reason),
        ("Queued", retrain.state if retrain and retrain.in_flight else None),
        ("AwaitingApproval", retrain.state if retrain and retrain.in_flight else None),
    ):
        since = status.waits.get(wait)
        if wait == current and since and now - since >= ASK_AFTER:
            return wait, f"{SPELLED.get(wait, wait)}, since {since:%Y-%m-%d %H:%M} UTC"
    return None


def _conditions(policy: Policy, status: Status, reason: str, now: datetime) -> Status:
    firing = [alert for alert in status.evidence if fires(alert, policy, now)]
    retrain = status.retrain
    running = bool(retrain and retrain.in_flight)
    stuck = bool(running and retrain and retrain.deadline and now >= retrain.deadline)
    human = needs_human(policy, status, reason, now)
    wanted = (
        ("Drifting", bool(firing), "AlertsFiring" if firing else "NotFiring", f"{len(firing)} alerts fire"),
        (
            "Retraining",
            running,
            (retrain.state or retrain.phase) if running and retrain else reason,
            retrain.workflow if running and retrain else SPELLED.get(reason, ""),
        ),
        ("NeedsHuman", human is not None, human[0] if human else "No", human[1] if human else ""),
        (
            "Stuck",
            stuck,
            "PastDeadline" if stuck else "No",
            "the Workflow runs past its deadline" if stuck else "",
        ),
    )
    made = []
    for kind, holds, why, message in wanted:
        old, state = status.condition(kind), str(holds)
        if old is not None and (old.status, old.reason) == (state, why):
            made.append(old)
            continue
        since = old.last_transition_time if old is not None and old.status == state else now
        made.append(Condition(type=kind, status=state, reason=why, message=message, last_transition_time=since))
    return replace(status, conditions=tuple(made))


def _worth_writing(policy: Policy, old: Status, new: Status, now: datetime) -> bool:
    """A transition, or evidence moved far enough: a heartbeat that comes more often costs one read."""
    if _outline(policy, old, now) != _outline(policy, new, now):
        return True
    step = policy.evidence_ttl / 8
    seen = [(a.seen, b.seen) for a, b in zip(old.evidence, new.evidence, strict=True)]
    rows = [(a.last, b.last) for a, b in zip(old.history, new.history, strict=True)]
    return any(
        a != b and (a is None or b is None or b - a >= step) for a, b in [*seen, *rows, (old.last_seen, new.last_seen)]
    )


def _outline(policy: Policy, status: Status, now: datetime) -> object:
    recent = {alert.fingerprint for alert in fresh(status, policy, now)}
    alerts = [
        (
            a.fingerprint,
            a.starts_at,
            a.ends_at,
            a.resolve_seen,
            a.version,
            a.dataset_uri,
            a.fingerprint in recent,
        )
        for a in status.evidence
    ]
    rows = [(row.kind, row.reason) for row in status.history]
    conditions = [(c.type, c.status, c.reason) for c in status.conditions]
    plain = replace(status, evidence=(), history=(), conditions=(), last_seen=None)
    return plain, alerts, rows, conditions
