"""A seeded world of drifting models around the real Trigger, which checks after every step what must always hold.

The adapters are the product's own over a table in memory. Not a benchmark, and no test of HTTP or training.

    python -m tests.policy.simulator --model-days 10000 --seed 1 --record docs/simulation.md
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from aegis.errors import AlreadyExists, Conflict, NotFound, Temporary
from aegis.events import UNKNOWN_VERSION, DriftEvent
from aegis.settings import spell_duration
from retrain_trigger.local import MODELS, WORKFLOWS, LocalBudgets, LocalLedger, LocalWorkflows
from retrain_trigger.model import Record, Retrain, object_name
from retrain_trigger.policy import fires
from retrain_trigger.sqlite import Objects, Stored
from retrain_trigger.trigger import Limits, Trigger
from retrain_trigger.workflow import CLAIM, MODEL_LABEL

from .world import DAY, HOUR, MINUTE, PREFIX, SECOND, START, Killed, Ports, ended

OUTCOMES = {
    "Promoted": 0.45, "Rejected": 0.2, "BadData": 0.06, "BadData:NoLabels": 0.03, "TrainerFailed": 0.06,
    "Failed": 0.1, "Lost": 0.04, "Cancelled": 0.06,
}  # fmt: skip
SKEW = 2 * MINUTE
"""Clocks of receivers and replicas are off by up to half of this."""
RECONCILE = 15 * MINUTE
MAX_BYTES = 48 * 1024
MODELS_A_FLEET = 8
CROWD = 40
"""Models of every fifth fleet, which all drift at once while the budget is one an hour: some wait for days."""


class Table:
    """What `Objects` does, in memory. Documents are shared: nobody here changes one in place."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Stored]] = {}
        self.writes: Counter[str] = Counter()
        self.made: list[str] = []

    def get(self, kind: str, name: str) -> Stored | None:
        return self.rows.get(kind, {}).get(name)

    def names(self, kind: str, *, pending_only: bool = False) -> list[str]:
        return [stored.name for stored in self.list(kind, pending_only=pending_only)]

    def list(self, kind: str, *, pending_only: bool = False) -> list[Stored]:
        rows = self.rows.get(kind, {})
        return [rows[name] for name in sorted(rows) if rows[name].pending or not pending_only]

    def create(self, kind: str, name: str, doc: dict[str, Any], *, pending: bool = False) -> Stored:
        rows = self.rows.setdefault(kind, {})
        if name in rows:
            raise AlreadyExists(f"{kind} {name} exists")
        self.writes[kind] += 1
        if kind == WORKFLOWS:
            self.made.append(name)
        rows[name] = Stored(name, 1, doc, pending)
        return rows[name]

    def replace(self, kind: str, name: str, doc: dict[str, Any], version: int, *, pending: bool = False) -> Stored:
        old = self.rows.get(kind, {}).get(name)
        if old is None or old.version != version:
            raise Conflict(f"{kind} {name} was changed by somebody else")
        self.writes[kind] += 1
        self.rows[kind][name] = Stored(name, version + 1, doc, pending)
        return self.rows[kind][name]


class ReadOnce(LocalLedger):
    """The ledger, which parses no document twice."""

    _known: dict[str, tuple[int, Record]]

    def read(self, name: str) -> Record | None:
        table = cast(Table, self._objects)
        stored = table.get(MODELS, name)
        if stored is None:
            return None
        known = self.__dict__.setdefault("_known", {})
        if name not in known or known[name][0] != stored.version:
            known[name] = (stored.version, super().read(name))
        return cast(Record, known[name][1])


@dataclass
class Alert:
    """One alert rule of one model, as Alertmanager and its copies see it."""

    number: int
    version: str
    severity: str
    repeat: timedelta
    starts_at: datetime | None = None
    episode: int = 0


