"""Share a bounded number of submissions among models. Pure: the budget's document in, grant and document out.

A reservation is keyed by the retrain's name, so asking twice takes one. Models that were refused wait in the
document, and nobody passes one that is more severe or waits longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from aegis.events import SEVERITIES

from .model import Severity

WINDOW = timedelta(hours=1)
UNCLAIMED_AFTER = timedelta(minutes=10)
"""A reservation whose claim never came is dropped after this."""
REFRESH = timedelta(minutes=5)
"""How often a waiting model says that it still waits; it is forgotten after three times this."""
MAX_WAITING = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """One submission; `sequence` of `model` (a ManagedModel's name) tells later whether it was claimed."""

    model: str
    sequence: int
    at: datetime
    claimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    severity: Severity
    since: datetime
    refreshed: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The document: reservations by retrain name, waiting models by ManagedModel name."""

    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    waiting: Mapping[str, Waiting] = field(default_factory=dict)


def doubtful(budget: Budget, now: datetime) -> dict[str, Reservation]:
    """Reservations old enough that their claim must exist, but not yet known to."""
    return {n: r for n, r in budget.reservations.items() if not r.claimed and now - r.at >= UNCLAIMED_AFTER}


def settle(budget: Budget, claimed: Mapping[str, bool]) -> Budget:
    """Keep the doubtful reservations that turned out claimed, drop the others."""
    kept = {
        name: replace(r, claimed=r.claimed or claimed.get(name, False))
        for name, r in budget.reservations.items()
        if claimed.get(name, True)
    }
    return replace(budget, reservations=kept)


def grant(
    budget: Budget, name: str, model: str, sequence: int, severity: str, now: datetime, *, limit: int
) -> tuple[bool, Budget]:
    """Reserve a submission, or take a place among the waiting. Returns whether it was granted, and the new budget."""
    reservations = {n: r for n, r in budget.reservations.items() if now - r.at < WINDOW}
    waiting = {m: w for m, w in budget.waiting.items() if now - w.refreshed < 3 * REFRESH}
    held = reservations.pop(name, None)
    mine = waiting.get(model) or Waiting(severity=severity, since=now, refreshed=now)
    mine = replace(mine, severity=severity)
    ahead = sum(1 for other, w in waiting.items() if other != model and _order(w, other) < _order(mine, model))
    kept = held is not None and now - held.at < UNCLAIMED_AFTER
    if kept or limit - len(reservations) > ahead:
        # Counted from now, also when it was reserved before: the hour begins with the submission.
        reservations[name] = Reservation(model=model, sequence=sequence, at=now)
        waiting.pop(model, None)
        return True, Budget(reservations=reservations, waiting=waiting)
    if model in waiting and now - mine.refreshed < REFRESH and mine == waiting[model]:
        return False, budget
    waiting[model] = replace(mine, refreshed=now)
    after = Budget(reservations=reservations, waiting=waiting)
    return False, replace(after, waiting={other: waiting[other] for other in in_order(after)[:MAX_WAITING]})


def in_order(budget: Budget) -> list[str]:
    """The waiting models, the most severe first, then the longest waiting."""
    return sorted(budget.waiting, key=lambda model: _order(budget.waiting[model], model))


def _order(waiting: Waiting, model: str) -> tuple[int, datetime, str]:
    return -SEVERITIES.index(waiting.severity), waiting.since, model
