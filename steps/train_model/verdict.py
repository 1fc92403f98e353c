"""Accept or reject a challenger, from labels and what two models said. Pure: no I/O, no clock, nothing drawn by chance.

Every metric is a loss a row, and a row's change is the champion's loss less the challenger's: positive is better. Two
questions. Is the mean change above zero, at alpha shared among the attempts before a person is asked? It keeps luck
from being promoted. Is no slice worse by more than a margin (the lower 95 % bound of its change lies above -margin)?
It keeps old knowledge. The second can only refuse, so the first alone bounds how often an equal challenger gets in.

Right answers are counted: the exact McNemar test, and Bonett and Price's interval. Other losses are skewed (most rows
gain a little, few lose much), and at 200 rows the plain paired bootstrap and the t test then let two to three times as
many through as they say (`benchmarks/gate.py`). `p_of_mean` and `lower_of_mean` are Hall's transformed t (1992), which
corrects for skewness as a bootstrap of the t statistic does but costs no draws, with one imagined row more that lost as
much as any row changed: what was not seen may still be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, stdtr, stdtrit

from train_model.attempt import GateSettings

Reason = Literal[
    "Accepted",
    "NotEnoughData",
    "Worse",
    "NotBetter",
    "SliceHarmed",
    "BelowFloor",
    "NoChampion",
    "ChampionBroken",
    "CannotPredict",
    "OldDataLost",
]
Floats = NDArray[np.float64]

LEVEL = 0.05
"""Of the slices' bounds and the intervals; the settings' alpha is that of the test for being better."""
POWER = 0.8
"""What "is seen" means where rows are advised: in four cases of five."""
LEAST = 1e-4
"""Smallest probability that logLoss takes: one confident mistake then weighs as much as 13 coin flips, and cannot
decide alone."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said of n rows: `labels` (n,) as text, or as float64 of a regression. Where probabilities were asked
    for, `classes` (k,) as text and `probabilities` (n, k)."""

    labels: NDArray[Any]
    classes: NDArray[np.str_] | None = None
    probabilities: Floats | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: means of the metric, and the change in the good direction with its one-sided 95 % bounds (None: too
    few rows to judge)."""

    name: str
    rows: int
    champion: float
    challenger: float
    lower: float | None
    upper: float | None
    change: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, in one sentence and in numbers.

    `level` is alpha / maxAttempts. `change` is (change, low, high), positive = better, and `intervals` has "challenger"
    and "champion" (low, high), all two-sided 95 %. Without a champion `champion`, `change` and its interval are None or
    missing and `p` is against guessing. Where a model gave no answers, `challenger` is nan and the rest empty.
    """

    accept: bool
    reason: Reason
    explanation: str
    metric: str
    rows: int
    challenger: float
    champion: float | None
    p: float | None
    level: float
    change: tuple[float, float, float] | None
    intervals: dict[str, tuple[float, float]]
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a report shows: `labels` (n,) as text, or as float64 of a regression; `predictions` of champion (None: there
    was none) and challenger likewise, or a text that says why there are none; the challenger's `digest`; `explanation`
    is the verdict's with what has to be said about the data."""

    verdict: Verdict
    labels: NDArray[Any]
    predictions: tuple[NDArray[Any] | str | None, NDArray[Any] | str]
    digest: str
    explanation: str


def metric_of(settings: GateSettings, labels: NDArray[Any]) -> str:
    """The metric that was asked for, or that of the task: numbers are a regression's."""
    return settings.metric or ("mae" if labels.dtype.kind == "f" else "accuracy")


def refused(reason: Reason, explanation: str, metric: str, rows: int, level: float) -> Verdict:
    """A rejection without numbers."""
    return Verdict(False, reason, explanation, metric, rows, math.nan, None, None, level, None, {}, ())