@dataclass
class Model:
    name: str
    cooldown: timedelta
    features: int
    repeat: timedelta
    ttl: timedelta
    quiet: timedelta
    approval: bool
    canary: bool
    serving: list[str] = field(default_factory=lambda: ["v1"])
    alerts: dict[tuple[int, str], Alert] = field(default_factory=dict)
    suspended: bool = False
    asked: tuple[str, datetime] | None = None
    newest_sighting: datetime = START - DAY
    settled: datetime | None = None
    failures: int = 0
    failed: datetime | None = None
    broken_until: datetime = START
    pointer: str | None = None
    replaced: list[str] = field(default_factory=list)
    unattended: datetime | None = None
    waits_in_vain: datetime | None = None
    running: str | None = None
    sequence: int = 0
    asks: str = ""

    @property
    def key(self) -> str:
        return object_name("default", self.name)


@dataclass
class Summary:
    """What happened, and what must not have."""

    model_days: int = 0
    events: int = 0
    reconciles: int = 0
    retrains: int = 0
    kills: int = 0
    adopted: int = 0
    ledger_writes: int = 0
    largest_ledger: int = 0
    longest_unattended: timedelta = timedelta(0)
    outcomes: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    humans: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        per_event = self.ledger_writes / max(self.events, 1)
        lines = [
            f"model-days            {self.model_days}",
            f"events delivered      {self.events}",
            f"reconciles            {self.reconciles}",
            f"processes killed      {self.kills}",
            f"retrains              {self.retrains}",
            f"champions by others   {self.adopted}",
            f"ledger writes         {self.ledger_writes} ({per_event:.2f} an event)",
            f"largest ledger        {self.largest_ledger} bytes",
            f"longest unattended    {self.longest_unattended}",
            *(f"ended {k:<24}{v}" for k, v in self.outcomes.most_common()),
            *(f"decided {k:<22}{v}" for k, v in self.decisions.most_common()),
            *(f"NeedsHuman {k:<19}{v}" for k, v in self.humans.most_common()),
            f"violations            {len(self.violations)}",
            *(f"  {v}" for v in self.violations[:20]),
        ]
        return "\n".join(lines)


