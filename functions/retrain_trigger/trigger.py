"""Carry decisions out: reserve, claim, create; notice ends; repair what a crash left half done.

Every step is safe to repeat. The order reserve → claim (compare-and-set) → create means that a kill at any point
leaves either nothing, an unclaimed reservation that expires, or a claim that reconcile finishes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from aegis.errors import AlreadyExists, Conflict, Permanent, Temporary
from aegis.events import SEVERITIES, DriftEvent

from . import budget as budgets
from . import policy as rules
from . import workflow as workflows
from .model import Policy, Record, Retrain, Status, object_name
from .policy import Decision, Finish, Kind, Outcome
from .ports import Budgets, Ledger, Serials, Workflows, no_serials

log = logging.getLogger("aegis.trigger")

TRIES = 8
"""Lost compare-and-sets before the caller is told to come again. Each loss means that somebody else made progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the operator allows."""

    prefixes: tuple[str, ...] = ()
    budget: int = 20
    create_unknown: bool = True
    max_models: int = 1000
    deadline: timedelta = timedelta(hours=4)
    namespace: str = "aegis"


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision with the names that a caller needs."""

    environment: str
    model: str
    decision: Decision
    workflow: str | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Time and randomness, passed in. `pause(n)` waits a jittered moment before try n + 1."""

    now: Callable[[], datetime]
    token: Callable[[], str]
    pause: Callable[[int], None]


Count = Callable[[str, str], None]
"""What happened, and which: `conflict` of `ledger` or `budget`; `workflow` that was `created`, `found` or `refused`;
`retrain` that ended with an outcome."""


def count_nothing(_what: str, _which: str) -> None:
    """Who counts nothing."""


@dataclass(slots=True)
class _Ask:
    """A submission that wants a place in the budget, and what became of that."""

    record: Record
    retrain: Retrain
    now: datetime
    done: bool = False
    refused: str | None = None
    error: BaseException | None = None

    def of(self, budget: budgets.Budget, limit: int) -> tuple[bool, budgets.Budget]:
        name, sequence, severity = self.retrain.workflow, self.retrain.sequence, self.retrain.severity
        return budgets.grant(budget, name, self.record.name, sequence, severity, self.now, limit=limit)


class Trigger:
    """The decider of any number of models over the three ports.

    What it knows by itself is only whom it looked at last, so that reconcile is fair; losing that costs nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        budget: Budgets,
        argo: Workflows,
        limits: Limits,
        sources: Sources,
        pointer: Serials = no_serials,
    ) -> None:
        """`pointer(environment, model)` reads the champion's serial where this process may, else None."""
        self.count: Count = count_nothing
        self._ledger = ledger
        self._budget = budget
        self._argo = argo
        self._limits = limits
        self._sources = sources
        self._pointer = pointer
        self._round = 0
        self._looked: dict[str, int] = {}
        self._asking: deque[_Ask] = deque()
        # Re-entrant: a port that calls back, as a simulated world does, must not wait for itself.
        self._reserving = threading.RLock()

    def event(self, event: DriftEvent) -> Answer:
        """Decide about one drift event. Raises Temporary when it must be delivered again."""
        name = object_name(event.environment, event.model)

        def known() -> Record | None:
            record = self._ledger.read(name)
            return record if record is not None else self._create(event)

        answer = self._decide(name, known, event)
        if answer is None:
            message = "this model is not managed: create a ManagedModel, or allow unknown models"
            faults = {"model": message}
            decision = Decision(Kind.REJECT, "UnknownModel", message, Status(), write=False, faults=faults)
            return Answer(event.environment, event.model, decision)
        return answer

    def reconcile(self, *, until: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """Do what is due for every pending model. Returns counts by result.

        `until` says when the slice of time is used up; who is left comes first in the next one.
        """
        counts: dict[str, int] = {}
        self._round += 1
        for name in self._in_order():
            if until():
                counts["left"] = counts.get("left", 0) + 1
                continue
            self._looked[name] = self._round
            result = self._safely(name)
            counts[result] = counts.get(result, 0) + 1
        return counts

    def _safely(self, name: str) -> str:
        """Reconcile one model. Whatever is wrong with it must not keep the others waiting."""
        try:
            return self._reconcile(name)
        except Temporary as exc:
            log.warning("reconcile will try again", extra={"managed_model": name, "error": str(exc)})
            return "again"
        except Permanent as exc:
            log.error("reconcile cannot go on", extra={"managed_model": name, "error": str(exc)})
            return "invalid"
        except Exception:  # the outermost boundary of one model's work: an unknown fault must be seen
            log.exception("reconcile failed unexpectedly", extra={"managed_model": name})
            return "failed"

    # --- deciding ---

    def _decide(self, name: str, read: Callable[[], Record | None], event: DriftEvent | None) -> Answer | None:
        for attempt in range(TRIES):
            try:
                record = read()
                return None if record is None else self._decide_once(record, event)
            except Conflict:
                self.count("conflict", "ledger")
                self._sources.pause(attempt)
        raise Temporary(f"{name}: too many others write its ledger; try again")

    def _decide_once(self, record: Record, event: DriftEvent | None) -> Answer:
        now = self._sources.now()
        decision = self._judge(record, event, now)
        if decision.kind is Kind.SUBMIT:
            self._remember(record, now)
            retrain = _retrain(decision.status)
            refused = self._reserve(record, retrain, now)
            if refused is not None:
                decision = rules.hold_for_budget(record, decision, refused, now)
        if decision.write and record.version:
            pending = rules.pending(record, decision.status, now)
            record = self._ledger.write(record, decision.status, pending=pending)
        if decision.kind is Kind.SUBMIT:
            self._submit(record, event.traceparent if event else None)
        workflow = record.status.retrain.workflow if decision.kind is Kind.SUBMIT and record.status.retrain else None
        return Answer(record.environment, record.model, decision, workflow)

    def _judge(self, record: Record, event: DriftEvent | None, now: datetime) -> Decision:
        claim = self._sources.token()
        decision = rules.decide(record, now, claim=claim, prefixes=self._limits.prefixes, event=event)
        if decision.reason == "WaitingForRollout":
            pointer = self._pointer(record.environment, record.model)
            decision = rules.decide(
                record, now, claim=claim, prefixes=self._limits.prefixes, event=event, pointer=pointer
            )
        return decision

    def _create(self, event: DriftEvent) -> Record | None:
        if not self._limits.create_unknown or self._ledger.count() >= self._limits.max_models:
            return None
        if event.firing and rules.faults(Policy(), event, self._limits.prefixes):
            # Nothing is created for an invalid event; decide says what is wrong with it.
            return Record(
                name=object_name(event.environment, event.model), uid="", version="", environment=event.environment,
                model=event.model, policy=Policy(), status=Status(),
            )  # fmt: skip
        return self._ledger.create(event.environment, event.model, Status(), self._sources.now())

    def _remember(self, record: Record, now: datetime) -> None:
        """Before a submission: a deleted or restored ledger forgets nothing recent, nor does one that gave up a claim
        whose creator was only slow. Raises Conflict, for a new decision, if there was something to take over."""
        status = record.status
        if status.sequence and (status.retrain is None or status.retrain.uid):
            return  # it saw its last Workflow
        recalled = self._recalled(record, now)
        if recalled is not None:
            self._ledger.write(record, recalled, pending=True)
            raise Conflict(f"{record.name} had forgotten a Workflow")

    def _recalled(self, record: Record, now: datetime) -> Status | None:
        """The ledger with the newest labelled Workflow taken over, if there is one that it never saw."""
        first = max(record.status.sequence, 1)
        found = [doc for doc in self._argo.of_model(record.name) if workflows.sequence(doc) >= first]
        if not found:
            return None
        return rules.taken_over(record.status, workflows.as_retrain(max(found, key=workflows.sequence), now))

    def _reserve(self, record: Record, retrain: Retrain, now: datetime) -> str | None:
        """Take a place in the budget. Returns the reason of the refusal, or None.

        One thread at a time writes the document, and for all that asked meanwhile: else those of a storm would spend
        their time on each other's conflicts, over a document that grows with them.
        """
        mine = _Ask(record, retrain, now)
        self._asking.append(mine)
        with self._reserving:
            if not mine.done:
                self._answer([self._asking.popleft() for _ in range(len(self._asking))])
        if mine.error is not None:
            raise Temporary(f"the budget was not written: {mine.error}") from mine.error
        return mine.refused

    def _answer(self, asks: list[_Ask]) -> None:
        try:
            self._reserve_all(sorted(asks, key=lambda ask: -SEVERITIES.index(ask.retrain.severity)))
        except BaseException as exc:
            for ask in asks:
                ask.error = exc
            if not isinstance(exc, Temporary):
                raise
        finally:
            for ask in asks:
                ask.done = True

    def _reserve_all(self, asks: list[_Ask]) -> None:
        for attempt in range(TRIES):
            budget, version = self._budget.read()
            after = budget
            for ask in asks:
                ask.refused, after = self._grant(after, ask)
            try:
                if after != budget:
                    self._budget.write(after, version)
            except Conflict:
                self.count("conflict", "budget")
                self._sources.pause(attempt)
                continue
            return
        for ask in asks:
            ask.refused = "BudgetContention"

    def _grant(self, budget: budgets.Budget, ask: _Ask) -> tuple[str | None, budgets.Budget]:
        granted, after = ask.of(budget, self._limits.budget)
        if not granted and (old := budgets.doubtful(budget, ask.now)):
            claimed = {name: self._was_claimed(name, r) for name, r in old.items()}
            granted, after = ask.of(budgets.settle(budget, claimed), self._limits.budget)
        return None if granted else "BudgetSpent", after

    def _was_claimed(self, workflow: str, reservation: budgets.Reservation) -> bool:
        try:
            record = self._ledger.read(reservation.model)
        except (Temporary, Permanent):
            return True  # another model's trouble is not this one's; it counts until it is known
        if record is None:
            return True
        if record.status.sequence < reservation.sequence:
            return False
        return record.status.sequence > reservation.sequence or _names(record.status.retrain, workflow)

    # --- creating ---

    def _submit(self, record: Record, traceparent: str | None = None) -> None:
        """Create the claimed Workflow and note it. After the claim nothing here may fail the caller's request: what
        could not be done is reconcile's."""
        retrain = _retrain(record.status)
        try:
            manifest = workflows.manifest(record, retrain, self._limits.namespace, traceparent=traceparent)
            if self._sources.now() - retrain.claimed_at > rules.CREATE_WITHIN:
                return
            try:
                uid = self._argo.create(manifest, self._sources.now())
            except AlreadyExists:
                self.count("workflow", "found")
                self._adopt(record)
                return
        except (Temporary, Permanent) as exc:
            self.count("workflow", "refused")
            log.warning("the Workflow was not created", extra=_about(record) | {"error": str(exc)})
            return
        self.count("workflow", "created")
        log.info("the Workflow was created", extra=_about(record) | {"reason": retrain.reason})
        self._note(record, lambda r, now: rules.submitted(r, uid, now))

    def _adopt(self, record: Record) -> None:
        """The claimed name exists: ours if it carries this claim, else the number is spent."""
        retrain = _retrain(record.status)
        found = self._argo.get(retrain.workflow)
        if found is None:
            return  # gone in between; reconcile looks again
        if workflows.carries(found, retrain.claim):
            uid = str(found["metadata"]["uid"])
            self._note(record, lambda r, now: rules.submitted(r, uid, now))
            return
        log.warning("the Workflow's name belongs to another claim", extra=_about(record))
        self._note(record, lambda r, now: self._recalled(r, now) or rules.name_taken(r, now))

    def _note(self, record: Record, change: Callable[[Record, datetime], Status]) -> Record | None:
        """Write a fact about the retrain in flight. A lost race is left to reconcile, which looks again."""
        now = self._sources.now()
        try:
            status = change(record, now)
            return self._ledger.write(record, status, pending=rules.pending(record, status, now))
        except (Conflict, Temporary) as exc:
            log.info("the ledger was not updated; reconcile will", extra=_about(record) | {"error": str(exc)})
            return None

    # --- reconciling ---

    def _in_order(self) -> list[str]:
        """Pending models: who was not looked at for the most rounds first. Among equals, which are all when no slice
        was too short, those that wait for budget come first, by severity and age."""
        waiting, _ = self._budget.read()
        rank = {name: place for place, name in enumerate(budgets.in_order(waiting))}
        pending = list(self._ledger.pending())
        self._looked = {name: self._looked.get(name, 0) for name in pending}
        return sorted(pending, key=lambda name: (self._looked[name], rank.get(name, len(rank)), name))

    def _reconcile(self, name: str) -> str:
        record = self._ledger.read(name)
        if record is None:
            return "gone"
        retrain = record.status.retrain
        if retrain is not None and retrain.in_flight:
            now = self._sources.now()
            found = self._argo.get(retrain.workflow)
            if retrain.phase == "Claimed":
                self._finish_claim(record, retrain, found is not None, now)
            elif found is None:
                lost = Finish(outcome=Outcome.LOST, ended_at=now, explanation="the Workflow is gone")
                self._finish(record, lost, now)
            else:
                self._progress(record, found, now)
        answer = self._decide(name, lambda: self._ledger.read(name), None)
        return "gone" if answer is None else str(answer.decision.kind).lower()

    def _finish_claim(self, record: Record, retrain: Retrain, exists: bool, now: datetime) -> None:
        if exists:
            self._adopt(record)
        elif now - retrain.claimed_at <= rules.CREATE_WITHIN:
            pass  # its creator may still be at it
        elif now - retrain.first_claimed_at >= rules.CLAIM_EXPIRES:
            why = "its Workflow could not be created within an hour"
            failed = Finish(outcome=Outcome.FAILED, ended_at=now, reason="NotCreated", explanation=why)
            self._finish(record, failed, now)
        else:
            self._submit(self._ledger.write(record, rules.renewed(record, now), pending=True))

    def _progress(self, record: Record, found: Mapping[str, object], now: datetime) -> None:
        match workflows.read(found, now):
            case Finish() as finish:
                self._finish(record, finish, now)
            case workflows.Running(state):
                self._write(record, rules.progressed(record, state, self._limits.deadline, now), now)

    def _finish(self, record: Record, finish: Finish, now: datetime) -> None:
        """Note the end of the retrain in flight. Only who wrote it counts and logs it: once, however many look."""
        self._write(record, rules.finished(record, finish, now), now)
        self.count("retrain", finish.outcome.value)
        told = {"outcome": finish.outcome.value, "reason": finish.reason, "detail": finish.explanation}
        log.info("the retrain ended", extra=_about(record) | told)

    def _write(self, record: Record, status: Status, now: datetime) -> None:
        if status != record.status:
            self._ledger.write(record, status, pending=rules.pending(record, status, now))


def _retrain(status: Status) -> Retrain:
    if status.retrain is None:
        raise AssertionError("a claim without a retrain")
    return status.retrain


def _about(record: Record) -> dict[str, str | None]:
    """What every line of the log about a retrain carries."""
    retrain = _retrain(record.status)
    return {
        "event_id": retrain.event_id,
        "environment": record.environment,
        "model": record.model,
        "workflow": retrain.workflow,
    }


def _names(retrain: Retrain | None, workflow: str) -> bool:
    return retrain is not None and retrain.workflow == workflow