def judge(
    labels: NDArray[Any],
    challenger: Said,
    champion: Said | None,
    slices: NDArray[np.str_],
    settings: GateSettings,
    attempts: int = 1,
) -> Verdict:
    """The verdict on `challenger`, of n rows beside n labels; the champion's likewise, or None without one: then it has
    to beat the best constant answer, and no slice is judged. `slices` names each row's slice, "" for none.
    """
    metric, rows, level = metric_of(settings, labels), len(labels), settings.alpha / attempts
    if not rows:
        return refused("NotEnoughData", "not enough data: there are no rows to judge by", metric, 0, level)
    before, after = loss(metric, labels, champion or guess(metric, labels)), loss(metric, labels, challenger)
    change = before - after
    p = p_value(metric, change)
    parts = tuple(
        _slice(name, metric, before[slices == name], after[slices == name], settings)
        for name in (sorted(set(slices.tolist()) - {""}) if champion else ())
    )
    allowed = settings.margin * (1.0 if metric == "accuracy" else float(before.mean()))
    harmed = [part for part in parts if part.lower is not None and not part.lower >= -allowed]
    faults = _faults(metric, change, after, p, level, settings, "the champion" if champion else "guessing")
    faults += [("SliceHarmed", _harm(metric, part, allowed)) for part in harmed if rows >= settings.min_rows]
    rival = f"vs champion {_value(metric, before)} on {rows:,} rows" if champion else ""
    alone = f"on {rows:,} rows, no champion yet; guessing gives {_value(metric, before)}"
    named = "" if metric == "accuracy" else f"{metric} of the "
    said = f"{named}challenger {_value(metric, after)} {rival or alone} (p = {_p(p)}, needed below {_p(level)})"
    return Verdict(
        accept=not faults,
        reason=faults[0][0] if faults else "Accepted",
        explanation=_explain(metric, faults, said, [part for part in parts if part not in harmed], allowed),
        metric=metric,
        rows=rows,
        challenger=_mean(metric, after),
        champion=_mean(metric, before) if champion else None,
        p=p,
        level=level,
        change=(float(change.mean()), *_two_sided(metric, change)) if champion else None,
        intervals={"challenger": interval(metric, after)}
        | ({"champion": interval(metric, before)} if champion else {}),
        slices=parts,
    )


Fault = tuple[Reason, str]


def _faults(
    metric: str, change: Floats, after: Floats, p: float, level: float, settings: GateSettings, rival: str
) -> list[Fault]:
    """Why the challenger is not taken, whatever its slices say."""
    rows, gain, spread = len(change), float(change.mean()), _spread(metric, change)
    if rows < settings.min_rows:
        buys = [
            f"{n:,} rows show a gain of {_size(metric, _seen(n, spread, level))}" for n in (settings.min_rows, 1000)
        ]
        need = f"{rows:,} rows, at least {settings.min_rows:,} are needed"
        return [("NotEnoughData", f"not enough data ({need}: in four cases of five {', '.join(buys)})")]
    found: list[Fault] = []
    if not p < level:  # what is no number is not small enough
        surely = _two_sided(metric, change)[1] < 0
        text = f"worse than {rival}" if surely else f"not clearly better than {rival}"
        if gain > 0:
            text += f" (if it is, some {_rows_needed(gain, spread, level)} rows would show it)"
        found.append(("Worse" if surely else "NotBetter", text))
    if metric == "accuracy" and _mean(metric, after) < settings.min_accuracy:
        found.append(("BelowFloor", f"below the floor of {100 * settings.min_accuracy:.1f} %"))
    if metric != "accuracy" and 0 < settings.max_loss < _mean(metric, after):
        found.append(("BelowFloor", f"above the highest {metric} allowed, {settings.max_loss:g}"))
    return found


def _explain(metric: str, faults: list[Fault], said: str, others: list[Slice], allowed: float) -> str:
    words = "; ".join([said, *(_words(metric, part) for part in others)])
    if faults:
        return f"{'; '.join(text for _, text in faults)}: {words}"
    return f"{words} (none may lose more than {_size(metric, allowed)})" if others else words


# --- losses


