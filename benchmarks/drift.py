"""Does a retrain help? Real data that drifts, trained and judged by the product's own functions, many seeded trials.

`python -m benchmarks.drift`, about ten minutes on two cores. Each trial draws its rows anew: a champion learns from old
rows, some rows drift, a challenger learns from old and new, the gate judges both on rows that neither saw (slices
`reference` and `drifted`, third of three attempts' level), and both are scored on fresh rows that nobody saw, drifted
ones and others in equal parts. Digits, breast cancer and diabetes are the sets that scikit-learn carries.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks._load import Bound, median, report
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from train_model import defaults, readers, verdict
from train_model.attempt import GateSettings
from train_model.gate import texts
from train_model.verdict import Said

Array = NDArray[Any]
ATTEMPTS = 3
MAX_WORSE = 0.05
SLICE = 105  # rows of a small set's evaluation slice: a few more than the gate wants
SETTINGS = GateSettings()


@dataclass(frozen=True, slots=True)
class Part:
    """Rows (n, d) and their labels."""

    rows: Array
    labels: Array

    def __add__(self, other: Part) -> Part:
        return Part(np.r_[self.rows, other.rows], np.r_[self.labels, other.labels])

    def __getitem__(self, chosen: Any) -> Part:
        return Part(self.rows[chosen], self.labels[chosen])


@dataclass(frozen=True, slots=True)
class World:
    """What one trial is made of. `reference` and `drifted` judge, the fresh ones say what became of it."""

    task: str
    old: Part
    new: Part
    reference: Part
    drifted: Part
    fresh_reference: Part
    fresh_drifted: Part
    params: Mapping[str, Any]


Drift = Callable[[Part], Part]


def digits(rng: np.random.Generator, strength: tuple[float, float], poison: float = 0.0) -> World:
    """Images turned by up to 40 degrees, faded and noisy. `poison`: that share of the new labels is dealt out anew."""
    severity = rng.uniform(*strength)

    def drift(part: Part) -> Part:
        if not severity:
            return part
        angles = 90 * severity + rng.normal(0, 5, len(part.labels))
        images = zip(part.rows.reshape(-1, 8, 8), angles, strict=True)
        turned = np.stack([rotate(image, angle, reshape=False, order=1) for image, angle in images])
        faded = (turned - 8) * (1 - severity) + 8 + rng.normal(0, 4.8 * severity, turned.shape)
        return Part(np.clip(faded, 0, 16).reshape(len(turned), 64), part.labels)

    whole = _shuffled(rng, *load_digits(return_X_y=True))
    old, new, usual, turned, fresh = _cut(whole, 600, 400, 200, 200)
    new = drift(new)
    if poison:
        dealt = rng.random(len(new.labels)) < poison * rng.random()
        labels = new.labels.copy()
        labels[dealt] = rng.permutation(labels[dealt])
        new = Part(new.rows, labels)
    return World("image", old, new, usual, drift(turned), fresh, drift(fresh), {})


def cifar(rng: np.random.Generator) -> World:
    """Digits as CIFAR-10 binary batches of 32 x 32 x 3 pixels, written and read by the product's reader."""
    world = digits(rng, (0.1, 0.4))

    def through(part: Part) -> Part:
        images = np.kron(part.rows.reshape(-1, 8, 8), np.ones((4, 4))) * 15
        planes = np.repeat(images.reshape(-1, 1, 1024), 3, axis=1).reshape(len(images), -1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "data_batch_1.bin")
            path.write_bytes(np.c_[part.labels, planes].astype(np.uint8).tobytes())
            rows = readers.read(path, "cifar")
        return Part(rows.features, rows.labels)

    fewer = {"iterations": 12}  # so that many trials fit into minutes
    judges = through(world.reference), through(world.drifted)
    fresh = through(world.fresh_reference), through(world.fresh_drifted)
    return World("image", through(world.old[:400]), through(world.new[:300]), *judges, *fresh, fewer)