class Fleet:
    """Some models, one budget, several replicas of the trigger, and everything around them."""

    def __init__(self, seed: int, days: int, summary: Summary, *, crowded: bool = False) -> None:
        self.rng = random.Random(seed)
        self.seed, self.days, self.summary = seed, days, summary
        self.now = START
        self.ends = START + days * DAY
        self.queue: list[tuple[datetime, int, Callable[[], None]]] = []
        self.tie = itertools.count()
        self.ids = itertools.count(1)
        self.table = Table()
        objects = cast(Objects, self.table)
        self.ledger = ReadOnce(objects, self.token)
        self.ports = Ports(self.ledger, LocalBudgets(objects), LocalWorkflows(objects, self.token))
        self.limit = 1 if crowded else self.rng.choice((1, 1, 2, 20))
        self.limits = Limits(prefixes=(PREFIX,), budget=self.limit)
        self.fault_in = -1
        self.nested = False
        self.replicas = [self.replica(self.uniform(-SKEW / 2, SKEW / 2)) for _ in range(self.rng.choice((1, 2, 3)))]
        self.down_until = START
        self.claims: list[datetime] = []
        self.seen_made = 0
        features = (1,) if crowded else (1, 1, 2, 4, 18)
        self.models = [self.model(n, features) for n in range(CROWD if crowded else MODELS_A_FLEET)]
        self.by_key = {model.key: model for model in self.models}
        self.at(START, self.tick)
        self.at(START + (HOUR if crowded else self.uniform(HOUR, 6 * DAY)), self.incident)
        for model in self.models:
            self.at(START + self.uniform(HOUR, 4 * DAY), lambda m=model: self.drifts(m))  # type: ignore[misc]
            self.at(START + self.uniform(DAY, 9 * DAY), lambda m=model: self.person(m))  # type: ignore[misc]
            self.at(START + self.uniform(DAY, 20 * DAY), lambda m=model: self.adopts(m))  # type: ignore[misc]
            self.at(START + self.uniform(DAY, 25 * DAY), lambda m=model: self.breaks(m))  # type: ignore[misc]

    # --- building ---

    def token(self) -> str:
        return f"{next(self.ids):032x}"

    def uniform(self, low: timedelta, high: timedelta) -> timedelta:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def at(self, when: datetime, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (when, next(self.tie), what))

    def replica(self, skew: timedelta) -> Trigger:
        ports = self.ports.watched(self.hook)
        return ports.trigger(self.limits, lambda: self.now + skew, self.token, self.read_pointer)

    def read_pointer(self, _environment: str, model: str) -> str | None:
        """The champion's serial; now and then it cannot be had."""
        return None if self.chance(0.1) else self.by_key[object_name("default", model)].pointer

    def hook(self, _moment: str, _port: str, _method: str) -> None:
        """Between any two calls: a kill, a store that fails after doing its work, or another replica at work."""
        if self.fault_in < 0 or self.nested:
            return
        self.fault_in -= 1
        if self.fault_in >= 0:
            return
        kind = self.rng.random()
        if kind < 0.4:
            self.summary.kills += 1
            raise Killed
        if kind < 0.6:
            raise Temporary("the store did not answer")
        self.nested = True
        try:
            self.rng.choice(self.replicas).reconcile()
        finally:
            self.nested = False

    def model(self, number: int, features: Sequence[int]) -> Model:
        rng = self.rng
        ttl = rng.choice((2 * HOUR, 8 * HOUR, 8 * HOUR, 36 * HOUR))
        model = Model(
            name=f"model-{number}",
            cooldown=rng.choice((HOUR, 6 * HOUR, 6 * HOUR, 24 * HOUR)),
            features=rng.choice(features),
            repeat=rng.choice((10 * MINUTE, HOUR, 4 * HOUR, 4 * HOUR, 12 * HOUR, 24 * HOUR)),
            ttl=ttl,
            quiet=max(ttl, rng.choice((6 * HOUR, 48 * HOUR, 48 * HOUR, 96 * HOUR))),  # shorter, firing would be quiet
            approval=self.chance(0.2),
            canary=self.chance(0.2),
        )
        times = {"cooldown": model.cooldown, "evidenceTTL": model.ttl, "quietPeriod": model.quiet}
        spec: dict[str, Any] = {name: spell_duration(time) for name, time in times.items()}
        spec |= {"approval": model.approval, "maxAttempts": rng.choice((1, 3, 3, 5))}
        self.ledger.set_spec("default", model.name, spec, self.now)
        return model

    # --- the world ---

    def tick(self) -> None:
        """The ping: one replica reconciles."""
        if self.now >= self.down_until:
            if self.chance(0.002):
                self.down_until = self.now + self.uniform(HOUR, 30 * HOUR)
            self.summary.reconciles += 1
            if "failed" in (self.call(lambda replica: replica.reconcile()) or ()):
                self.violated("reconcile met a fault that nobody foresaw; the log has it")
            self.check()
        self.at(self.now + RECONCILE, self.tick)

    def incident(self) -> None:
        """One cause upstream: all models drift at once, and compete for the budget."""
        for model in self.models:
            self.begins(model)
        self.at(self.now + self.uniform(2 * DAY, 9 * DAY), self.incident)

    def drifts(self, model: Model) -> None:
        self.at(self.now + self.begins(model) + self.uniform(HOUR, 5 * DAY), lambda: self.drifts(model))

    def begins(self, model: Model) -> timedelta:
        """Some features of the serving versions begin to drift, in an episode of some length."""
        lasts = self.rng.choice((20 * MINUTE, 3 * HOUR, 12 * HOUR, 2 * DAY, 6 * DAY))
        repeat = model.repeat if self.chance(0.8) else 30 * MINUTE
        for version in model.serving:
            for feature in range(model.features):
                if self.chance(0.7):
                    alert = model.alerts.setdefault(
                        (feature, version),
                        Alert(
                            feature + 100 * len(model.alerts),
                            version if self.chance(0.9) else "unknown",
                            self.rng.choice(("info", "warning", "critical")),
                            repeat,
                        ),
                    )
                    self.at(self.now + self.uniform(SECOND, HOUR), lambda a=alert: self.fires(model, a, lasts))  # type: ignore[misc]
        return lasts

    def fires(self, model: Model, alert: Alert, lasts: timedelta) -> None:
        if alert.starts_at is not None:
            return
        alert.starts_at, alert.episode = self.now, alert.episode + 1
        episode = alert.episode
        self.repeats(model, alert, episode)
        self.at(self.now + lasts, lambda: self.stops(model, alert, episode))
        if self.chance(0.15):  # a flap
            self.at(self.now + self.uniform(MINUTE, lasts), lambda: self.flaps(model, alert, episode, lasts))

    def flaps(self, model: Model, alert: Alert, episode: int, lasts: timedelta) -> None:
        if alert.episode == episode and alert.starts_at is not None:
            self.stops(model, alert, episode)
            self.at(self.now + self.uniform(SECOND, 20 * MINUTE), lambda: self.fires(model, alert, lasts))

    def repeats(self, model: Model, alert: Alert, episode: int) -> None:
        if alert.starts_at is None or alert.episode != episode:
            return
        for _ in range(2 if self.chance(0.1) else 1):  # copies of an HA pair, their startsAt apart
            starts_at = alert.starts_at + self.uniform(-SECOND, SECOND) * self.chance(0.2)
            self.send(model, alert, starts_at, None)
        if self.chance(0.01):  # Prometheus and Alertmanager restarted: startsAt moves without a resolve
            alert.starts_at = self.now
        self.at(self.now + alert.repeat, lambda: self.repeats(model, alert, episode))

    def stops(self, model: Model, alert: Alert, episode: int) -> None:
        if alert.starts_at is None or alert.episode != episode:
            return
        starts_at, alert.starts_at = alert.starts_at, None
        if self.chance(0.9):
            self.send(model, alert, starts_at, self.now)

    def send(self, model: Model, alert: Alert, starts_at: datetime, ends_at: datetime | None) -> None:
        seen = self.now + self.uniform(-SKEW / 2, SKEW / 2)
        starts_at = min(starts_at, ends_at) if ends_at else starts_at
        drift = DriftEvent(
            firing=ends_at is None,
            source="/alertmanager/simulated",
            environment="default",
            model=model.name,
            version=alert.version,
            fingerprint=f"{alert.number:016x}",
            starts_at=starts_at,
            ends_at=ends_at,
            seen=seen,
            severity=alert.severity,
            dataset_uri=PREFIX + model.name,
            feature=f"feature-{alert.number}",
        )
        self.at(self.now + self.uniform(timedelta(0), 5 * SECOND), lambda: self.deliver(model, drift))
        if self.chance(0.05):  # a redelivery, soon or long after
            late = self.now + self.rng.choice((SECOND, MINUTE, HOUR, 9 * HOUR)) * (1 + self.rng.random())
            self.at(late, lambda: self.deliver(model, drift))

    def deliver(self, model: Model, drift: DriftEvent) -> None:
        """The broker tries again until the trigger answers."""
        if self.now < self.down_until:
            self.at(self.down_until + self.uniform(SECOND, 5 * MINUTE), lambda: self.deliver(model, drift))
            return
        self.summary.events += 1
        if drift.firing:
            record = self.ledger.read(model.key)
            heard = record.status.last_seen if record else None
            if heard and self.now - heard >= model.quiet - SKEW:
                model.failures = 0  # as the ledger does after that much quiet, also when this was seen long before
            model.newest_sighting = max(model.newest_sighting, drift.seen)
        before = self.table.writes[MODELS]
        decided = self.call(lambda replica: replica.event(drift).decision)
        self.summary.ledger_writes += self.table.writes[MODELS] - before
        if decided is None:
            self.at(self.now + self.uniform(SECOND, 2 * MINUTE), lambda: self.deliver(model, drift))
        else:
            self.summary.decisions[f"{decided.kind} {decided.reason}"] += 1
        self.check(model)

    def call(self, what: Callable[[Trigger], Any]) -> Any:
        """Let a replica do something; None if it was killed or answered 503."""
        self.fault_in = self.rng.randrange(14) if self.chance(0.03) else -1
        try:
            return what(self.rng.choice(self.replicas))
        except (Killed, Temporary):
            return None
        finally:
            self.fault_in = -1

    def person(self, model: Model) -> None:
        self.at(self.now + self.uniform(DAY, 12 * DAY), lambda: self.person(model))
        if self.chance(0.6):
            token = f"token-{next(self.ids)}"
            try:
                self.ledger.request(model.key, token, "ann", token)
                model.asked = (token, self.now)
            except (NotFound, Conflict):
                return
        else:
            self.suspend(model, True)
            self.at(self.now + self.uniform(HOUR, 2 * DAY), lambda: self.suspend(model, False))

    def suspend(self, model: Model, suspended: bool) -> None:
        model.suspended = suspended
        stored = self.table.get(MODELS, model.key)
        assert stored is not None
        spec = {k: v for k, v in stored.doc["spec"].items() if k not in ("environment", "model")}
        self.ledger.set_spec("default", model.name, {**spec, "suspend": suspended}, self.now)

    def adopts(self, model: Model) -> None:
        """Somebody else makes another model the champion; sooner or later perhaps it also serves."""
        self.at(self.now + self.uniform(2 * DAY, 25 * DAY), lambda: self.adopts(model))
        self.summary.adopted += 1
        model.pointer, model.replaced = str(next(self.ids)), []
        if self.chance(0.5):
            self.at(self.now + self.uniform(MINUTE, DAY), lambda: self.rolls_out(model, "adopted"))

    def breaks(self, model: Model) -> None:
        """For a time no retrain gets to an outcome of its own: a registry is down, nodes are lost, people cancel."""
        model.broken_until = self.now + self.uniform(6 * HOUR, 3 * DAY)
        self.at(model.broken_until + self.uniform(5 * DAY, 40 * DAY), lambda: self.breaks(model))

    # --- Workflows ---

    def begun(self, model: Model, name: str) -> None:
        """A Workflow was created: it waits, runs, perhaps waits for a person, and ends somehow."""
        outcome = self.rng.choices(list(OUTCOMES), list(OUTCOMES.values()))[0]
        if self.now < model.broken_until:
            outcome = self.rng.choice(("Failed", "Failed", "Lost", "Cancelled"))
        queued = self.uniform(SECOND, 20 * MINUTE) if self.chance(0.98) else self.uniform(5 * HOUR, 40 * HOUR)
        runs = self.uniform(5 * MINUTE, 3 * HOUR) if self.chance(0.98) else self.uniform(4 * HOUR, 9 * HOUR)
        self.at(self.now + queued, lambda: self.update(name, {"phase": "Running"}))
        end = self.now + queued + runs
        if model.approval and outcome == "Promoted":
            waiting = {"phase": "Running", "nodes": {"approve": {"type": "Suspend", "phase": "Running"}}}
            self.at(end, lambda: self.update(name, waiting))
            end += self.uniform(MINUTE, 6 * HOUR) if self.chance(0.7) else self.uniform(20 * HOUR, 60 * HOUR)
        compared = model.pointer
        self.at(end, lambda: self.over(model, name, outcome, compared))

    def update(self, name: str, status: dict[str, Any]) -> None:
        stored = self.table.get(WORKFLOWS, name)
        if stored is not None:
            doc = {**stored.doc, "status": status}
            self.table.replace(WORKFLOWS, name, doc, stored.version, pending=stored.pending)

    def over(self, model: Model, name: str, outcome: str, compared: str | None) -> None:
        """The Workflow ends. A challenger that was compared with another champion than today's is stale."""
        stored = self.table.rows[WORKFLOWS][name]
        if outcome == "Promoted" and compared != model.pointer:
            outcome = "Failed:ChampionChanged"
        self.summary.outcomes[outcome] += 1
        outcome, _, reason = outcome.partition(":")
        model.running = None
        self.note(model, outcome)
        if outcome == "Lost":
            del self.table.rows[WORKFLOWS][name]
            return
        pointer = str(next(self.ids))
        doc = ended(stored.doc, outcome, self.now, reason=reason, pointer=pointer)
        self.table.replace(WORKFLOWS, name, doc, stored.version)
        self.at(self.now + max(model.cooldown, DAY) + 2 * HOUR, lambda: self.forget(name))
        if outcome == "Promoted":
            model.pointer = pointer
            late = self.rng.choice((HOUR, 6 * HOUR, 2 * DAY, None))
            if late is not None:
                self.at(self.now + self.uniform(MINUTE, late), lambda: self.rolls_out(model, name))

    def note(self, model: Model, outcome: str) -> None:
        """What the next Workflow of the model will be held against."""
        record = self.ledger.read(model.key)
        assert record is not None
        retrain = record.status.retrain
        assert retrain is not None
        model.failures = model.failures + 1 if outcome in ("Failed", "Lost", "Cancelled") else 0
        model.failed = self.now if outcome in ("Failed", "Lost") else None
        if model.failed is None:
            model.settled = self.now
        if outcome == "Promoted":
            # The ledger remembers more of them; the last are enough to see that it looks.
            model.replaced = [*model.replaced, *(v for v in retrain.versions if v != UNKNOWN_VERSION)][-3:]

    def forget(self, name: str) -> None:
        if self.now < self.down_until + HOUR:
            self.at(self.down_until + 2 * HOUR, lambda: self.forget(name))
        else:
            self.table.rows[WORKFLOWS].pop(name, None)

    def rolls_out(self, model: Model, version: str) -> None:
        """The promoted model serves; a canary keeps the old one beside it."""
        version = "v" + version.rsplit("-", 1)[-1] + "-" + str(next(self.ids))
        model.serving = [*model.serving, version][-2:] if model.canary else [version]
        for (_, old), alert in list(model.alerts.items()):
            if old not in model.serving:
                self.stops(model, alert, alert.episode)
                del model.alerts[_, old]

    # --- what must always hold ---

    def violated(self, what: str) -> None:
        self.summary.violations.append(f"seed {self.seed}, {self.now - START}: {what}")

    def check(self, model: Model | None = None) -> None:
        while self.seen_made < len(self.table.made):
            name = self.table.made[self.seen_made]
            self.seen_made += 1
            self.check_created(name)
        for one in self.models if model is None else [model]:
            self.check_ledger(one)

    def check_created(self, name: str) -> None:
        """A Workflow may only begin alone, outside the cooldown, on new evidence; else a person asked."""
        doc = self.table.rows[WORKFLOWS][name].doc
        model = self.by_key[doc["metadata"]["labels"][MODEL_LABEL]]
        self.summary.retrains += 1
        if model.running is not None:
            self.violated(f"{name} began while {model.running} runs")
        model.running = name
        record = self.ledger.read(model.key)
        assert record is not None
        retrain = record.status.retrain
        if retrain is None or retrain.claim != doc["metadata"]["annotations"][CLAIM]:
            self.violated(f"{name} runs without a claim")
        elif retrain.requested_by is None and model.settled is not None:
            if retrain.first_claimed_at < model.settled + model.cooldown - SKEW:
                self.violated(f"{name} began inside the cooldown")
            if model.newest_sighting <= model.settled - SKEW:
                self.violated(f"{name} was trained on evidence from before the end of the last retrain")
        if retrain is not None:
            self.check_waits(model, retrain)
        self.begun(model, name)

    def check_waits(self, model: Model, retrain: Retrain) -> None:
        """Nor may it begin before the pause after a failure, or for versions whose successor waits to be rolled out."""
        if retrain.requested_by is not None:
            model.failures = 0
            return
        if model.failed is not None:
            pause = min(model.cooldown, 10 * MINUTE * 2 ** max(min(model.failures, 10) - 1, 0))
            if retrain.first_claimed_at < model.failed + pause - SKEW:
                self.violated(f"{retrain.workflow} began inside the pause after failure {model.failures}")
        if retrain.versions and set(retrain.versions) <= set(model.replaced):
            self.violated(f"{retrain.workflow} trains for versions that were replaced")

    def check_ledger(self, model: Model) -> None:
        stored = self.table.rows[MODELS][model.key]
        record = self.ledger.read(model.key)
        assert record is not None
        status, retrain = record.status, record.status.retrain
        in_flight = retrain is not None and retrain.in_flight
        if model.running and not (retrain and in_flight and retrain.workflow == model.running):
            self.violated(f"{model.running} runs and the ledger does not know")
        if status.sequence != model.sequence and retrain is not None:
            model.sequence = status.sequence
            self.claims.append(retrain.first_claimed_at)
            if len(self.claims) > self.limit and self.claims[-1] - self.claims[-1 - self.limit] < HOUR - SKEW:
                self.violated(f"more than {self.limit} submissions in an hour")
        if self.chance(0.02):
            size = len(json.dumps(stored.doc["status"], separators=(",", ":")))
            self.summary.largest_ledger = max(self.summary.largest_ledger, size)
            if size > MAX_BYTES:
                self.violated(f"the ledger of {model.name} has {size} bytes")
        human = status.condition("NeedsHuman")
        asks = human is not None and human.holds
        if human is not None and asks and model.asks != human.reason:
            self.summary.humans[human.reason] += 1
        model.asks = human.reason if human is not None and asks else ""
        self.check_bounded(model, in_flight or asks)
        self.check_rollout(model, record)
        if model.asked is not None:
            self.check_request(model, record)

    def check_bounded(self, model: Model, attended: bool) -> None:
        """Who goes on firing, seen well within evidenceTTL and every 4 h, is retrained or shows NeedsHuman in time."""
        often = min(4 * HOUR, model.ttl / 2)
        fires = any(a.starts_at and a.repeat <= often for a in model.alerts.values())
        if attended or not fires or model.suspended or self.now < self.down_until + HOUR:
            model.unattended = None
            return
        model.unattended = model.unattended or self.now
        waits = self.now - model.unattended
        self.summary.longest_unattended = max(self.summary.longest_unattended, waits)
        if waits > model.cooldown + DAY + 4 * HOUR + 2 * HOUR:
            self.violated(f"{model.name} fires since {waits} and nobody knows")
            model.unattended = None

    def check_rollout(self, model: Model, record: Record) -> None:
        """Nobody goes on waiting for a roll-out once somebody else changed the champion."""
        status, now = record.status, self.now
        retraining = status.condition("Retraining")
        waits = retraining is not None and retraining.reason == "WaitingForRollout" and status.pointer != model.pointer
        if not waits or now < self.down_until + HOUR or not any(fires(a, record.policy, now) for a in status.evidence):
            model.waits_in_vain = None
            return
        model.waits_in_vain = model.waits_in_vain or now
        if now - model.waits_in_vain > 3 * HOUR:
            self.violated(f"{model.name} waits for a roll-out, but somebody changed the champion")
            model.waits_in_vain = None

    def check_request(self, model: Model, record: Record) -> None:
        assert model.asked is not None
        token, since = model.asked
        waits_for_budget = "BudgetSpent" in record.status.waits
        if token in record.status.tokens or model.suspended or waits_for_budget or self.now < self.down_until + HOUR:
            model.asked = (token, self.now) if token not in record.status.tokens else None
        elif self.now - since > 2 * HOUR:
            self.violated(f"{model.name}: the request {token} was forgotten")
            model.asked = None

    def run(self) -> None:
        while self.queue and self.queue[0][0] <= self.ends:
            self.now, _, what = heapq.heappop(self.queue)
            what()
        self.summary.model_days += self.days * len(self.models)


def simulate(model_days: int, seed: int, *, days: int = 25, stop_at: int | None = None) -> Summary:
    """Run fleets until so many model-days have gone by, or until `stop_at` violations."""
    summary = Summary()
    for fleet in itertools.count():
        if summary.model_days >= model_days or (stop_at is not None and len(summary.violations) >= stop_at):
            return summary
        crowded = fleet % 5 == 4
        Fleet(seed * 1_000_003 + fleet, max(days // 5, 3) if crowded else days, summary, crowded=crowded).run()
    raise AssertionError("unreachable")


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate models, alerts, people and faults around the trigger.")
    parser.add_argument("--model-days", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, metavar="PAGE", help="put what is printed into this page's block")
    asked = parser.parse_args()
    logging.getLogger("aegis").setLevel(logging.ERROR)
    began = time.perf_counter()
    summary = simulate(asked.model_days, asked.seed)
    print(summary.text())
    print(f"took                  {time.perf_counter() - began:.0f} s")
    if asked.record:
        before, _, after = asked.record.read_text().split("```\n")
        asked.record.write_text("```\n".join((before, f"{summary.text()}\n", after)))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