def loss(metric: str, labels: NDArray[Any], said: Said) -> Floats:
    """(n,) what each row costs: 1 for a wrong answer, the Brier score over all classes, minus the natural logarithm of
    the true class's probability (at least `LEAST`), the error or its square."""
    if metric == "accuracy":
        return np.asarray(said.labels != labels, dtype=np.float64)
    if metric in ("mae", "mse"):
        error: Floats = np.abs(said.labels.astype(np.float64) - labels)
        return error if metric == "mae" else error**2
    assert said.classes is not None  # noqa: S101 - for the type: who asks for this metric asks for probabilities
    assert said.probabilities is not None  # noqa: S101
    place = {name: at for at, name in enumerate(said.classes.tolist())}
    column = np.array([place.get(name, -1) for name in labels.tolist()])
    true = np.where(column >= 0, said.probabilities[np.arange(len(labels)), column], 0.0)
    if metric == "logLoss":
        return np.asarray(-np.log(np.maximum(true, LEAST)), dtype=np.float64)
    squares = np.einsum("ij,ij->i", said.probabilities, said.probabilities)
    return np.asarray(squares - 2 * true + 1, dtype=np.float64)


def guess(metric: str, labels: NDArray[Any]) -> Said:
    """The best that can be said of n rows without looking at them; fitted to these very labels, so a high bar."""
    rows = len(labels)
    if metric in ("mae", "mse"):
        return Said(np.full(rows, np.median(labels) if metric == "mae" else np.mean(labels)))
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.broadcast_to(counts / rows, (rows, len(classes)))
    return Said(np.full(rows, classes[np.argmax(counts)]), classes, shares)


# --- statistics; those of means work along the last axis


def p_value(metric: str, change: Floats) -> float:
    """How likely so good a mean change (n,) is if there is no gain; one-sided."""
    if metric == "accuracy":
        return float(mcnemar(np.sum(change > 0), np.sum(change < 0)))
    return float(p_of_mean(change))


def lower(metric: str, change: Floats, level: float) -> float:
    """Lower bound of the mean change (n,) at a one-sided level."""
    if metric == "accuracy":
        return float(lower_of_counts(np.sum(change > 0), np.sum(change < 0), len(change), level))
    return float(lower_of_mean(change, level))


def mcnemar(won: Any, lost: Any) -> Any:
    """Exact one-sided McNemar test of counts: P(X >= won), X binomial of won + lost coin flips."""
    return bdtrc(np.asarray(won) - 1, np.asarray(won) + lost, 0.5)


def lower_of_counts(won: Any, lost: Any, rows: int, level: float) -> Any:
    """Lower bound of (won - lost) / rows by Bonett and Price (2012): one row is added to each of the two changing
    cells, because where no row was seen to be lost, some still may be."""
    change = (np.asarray(won) - lost) / (rows + 2)
    variance = (np.asarray(won) + lost + 2) / (rows + 2) - change**2
    return change - _z(level) * np.sqrt(variance / (rows + 2))


def p_of_mean(change: Floats) -> Any:
    """P(so large a mean, or larger) if the true mean of (..., n) is zero."""
    mean, error, skew, rows = _moments(_with_one_more(change))
    t = np.where(error > 0, mean / np.where(error > 0, error, 1.0), 0.0)
    return stdtr(rows - 1, -(t + skew * (t**2 / 3 + 1 / 6) + skew**2 * t**3 / 27))


def lower_of_mean(change: Floats, level: float) -> Any:
    """Lower bound of the mean of (..., n) at a one-sided level: the inverse of `p_of_mean`."""
    return _bound(_with_one_more(change), level)


def interval(metric: str, losses: Floats) -> tuple[float, float]:
    """Two-sided 95 % interval of one model's metric: Wilson's for shares, Hall's for means."""
    if metric != "accuracy":
        return max(0.0, float(_bound(losses, LEVEL / 2))), float(-_bound(-losses, LEVEL / 2))
    rows, share, z = len(losses), _mean(metric, losses), _z(LEVEL / 2)
    middle, half = share + z**2 / (2 * rows), z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return (middle - half) / (1 + z**2 / rows), (middle + half) / (1 + z**2 / rows)


