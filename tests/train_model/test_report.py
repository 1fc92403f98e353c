"""The model card says what the gate found, in every case; whatever it shows came from others and stays mere text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train_model.attempt import GateSettings
from train_model.card import Card, Drift
from train_model.verdict import Judged, Said, judge, refused

HOSTILE = "</text></style><script src=http://evil>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[2J|`["
GATE = GateSettings()


def judged(
    classes: int = 10, rows: int = 1000, wrong: float = 0.1, slices: int = 2, *, alone: bool = False, name: str = "c"
) -> Judged:
    """What a gate found: a champion that errs in 20 % of the rows, and a challenger that errs in `wrong`."""
    chance = np.random.default_rng(1)
    names = np.array([f"{name}{number}"[:64] for number in range(classes)])
    labels = chance.choice(names, rows)
    before, after = (
        np.where(chance.random(rows) < share, chance.choice(names, rows), labels) for share in (0.2, wrong)
    )
    parts = np.array([f"{name} {number}" for number in range(slices)])[np.arange(rows) % slices]
    verdict = judge(labels, Said(after), None if alone else Said(before), parts, GATE)
    return Judged(verdict, labels, (None if alone else before, after), "ab" * 32, verdict.explanation)


def regression(rows: int = 600, scale: float = 1.0) -> Judged:
    chance = np.random.default_rng(2)
    labels = scale * chance.normal(20, 5, rows)
    before, after = (labels + scale * chance.normal(0, spread, rows) for spread in (3, 1))
    parts = np.array(["drifted", "reference"])[np.arange(rows) % 2]
    verdict = judge(labels, Said(after), Said(before), parts, GATE)
    return Judged(verdict, labels, (before, after), "ab" * 32, verdict.explanation)


def card(found: Judged, name: str = "digits") -> Card:
    """With a drifted feature, a curve and where it comes from."""
    old, new = (0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.0)
    drift = Drift(name, 0.31, -1.0, 1.0, old, new)
    curve = [(step, 1 / (1 + step)) for step in range(50)]
    facts = {"model": name, "alert": name, "digest of the model": found.digest, "data 1": f"s3://bucket/{name}"}
    return Card(name, found, GATE.margin, facts, (drift, replace(drift, name=f"{name} 2")), {name: curve})


CANNOT = refused("CannotPredict", "the challenger cannot predict: ModuleNotFoundError", "accuracy", 300, 0.05)
CASES = {
    "accepted": card(judged()),
    "rejected": card(judged(wrong=0.3)),
    "without champion": card(judged(alone=True)),
    "cannot predict": card(Judged(CANNOT, judged().labels, (judged().predictions[0], "no module"), "", "it cannot")),
    "broken champion": card(replace(judged(alone=True), predictions=("it died", judged().predictions[1]))),
    "three classes": card(judged(classes=3)),
    "twenty classes": card(judged(classes=20)),
    "a hundred classes": card(judged(classes=100)),
    "regression": card(regression()),
    "a vast regression": card(regression(scale=1e90)),
    "twelve slices": card(judged(slices=12)),
    "hostile": card(judged(name=HOSTILE), HOSTILE),
    "long names": card(judged(name="a-name-without-any-blank-that-goes-on-and-on-" * 4), "long" * 100),
    "no rows": card(Judged(refused("NotEnoughData", "none", "accuracy", 0, 0.05), np.array([]), (None, ""), "", "")),
}
