"""What must hold whatever comes in whatever order: random lives of one model over the table in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aegis.events import DriftEvent
from retrain_trigger import budget as budgets
from retrain_trigger import policy as rules
from retrain_trigger.budget import Budget
from retrain_trigger.local import LocalLedger
from retrain_trigger.model import Policy, Record, Status, from_doc, to_doc
from retrain_trigger.sqlite import Objects
from retrain_trigger.trigger import Trigger

from .simulator import Table
from .world import DAY, HOUR, MINUTE, NAME, PREFIX, SECOND, START, Killed, World, drift

OUTCOMES = ["Promoted", "Rejected", "BadData", "TrainerFailed", "Failed", "Lost", "Cancelled"]
ALERTS = st.integers(1, 20)
VERSIONS = st.sampled_from(["v1", "v2", "unknown"])
SKEWS = st.sampled_from([-2 * MINUTE, timedelta(0), 2 * MINUTE])
GAPS = st.integers(1, 36 * 60).map(lambda minutes: minutes * MINUTE)


def table_world() -> World:
    return World(cast(Objects, Table()))


class Faithful(LocalLedger):
    """A ledger in which what was written is what is read."""

    def write(self, record: Record, status: Status, *, pending: bool) -> Record:
        written = super().write(record, status, pending=pending)
        assert self.read(record.name) == written, "not what was written"
        return written


class LifeWorld(World):
    ledger_kind = Faithful


class Life(RuleBasedStateMachine):
    """One model, two replicas with clocks minutes apart, and anything that may happen.

    After each rule `began_rightly` looks at what began in it, with the clocks and the sightings of that moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = LifeWorld(cast(Objects, Table()))
        self.world.spec()
        self.replicas = [self.world.start(skew=-MINUTE), self.world.start(skew=MINUTE)]
        self.told: list[DriftEvent] = []
        self.newest = START - 9 * DAY
        self.settled = START - 9 * DAY
        self.suspended = False
        self.claimed = 0
        self.made: set[str] = set()
        self.tokens = 0

    def tell(self, event: DriftEvent, replica: int) -> None:
        self.told.append(event)
        self.hears(event, self.replicas[replica])

    def hears(self, event: DriftEvent, trigger: Trigger) -> None:
        if event.firing:
            # What is ahead of a clock counts as now, so a copy that comes later may say more: as fresh as it can be.
            self.newest = max(self.newest, min(event.seen, self.world.now + MINUTE))
        trigger.event(event)

    @rule(alert=ALERTS, version=VERSIONS, late=GAPS, begins=SKEWS, replica=st.integers(0, 1))
    def fires(self, alert: int, version: str, late: timedelta, begins: timedelta, replica: int) -> None:
        now = self.world.now
        seen = now - late / 60 + begins
        self.tell(drift(seen, alert=alert, version=version, starts_at=seen - MINUTE + begins), replica)

    @rule(version=VERSIONS, replica=st.integers(0, 1))
    def all_fire(self, version: str, replica: int) -> None:
        for alert in range(1, 21):
            self.hears(drift(self.world.now, alert=alert, version=version), self.replicas[replica])

    @rule(alert=ALERTS, version=VERSIONS, late=GAPS, replica=st.integers(0, 1))
    def resolves(self, alert: int, version: str, late: timedelta, replica: int) -> None:
        before = self.world.status.sequence
        ends_at = self.world.now - late / 60
        self.tell(drift(self.world.now, alert=alert, version=version, ends_at=ends_at), replica)
        assert self.world.status.sequence == before, "a resolve submitted"

    @precondition(lambda self: self.told)
    @rule(which=st.integers(0, 7), copies=st.integers(1, 3))
    def comes_again(self, which: int, copies: int) -> None:
        event = self.told[-1 - which % len(self.told)]
        self.hears(event, self.replicas[0])
        self.began_rightly()
        before = self.world.status.sequence
        for copy in range(copies):
            self.hears(event, self.replicas[copy % 2])
        assert self.world.status.sequence == before, "a copy submitted"

    @rule(gap=GAPS)
    def time_goes_by(self, gap: timedelta) -> None:
        self.world.wait(gap, every=max(gap / 4, MINUTE))

    @rule(gap=GAPS)
    def nobody_looks(self, gap: timedelta) -> None:
        self.world.now += gap

    @rule(call=st.integers(1, 12))
    def dies(self, call: int) -> None:
        calls = iter(range(1, 100))

        def hook(_moment: str, _port: str, _method: str) -> None:
            if next(calls) == call:
                raise Killed

        event = drift(self.world.now)
        try:
            self.hears(event, self.world.start(hook))
        except Killed:
            self.began_rightly()
            self.tell(event, 0)

    @precondition(lambda self: self.world.open())
    @rule(outcome=st.sampled_from(OUTCOMES), took=GAPS)
    def ends(self, outcome: str, took: timedelta) -> None:
        noted = self.world.record().status.retrain
        self.world.end(outcome, took=took)
        if outcome not in ("Failed", "Lost"):
            self.settled = self.world.now
        retrain = self.world.status.retrain
        if noted is not None and noted.uid is not None and retrain is not None and retrain.claim == noted.claim:
            assert retrain.outcome == outcome, "an end that nobody noted"

    @precondition(lambda self: self.world.open())
    @rule(
        outcome=st.sampled_from(OUTCOMES),
        after=st.integers(-4, 4),
        alert=ALERTS,
        rounds=st.integers(1, 4),
        resolved=st.booleans(),
    )
    def fires_about_its_end(self, outcome: str, after: int, alert: int, rounds: int, resolved: bool) -> None:
        """A sighting of minutes before or after the end, then silence until the cooldown is over, and then reconcile
        or the resolve of another alert."""
        for _ in range(rounds):
            if not self.world.open():
                return
            self.ends(outcome, HOUR)
            self.began_rightly()
            seen = self.world.now + after * MINUTE
            self.world.now += 4 * MINUTE
            self.tell(drift(seen, alert=alert, version="unknown", starts_at=seen - HOUR), 0)
            self.began_rightly()
            if resolved:
                self.world.now += 6 * HOUR
                self.resolves(alert=alert % 20 + 1, version="v1", late=MINUTE, replica=1)
            self.world.wait(6 * HOUR, every=HOUR)
            self.began_rightly()

    @rule()
    def is_asked(self) -> None:
        self.tokens += 1
        token = f"token-{self.tokens}"
        before = self.world.status
        self.world.ask(token)
        self.world.reconcile()
        after = self.world.status
        if self.suspended:
            assert token not in after.tokens, "a request was used up while it had to wait"
            return
        assert token in after.tokens, "a request was forgotten"
        if before.retrain is None or not before.retrain.in_flight:
            assert after.sequence == before.sequence + 1, "a request was not carried out"
            assert after.retrain is not None
            assert after.retrain.requested_by == "ann"
            assert (after.attempts, after.failures) == (0, 0), "a person's request restarts them"

    @rule(suspend=st.booleans())
    def is_suspended(self, suspend: bool) -> None:
        self.world.spec(suspend=suspend)
        self.suspended = suspend

    @invariant()
    def began_rightly(self) -> None:
        """Whatever began since the last look had the right to."""
        status = self.world.status
        retrain = status.retrain
        made = {doc["metadata"]["name"] for doc in self.world.workflows()} - self.made
        self.made |= made
        if status.sequence == self.claimed:
            # At most the claim that was known all along became a Workflow.
            assert made <= ({retrain.workflow} if retrain else set()), "began without a claim"
            return
        assert status.sequence == self.claimed + 1, "two began at once"
        self.claimed = status.sequence
        assert retrain is not None
        assert retrain.sequence == status.sequence
        assert made <= {retrain.workflow}, "began without a claim"
        assert not self.suspended, "while suspended"
        if retrain.requested_by is None:
            # By the clock of the replica that claimed, so no slack is owed to it.
            assert retrain.first_claimed_at >= self.settled + 6 * HOUR, "inside the cooldown"
            assert self.newest > self.settled + 2 * MINUTE, "on old evidence"
            assert status.attempts < self.world.record().policy.max_attempts, "beyond the attempts"

    @invariant()
    def holds(self) -> None:
        world = self.world
        status = world.status
        opened = world.open()
        assert len(opened) <= 1, "two in flight"
        if opened:
            assert status.retrain is not None
            assert status.retrain.in_flight, "forgot what runs"
            assert status.retrain.workflow == opened[0]["metadata"]["name"]
        assert len(status.evidence) <= 16, "a ledger that grows"
        assert len(status.history) <= 20, "a ledger that grows"
        self.is_idempotent(world.record())

    def is_idempotent(self, record: Record) -> None:
        first = rules.decide(record, self.world.now, claim="c", prefixes=(PREFIX,))
        if first.kind is not rules.Kind.SUBMIT:
            again = replace(record, status=first.status)
            second = rules.decide(again, self.world.now, claim="c", prefixes=(PREFIX,))
            assert (second.kind, second.reason) == (first.kind, first.reason), "decides otherwise the second time"
            assert not second.write, "writes again what it wrote"


Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase


# --- order ---


@st.composite
def sightings(draw: st.DrawFn) -> DriftEvent:
    seen = START + draw(st.integers(-400, 0)) * MINUTE + draw(st.integers(0, 999)) * SECOND / 1000
    starts_at = seen - draw(st.integers(0, 200)) * MINUTE
    ends_at = draw(st.none() | st.just(seen))
    return drift(seen, alert=draw(st.integers(1, 3)), starts_at=starts_at, ends_at=ends_at)


@given(st.lists(sightings(), max_size=8), st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_order_of_events_and_their_copies_change_nothing(events: list[DriftEvent], data: st.DataObject) -> None:
    policy = Policy()
    copies = data.draw(st.permutations(events + events[: len(events) // 2]))
    statuses = []
    for order in (events, copies):
        status = Status()
        for event in order:
            status = rules.observe(status, policy, event, START)
        statuses.append(status)
    assert statuses[0] == statuses[1]


@given(st.lists(sightings(), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_order_during_a_hold_changes_no_count(events: list[DriftEvent], data: st.DataObject) -> None:
    counts = []
    for order in (events, data.draw(st.permutations(events))):
        world = table_world()
        world.fire(9)
        for event in order:
            world.trigger.event(event)
        world.end("Failed", took=MINUTE)
        world.wait(11 * MINUTE)
        if world.open():
            world.end("Rejected", took=MINUTE)
        world.wait(10 * HOUR)
        counts.append((len(world.workflows()), world.status.attempts))
    assert counts[0] == counts[1]


# --- limits ---

Script = list[tuple[str, int, timedelta]]
STEPS = st.lists(
    st.tuples(st.sampled_from(["fire", "fire", "resolve", "wait"]), st.integers(1, 3), GAPS), min_size=3, max_size=25
)


def retrains(script: Script, outcomes: list[str], **spec: Any) -> int:
    world = table_world()
    world.spec(**spec)

    def settle() -> None:
        if world.open():
            name = world.open()[0]["metadata"]["labels"]["aegis.dev/sequence"]
            world.end(outcomes[int(name) % len(outcomes)], took=timedelta(0))

    for what, alert, gap in script:
        if what == "fire":
            world.fire(alert, version=f"v{alert}" if alert < 3 else "unknown")
        elif what == "resolve":
            world.resolve(alert)
        settle()
        end = world.now + gap
        while world.now < end:
            world.wait(min(HOUR, end - world.now), every=HOUR)
            settle()
    return world.status.sequence if world.ledger.read(NAME) else 0


@given(STEPS, st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_tightening_a_limit_never_adds_a_retrain(script: Script, outcomes: list[str]) -> None:
    """Cooldown and evidenceTTL are no limits in this sense: the next test says why."""
    loose = retrains(script, outcomes, maxAttempts=3, quietPeriod="12h")
    assert retrains(script, outcomes, maxAttempts=1, quietPeriod="12h") <= loose
    assert retrains(script, outcomes, maxAttempts=2, quietPeriod="12h") <= loose
    assert retrains(script, outcomes, maxAttempts=3, quietPeriod="48h") <= loose
    assert retrains(script, outcomes, suspend=True) == 0


def test_a_shorter_time_in_which_alerts_count_as_over_may_add_a_retrain() -> None:
    """evidenceTTL says what silence is, as the cooldown says when it is looked for: with a shorter one, or a longer
    cooldown, a Promoted retrain passes for the end of the drift, and attempts restart. Who sets it below the repeats
    of the alerts says that between two of them nothing drifts; the next is a new drift, and a retrain for it right."""
    repeats: Script = [("fire", 3, 10 * HOUR)] * 3  # of a version that is not known, so no roll-out is waited for
    patient = retrains(repeats, ["Promoted"], maxAttempts=1, quietPeriod="48h", evidenceTTL="11h")
    hasty = retrains(repeats, ["Promoted"], maxAttempts=1, quietPeriod="48h", evidenceTTL="1h")
    assert (patient, hasty) == (1, 3)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["info", "warning", "critical"]), st.integers(0, 900))),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_never_more_than_the_budget_in_any_hour(limit: int, asks: list[tuple[int, str, int]]) -> None:
    now, budget, granted = START, Budget(), []
    sequences: dict[int, int] = {}
    for model, severity, gap in asks:
        now += gap * SECOND
        sequence = sequences.get(model, 0) + 1
        name = f"m{model}-{sequence}"
        yes, budget = budgets.grant(budget, name, f"m{model}", sequence, severity, now, limit=limit)
        if yes:
            sequences[model] = sequence
            granted.append(now)
        assert from_doc(Budget, json.loads(json.dumps(to_doc(budget)))) == budget
    for first, later in zip(granted, granted[limit:], strict=False):
        assert later - first >= HOUR


def fires_for(world: World, trigger: Trigger, time: timedelta) -> None:
    for _ in range(int(time / (30 * MINUTE))):
        world.now += 30 * MINUTE
        trigger.event(drift(world.now, starts_at=START))
        if world.open():
            world.phase("Running")


@given(st.lists(st.sampled_from(OUTCOMES), min_size=12, max_size=12))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_who_goes_on_firing_is_retrained_or_seen_within_a_bounded_time(outcomes: list[str]) -> None:
    world = table_world()
    for outcome in outcomes:
        fires_for(world, world.trigger, 31 * HOUR)  # a cooldown and a day
        if not world.open():
            assert world.human() is not None
            return
        world.end(outcome)