def _two_sided(metric: str, change: Floats) -> tuple[float, float]:
    return lower(metric, change, LEVEL / 2), -lower(metric, -change, LEVEL / 2)


def _with_one_more(change: Floats) -> Floats:
    return np.concatenate([change, -np.abs(change).max(axis=-1, keepdims=True)], axis=-1)


def _moments(values: Floats) -> tuple[Any, Any, Any, int]:
    """Mean, standard error, skewness / sqrt(n), n."""
    rows, scale = values.shape[-1], np.abs(values).max(axis=-1)
    unit = values / np.where(scale > 0, scale, 1.0)[..., np.newaxis]  # so that no power of a tiny number is nothing
    mean = unit.mean(axis=-1)
    centred = unit - mean[..., np.newaxis]
    variance = (centred**2).mean(axis=-1)
    skew = (centred**3).mean(axis=-1) / np.where(variance > 0, variance, 1.0) ** 1.5
    return mean * scale, np.sqrt(variance / max(1, rows - 1)) * scale, skew / math.sqrt(rows), rows


def _bound(values: Floats, level: float) -> Any:
    mean, error, skew, rows = _moments(values)
    t = stdtrit(max(1, rows - 1), 1 - level)
    flat = np.abs(skew) < 1e-9  # the limit of the formula, which divides by it
    safe = np.where(flat, 1.0, skew)
    return mean - error * np.where(flat, t, 3 / safe * (np.cbrt(1 + safe * (t - safe / 6)) - 1))


def _z(level: float) -> float:
    return NormalDist().inv_cdf(1 - level)


def _spread(metric: str, change: Floats) -> float:
    """Standard deviation of a row's change; never none, as one row more of each kind is imagined."""
    most = 1.0 if metric == "accuracy" else float(np.abs(change).max())
    return float(np.append(change, [most, -most]).std())


def _seen(rows: int, spread: float, level: float) -> float:
    """The gain that so many rows show with `POWER`."""
    return (_z(level) + _z(1 - POWER)) * spread / math.sqrt(rows)


def _rows_needed(gain: float, spread: float, level: float) -> str:
    return f"{float(f'{((_z(level) + _z(1 - POWER)) * spread / gain) ** 2:.2g}'):,.0f}"


# --- slices and words


def _slice(name: str, metric: str, before: Floats, after: Floats, settings: GateSettings) -> Slice:
    rows, change = len(before), before - after
    judged = rows >= settings.min_slice
    least, most = (lower(metric, change, LEVEL), -lower(metric, -change, LEVEL)) if judged else (None, None)
    return Slice(name, rows, _mean(metric, before), _mean(metric, after), least, most, float(change.mean()))


def _mean(metric: str, losses: Floats) -> float:
    return float(np.mean(losses == 0 if metric == "accuracy" else losses))


def _value(metric: str, losses: Floats) -> str:
    value = _mean(metric, losses)
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"


def _size(metric: str, change: float, sign: str = "") -> str:
    text = f"{100 * change:{sign}.1f} points" if metric == "accuracy" else f"{change:{sign}.3g}"
    return text.replace("-", "\u2212")


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 or not p else f"{p:.0e}"


def _words(metric: str, part: Slice) -> str:
    small = " (too few rows to judge)" if part.lower is None else ""
    return f"slice {part.name} {_moved(metric, part)} on {part.rows:,} rows{small}"


def _harm(metric: str, part: Slice, allowed: float) -> str:
    surely = "lost too much" if part.change < -allowed else "may have lost too much"
    least = _size(metric, part.lower or 0.0, "+")
    return f"slice {part.name} {surely} ({_moved(metric, part)} on {part.rows:,} rows, perhaps {least})"


def _moved(metric: str, part: Slice) -> str:
    if metric == "accuracy":
        return _size(metric, part.change, "+")
    return f"from {part.champion:.3g} to {part.challenger:.3g}"
