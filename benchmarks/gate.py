"""How often the gate errs, and what its care costs: seeded simulations through the functions of `train_model.verdict`.

Tables of right and wrong answers are drawn directly, not row by row; a sample of them also goes through `judge` itself,
which has to agree. The champion is the same in all attempts, and so are the rows: each challenger is independent of
the others given those.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from benchmarks._load import Bound, report
from numpy.typing import NDArray
from scipy.special import stdtr

from train_model.attempt import GateSettings
from train_model.verdict import LEVEL, Said, judge, lower_of_counts, lower_of_mean, mcnemar, p_of_mean

TRIALS, SEED = 20_000, 1
ATTEMPTS, SLICES = 3, 5
ROWS, DISAGREEMENTS, GAINS = (200, 500, 1000, 2000), (0.05, 0.1, 0.2, 0.4), (0.01, 0.02, 0.05, 0.1)
RIGHT = 0.75  # share of right answers of the champion
HARM, HARM_ROWS = 0.1, 300
AGREED = 200  # tables a cell that also go through judge
SETTINGS = GateSettings()
LUCK = SETTINGS.alpha / ATTEMPTS
Counts = NDArray[np.int64]


def tables(
    rng: np.random.Generator, rows: int, disagreement: float, gain: float, attempts: int
) -> tuple[Counts, Counts]:
    """(trials, attempts, slices) won and lost, of challengers that are right in `gain` more of the rows."""
    right = rng.binomial(rows // SLICES, RIGHT, size=(TRIALS, 1, SLICES))
    shape = (TRIALS, attempts, SLICES)
    lost = rng.binomial(right, (disagreement - gain) / 2 / RIGHT, size=shape)
    won = rng.binomial(rows // SLICES - right, (disagreement + gain) / 2 / (1 - RIGHT), size=shape)
    return won, lost


def better(won: Counts, lost: Counts) -> NDArray[np.bool_]:
    """Which pass the test over all rows."""
    return np.asarray(mcnemar(won.sum(-1), lost.sum(-1)) < LUCK)


def unharmed(won: Counts, lost: Counts, rows: int) -> NDArray[np.bool_]:
    """Which lose in no slice that is large enough to be judged."""
    if rows // SLICES < SETTINGS.min_slice:
        return np.ones(won.shape[:-1], dtype=np.bool_)
    return np.asarray((lower_of_counts(won, lost, rows // SLICES, LEVEL) >= -SETTINGS.margin).all(-1))


def accepted(won: Counts, lost: Counts, rows: int, *, sliced: bool) -> bool:
    """What `judge` says to one table of counts by slice."""
    part = rows // SLICES
    was, now = np.zeros((SLICES, part), bool), np.zeros((SLICES, part), bool)
    for index, (more, less) in enumerate(zip(won, lost, strict=True)):
        now[index, :more] = True
        was[index, more : more + less] = True
    names = np.repeat([f"s{index}" if sliced else "" for index in range(SLICES)], part)
    said = [Said(np.where(column.ravel(), "a", "b")) for column in (now, was)]
    return judge(np.full(rows, "a"), said[0], said[1], names, SETTINGS, ATTEMPTS).accept


def agree(won: Counts, lost: Counts, rows: int, plain: NDArray[np.bool_], sliced: NDArray[np.bool_]) -> int:
    """How often `judge` says something else than the simulation; of one attempt each."""
    return sum(
        accepted(won[i, 0], lost[i, 0], rows, sliced=has) != bool(which[i, 0])
        for i in range(AGREED)
        for has, which in ((False, plain), (True, sliced))
    )


def classes(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One cell for each number of rows, disagreement and gain: shares promoted, without and with slices."""
    for rows, disagreement, gain in itertools.product(ROWS, DISAGREEMENTS, (0.0, *GAINS)):
        if gain > disagreement:
            continue
        won, lost = tables(rng, rows, disagreement, gain, 1 if gain else ATTEMPTS)
        plain = better(won, lost)
        sliced = plain & unharmed(won, lost, rows)
        cell: dict[str, Any] = {"rows": rows, "disagreement": disagreement, "gain": gain}
        cell |= {"promoted": float(plain.any(1).mean()), "with_slices": float(sliced.any(1).mean())}
        yield cell | {"disagree_with_judge": agree(won, lost, rows, plain, sliced)}