def covariates(rng: np.random.Generator) -> World:
    """Breast cancer: a third of the measurements come from an instrument that is off by a factor, more or less."""
    whole = _shuffled(rng, *load_breast_cancer(return_X_y=True))
    factors = np.ones(whole.rows.shape[1])
    chosen = rng.permutation(len(factors))[: len(factors) // 3]
    factors[chosen] = rng.uniform(1.0, 1.8, len(chosen))

    def drift(part: Part) -> Part:
        return Part(part.rows * factors * rng.normal(1, 0.02, part.rows.shape), part.labels)

    return _table("table", whole, drift)


def label_shift(rng: np.random.Generator) -> World:
    """Digits as a table: of five rows four show a digit below 5, later four show one above, or the other way round."""
    high = bool(rng.integers(2))

    def share(part: Part, high: bool) -> Part:
        """Four rows of one kind to one of the other, each row once."""
        mine, others = np.flatnonzero((part.labels > 4) == high), np.flatnonzero((part.labels > 4) != high)
        return part[np.r_[mine, others[: len(mine) // 4]]]

    whole = _shuffled(rng, *load_digits(return_X_y=True))
    old, new, usual, shifted, fresh = _cut(whole, 500, 300, 250, 250)
    shown = share(usual, high), share(shifted, not high), share(fresh, high), share(fresh, not high)
    return World("table", share(old, high), share(new, not high), *shown, {"iterations": 20})


def regression(rng: np.random.Generator) -> World:
    """Diabetes: measurements off by a factor and an offset; the answer is a number."""
    whole = _shuffled(rng, *load_diabetes(return_X_y=True))
    columns = whole.rows.shape[1]
    factors, offsets = rng.uniform(1.0, 2.0, columns), rng.uniform(0.0, 0.1, columns)

    def drift(part: Part) -> Part:
        return Part(part.rows * factors + offsets + rng.normal(0, 0.002, part.rows.shape), part.labels)

    return _table("regression", whole, drift)


def _table(task: str, whole: Part, drift: Drift) -> World:
    """A set of some hundred rows, in parts of which some drift."""
    rows = len(whole.labels) - 2 * SLICE
    old, new, usual, drifted, fresh = _cut(whole, rows * 2 // 5, rows * 3 // 10, SLICE, SLICE)
    return World(task, old, drift(new), usual, drift(drifted), fresh, drift(fresh), {"iterations": 60})


def _cut(whole: Part, *sizes: int) -> list[Part]:
    """Parts of these sizes and the rest; no row is in two."""
    ends = np.cumsum([0, *sizes, len(whole.labels) - sum(sizes)])
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def _shuffled(rng: np.random.Generator, rows: Array, labels: Array) -> Part:
    order = rng.permutation(len(labels))
    return Part(rows[order], labels[order])


WORLDS: Mapping[str, Callable[[np.random.Generator], World]] = {
    "digits: turned, faded, noisy": partial(digits, strength=(0.1, 0.4)),
    "digits: no drift at all": partial(digits, strength=(0.0, 0.0)),
    "digits: some drift, up to all new labels wrong": partial(digits, strength=(0.0, 0.15), poison=1.0),
    "CIFAR batches: turned, faded, noisy": cifar,
    "table: covariates drift": covariates,
    "table: label shift": label_shift,
    "regression: covariates drift": regression,
}


class _Quiet:
    """In place of `defaults.Progress`: no curve, no checkpoints."""

    def resume(self) -> Any:
        return None

    def step(self, number: int, estimator: Any, **metrics: float) -> None:
        pass


def fitted(world: World, part: Part, seed: int) -> Any:
    given = {"seed": seed, "task": world.task, "params": world.params}
    fit: Any = defaults._network if world.task == "image" else defaults._trees
    return fit(given, part.rows.astype(np.float64), part.labels, _Quiet())


def trial(name: str, seed: int) -> dict[str, Any]:
    """One alert's story: who won, and whether that was good."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng([seed, sum(name.encode())])
    world = WORLDS[name](rng)
    champion, challenger = fitted(world, world.old, seed), fitted(world, world.old + world.new, seed + 1)
    judges = world.reference + world.drifted
    numbers = world.task == "regression"
    slices = np.array(["reference"] * len(world.reference.labels) + ["drifted"] * len(world.drifted.labels))
    labels = judges.labels.astype(np.float64) if numbers else texts(judges.labels.tolist())

    def says(model: Any) -> Said:
        answers = model.predict(judges.rows)
        return Said(answers if numbers else texts(answers.tolist()))

    settings = GateSettings(min_rows=SETTINGS.min_rows)
    found = verdict.judge(labels, says(challenger), says(champion), slices, settings, ATTEMPTS)
    fresh = world.fresh_reference + world.fresh_drifted

    def good(model: Any, part: Part) -> float:
        right = model.predict(part.rows)
        return -float(np.abs(right - part.labels).mean()) if numbers else float((right == part.labels).mean())

    return {
        "outcome": found.reason,
        "champion_before": good(champion, world.fresh_reference),
        "champion_drifted": good(champion, world.fresh_drifted),
        "challenger_reference": good(challenger, world.fresh_reference),
        "challenger_drifted": good(challenger, world.fresh_drifted),
        "worse": good(challenger, fresh) < good(champion, fresh),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for name in WORLDS:
            seeds = range(1000 * options.seed, 1000 * options.seed + options.trials)
            runs[name] = list(pool.map(partial(trial, name), seeds, chunksize=5))
            print(_line(name, runs[name]), flush=True)
    promoted = [each for found in runs.values() for each in found if each["outcome"] == "Accepted"]
    worse = sum(each["worse"] for each in promoted)
    table = [
        "| data | champion before | on drifted | challenger | promoted | worse of them | otherwise |",
        "|---" * 7 + "|",
    ]
    table += [_line(name, found) for name, found in runs.items()]
    title = f"Retraining on data that drifts: {options.trials} trials each, seed {options.seed}; medians on fresh rows "
    title += "of the share of right answers or, below zero, of the mean error."
    share = worse / max(1, len(promoted))
    bounds: list[Bound] = [("promoted, but worse than their champion on fresh rows", share, "<=", MAX_WORSE)]
    return report("drift", title, table, bounds, runs)


def _line(name: str, found: list[dict[str, Any]]) -> str:
    reasons = Counter(each["outcome"] for each in found)
    promoted = reasons.pop("Accepted", 0)
    worse = sum(each["worse"] for each in found if each["outcome"] == "Accepted")
    names = ("champion_before", "champion_drifted", "challenger_drifted")
    figures = " | ".join(f"{median(found, each):.3g}" for each in names)
    rest = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"| {name} | {figures} | {promoted} | {worse} | {rest} |"


if __name__ == "__main__":
    raise SystemExit(main())
