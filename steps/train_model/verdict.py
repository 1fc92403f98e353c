"""Accept or reject a challenger, from labels and two columns of predictions. Pure: no I/O, no clock, own seed.

Two questions, both at 95 %: is the challenger better than the champion over all rows (exact one-sided McNemar
test), and is no slice worse by more than a margin (non-inferiority: the lower bound of its change lies above
-margin)? The first keeps luck from being promoted, the second keeps old knowledge. Numbers come back in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_model.attempt import GateSettings

REPLICATES = 4000
"""Bootstrap draws: the 5 % quantile then moves by less than a tenth of a point from seed to seed."""
_LEVEL = 0.05  # of the slices' bounds; the settings' alpha is the level of the test for being better


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: rows, both accuracies, the change's lower 95 % bound (None: too small to judge)."""

    name: str
    rows: int
    champion: float
    challenger: float
    lower: float | None

    @property
    def change(self) -> float:
        """Gained share of right answers."""
        return self.challenger - self.champion


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, in one sentence and in numbers. `champion` and `p` are None where there was no champion."""

    accept: bool
    explanation: str
    rows: int
    challenger: float
    champion: float | None
    p: float | None
    slices: tuple[Slice, ...]


def judge(
    labels: NDArray[Any],
    challenger: NDArray[Any],
    champion: NDArray[Any] | None,
    slices: NDArray[np.str_],
    settings: GateSettings,
    seed: int,
) -> Verdict:
    """The verdict on `challenger`, n predictions beside n labels; the champion's likewise, or None without one.

    `slices` names each row's slice, "" for none. Predictions and labels are compared as they are.
    """
    rows = len(labels)
    right = challenger == labels
    share = float(right.mean()) if rows else 0.0
    if champion is None:
        return _alone(labels, share, settings)
    was_right = champion == labels
    before = float(was_right.mean()) if rows else 0.0
    won, lost = int((right & ~was_right).sum()), int((~right & was_right).sum())
    p = binomial_tail(won, won + lost, 0.5)
    names = sorted(set(slices.tolist()) - {""})
    parts = tuple(_slice(name, right[slices == name], was_right[slices == name], settings, seed) for name in names)
    whole = _slice("all rows", right, was_right, settings, seed)
    faults = _faults(rows, share, before, p, [*parts] or [whole], settings)
    said = f"challenger {_percent(share)} vs champion {_percent(before)} on {rows:,} rows (p = {_p(p)})"
    words = "; ".join([said, *(_words(part) for part in parts if not _harmed(part, settings))])
    if faults:
        return Verdict(False, f"{'; '.join(faults)}: {words}", rows, share, before, p, parts)
    worst = f" (none may lose more than {100 * settings.margin:g})" if parts else ""
    return Verdict(True, f"{words}{worst}", rows, share, before, p, parts)


def _alone(labels: NDArray[Any], share: float, settings: GateSettings) -> Verdict:
    """Without a champion: surely better than always giving the most frequent label, and above the floor."""
    rows = len(labels)
    common = int(np.unique(labels, return_counts=True)[1].max()) / rows if rows else 1.0
    p = binomial_tail(round(share * rows), rows, common)
    said = f"challenger {_percent(share)} on {rows:,} rows, no champion yet; guessing gives {_percent(common)}"
    faults = [f"not enough data ({rows:,} rows, at least {settings.min_rows:,})"] if rows < settings.min_rows else []
    if p >= settings.alpha:
        faults.append("not clearly better than guessing")
    if share < settings.min_accuracy:
        faults.append(f"below the floor of {_percent(settings.min_accuracy)}")
    text = f"{'; '.join(faults)}: {said}" if faults else said
    return Verdict(not faults, text, rows, share, None, None, ())


def _faults(
    rows: int, share: float, before: float, p: float, parts: Sequence[Slice], settings: GateSettings
) -> list[str]:
    """Why the challenger is not taken; empty if it is."""
    if rows < settings.min_rows:
        return [f"not enough data ({rows:,} rows, at least {settings.min_rows:,})"]
    found = []
    if p >= settings.alpha:
        found.append("worse than the champion" if share < before else "not clearly better than the champion")
    if share < settings.min_accuracy:
        found.append(f"below the floor of {_percent(settings.min_accuracy)}")
    for part in parts:
        if _harmed(part, settings):
            surely = "lost too much" if part.change < -settings.margin else "may have lost too much"
            numbers = f"{_points(part.change)} on {part.rows:,} rows, perhaps {_points(part.lower or 0)}"
            found.append(f"slice {part.name} {surely} ({numbers})")
    return found


def _harmed(part: Slice, settings: GateSettings) -> bool:
    return part.lower is not None and part.lower < -settings.margin


def _slice(
    name: str, right: NDArray[np.bool_], was_right: NDArray[np.bool_], settings: GateSettings, seed: int
) -> Slice:
    rows = len(right)
    won, lost = int((right & ~was_right).sum()), int((~right & was_right).sum())
    lower = lower_bound(won, lost, rows, seed) if rows >= settings.min_slice else None
    return (
        Slice(name, rows, float(was_right.mean()), float(right.mean()), lower) if rows else Slice(name, 0, 0, 0, None)
    )


def lower_bound(won: int, lost: int, rows: int, seed: int) -> float:
    """Lower 95 % bound of (won - lost) / rows, by a multinomial bootstrap.

    One row is added to each of the two changing cells: where no row was seen to be lost, some still may be.
    """
    total = rows + 2
    cells = [(won + 1) / total, (lost + 1) / total, (rows - won - lost) / total]
    draws = np.random.default_rng(seed).multinomial(rows, cells, size=REPLICATES)
    return float(np.quantile((draws[:, 0] - draws[:, 1]) / rows, _LEVEL))


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """P(X >= least) for X binomial; exact but for rounding. 1.0 for no trials."""
    if least <= 0:
        return 1.0
    if least > trials:
        return 0.0
    if not 0 < chance < 1:
        return float(chance >= 1)
    factor = math.log(chance), math.log1p(-chance)
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * factor[0]
        + (trials - k) * factor[1]
        for k in range(least, trials + 1)
    ]
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(value - top) for value in logs))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points".replace("-", "\u2212")


def _p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def _words(part: Slice) -> str:
    small = " (too few rows to judge)" if part.lower is None else ""
    return f"slice {part.name} {_points(part.change)} on {part.rows:,} rows{small}"