def harmed(rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """A slice that lost ten points: how often it is caught."""
    for disagreement in np.linspace(HARM, 0.9, 9):
        shares = [(disagreement - HARM) / 2, (disagreement + HARM) / 2, 1 - disagreement]
        won, lost, _ = rng.multinomial(HARM_ROWS, shares, size=5 * TRIALS).T
        caught = lower_of_counts(won, lost, HARM_ROWS, LEVEL) < -SETTINGS.margin
        yield {"disagreement": float(disagreement), "caught": float(np.mean(caught))}


def losses(rng: np.random.Generator, kind: str, trials: int, rows: int) -> tuple[Any, Any]:
    """(trials, 1, rows) errors of a champion, (trials, attempts, rows) changes of challengers as good on average."""
    many = (trials, ATTEMPTS, rows)
    before = rng.lognormal(0, 1.2, size=(trials, 1, rows))
    if kind == "as skewed as its own":
        return before, before - rng.lognormal(0, 1.2, size=many)
    if kind == "a little better mostly, much worse at times":
        return before, np.exp(0.5) - rng.lognormal(0, 1, size=many)
    rare = np.where(rng.random(many) < 0.05, -0.95, 0.05)
    return before, rare * rng.uniform(0.5, 1.5, size=many)


KINDS = (
    "as skewed as its own",
    "a little better mostly, much worse at times",
    "better in 95 rows, 19 times worse in 5",
)


def numbers(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """False promotion by mae, and what the t test would have let through."""
    for kind, rows in itertools.product(KINDS, ROWS):
        plain, sliced, plain_t = list[Any](), list[Any](), list[Any]()
        for _ in range(TRIALS // (trials := 500)):
            before, change = losses(rng, kind, trials, rows)
            passed = p_of_mean(change) < LUCK
            plain.append(passed.any(1))
            error = change.std(-1, ddof=1) / np.sqrt(rows)
            plain_t.append((stdtr(rows - 1, -change.mean(-1) / error) < LUCK).any(1))
            if rows // SLICES >= SETTINGS.min_slice:
                allowed = SETTINGS.margin * before.mean(-1)
                parts = lower_of_mean(change.reshape(trials, ATTEMPTS, SLICES, -1), LEVEL)
                passed = passed & (parts >= -allowed[..., np.newaxis]).all(-1)
            sliced.append(passed.any(1))
        cell: dict[str, Any] = {"kind": kind, "rows": rows, "promoted": float(np.mean(plain))}
        yield cell | {"with_slices": float(np.mean(sliced)), "t_test": float(np.mean(plain_t))}


def bootstrap(rng: np.random.Generator, trials: int = 2000, draws: int = 1000) -> dict[str, float]:
    """What a plain paired bootstrap of the mean would let through by mae, at one attempt with the fewest rows."""
    found = {}
    for kind in KINDS:
        changes = losses(rng, kind, trials, SETTINGS.min_rows)[1][:, 0]
        drawn = (rng.integers(0, changes.shape[1], size=(draws, changes.shape[1])) for _ in range(trials))
        p = [np.mean(change[rows].mean(-1) <= 0) for change, rows in zip(changes, drawn, strict=True)]
        found[kind] = float(np.mean(np.array(p) < LUCK))
    return found


def seconds(rng: np.random.Generator, rows: int = 10_000) -> dict[str, float]:
    """Median time of a whole verdict with five slices, by metric."""
    labels = rng.integers(0, 10, rows).astype(str)
    names = np.array([f"slice {index}" for index in rng.integers(0, SLICES, rows)], dtype="<U64")
    kinds = np.arange(10).astype(str)
    shares = [rng.dirichlet(np.ones(10), rows) for _ in range(2)]
    answers = [
        Said(np.where(rng.random(rows) < p, labels, "0"), kinds, s) for p, s in zip((0.9, 0.8), shares, strict=True)
    ]
    truth = rng.normal(size=rows)
    guesses = [Said(truth + rng.normal(size=rows) * scale) for scale in (0.5, 0.6)]
    found = {}
    for metric in ("accuracy", "brier", "logLoss", "mae", "mse"):
        numeric, took = metric in ("mae", "mse"), list[float]()
        true, (new, old) = (truth, guesses) if numeric else (labels, answers)
        for _ in range(9):
            began = time.perf_counter()
            judge(true, new, old, names, GateSettings(metric=metric), ATTEMPTS)
            took.append(time.perf_counter() - began)
        found[metric] = statistics.median(took)
    return found


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> int:
    rng = np.random.default_rng(SEED)
    cells, harm, means, took = list(classes(rng)), list(harmed(rng)), list(numbers(rng)), seconds(rng)
    naive = bootstrap(rng)
    equal = [cell for cell in cells if not cell["gain"]]
    heads = "".join(f" {rows:,} |" for rows in ROWS)
    table = [f"**Promoted by luck** over {ATTEMPTS} attempts, % (without / with {SLICES} equal slices), by rows:", ""]
    table += [f"| answers that differ |{heads}", "|---|" + "---|" * len(ROWS)]
    table += _grid(equal)
    table += ["", "**By mae**, errors skewed; in brackets what a t test would let through:", ""]
    table += [f"| the challenger's errors |{heads}", "|---|" + "---|" * len(ROWS)]
    for kind in KINDS:
        row = [cell for cell in means if cell["kind"] == kind]
        text = [f"{percent(c['promoted'])} / {percent(c['with_slices'])} ({percent(c['t_test'])})" for c in row]
        table.append(f"| {kind} | " + " | ".join(text) + " |")
    table += ["", f"A plain bootstrap at one attempt with {SETTINGS.min_rows} rows, where {percent(LUCK)} % are meant:"]
    table += ["; ".join(f"{kind} {percent(share)} %" for kind, share in naive.items()) + "."]
    table += ["", f"**A slice of {HARM_ROWS} rows that lost 10 points is caught**, %:", ""]
    table += ["| answers that differ |" + "".join(f" {h['disagreement']:.0%} |" for h in harm), "|---" * 10 + "|"]
    table += ["| caught | " + " | ".join(f"{100 * h['caught']:.2f}" for h in harm) + " |"]
    for gain in GAINS:
        table += [
            "",
            f"**Promoted at one attempt if truly {100 * gain:g} points better**, %, without / with slices:",
            "",
        ]
        table += [f"| answers that differ |{heads}", "|---|" + "---|" * len(ROWS)]
        table += _grid([cell for cell in cells if cell["gain"] == gain])
    table += ["", "| metric | verdict on 10,000 rows, ms |", "|---|---|"]
    table += [f"| {metric} | {1000 * value:.1f} |" for metric, value in took.items()]
    bounds: list[Bound] = [
        ("promoted by luck, worst cell", max(cell["promoted"] for cell in equal), "<=", 0.05),
        ("promoted by luck with slices, worst cell", max(cell["with_slices"] for cell in equal), "<=", 0.05),
        ("promoted by luck by mae, worst cell", max(cell["promoted"] for cell in means), "<=", 0.05),
        ("promoted by luck by mae with slices", max(cell["with_slices"] for cell in means), "<=", 0.05),
        ("harmed slice caught, worst cell", min(cell["caught"] for cell in harm), ">=", 0.99),
        ("tables that judge decides otherwise", sum(cell["disagree_with_judge"] for cell in cells), "<=", 0),
        ("slowest verdict / 50 ms", max(took.values()) / 0.05, "<=", 1),
    ]
    title = f"The gate: {TRIALS:,} seeded trials a cell, defaults of `spec.gate`, maxAttempts {ATTEMPTS}."
    runs = {"classes": cells, "harm": harm, "mae": means, "bootstrap": naive, "seconds": took}
    return report("gate", title, table, bounds, runs)


def _grid(cells: list[dict[str, Any]]) -> list[str]:
    lines = []
    for disagreement in sorted({cell["disagreement"] for cell in cells}):
        row = [cell for cell in cells if cell["disagreement"] == disagreement]
        text = [f"{percent(cell['promoted'])} / {percent(cell['with_slices'])}" for cell in row]
        lines.append(f"| {disagreement:.0%} | " + " | ".join(text) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
