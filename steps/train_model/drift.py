"""Which features of the new data are spread otherwise than in the old data, for people to look at. Pure.

The distance is that of Kolmogorov and Smirnov: the largest difference between the two cumulative shares, from 0 (spread
alike) to 1 (no value in common). Unlike the population stability index it needs no bins and no smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_model.readers import Rows

SHOWN = 8
BINS = 10
ROWS = 5_000
"""Rows of each side that are looked at, evenly spread: enough to see a distance of 0.03."""
COLUMNS = 10_000
SURE = 1.63
"""Times sqrt(1/n + 1/m): a distance that two samples of the same have in one case of a hundred; less is not shown."""


def drifted(old: Rows, new: Rows) -> list[dict[str, Any]]:
    """At most eight features, the furthest first, each with its distance and ten equal bins from `low` to `high` with
    the shares of old and new in them; values beyond are in the outer bins. Of images brightness, contrast, sharpness.
    """
    if not len(old) or not len(new):
        return []
    before, after = features(old), features(new)
    found = [
        (distance, name, x, y)
        for name in before
        if len(x := before[name]) and len(y := after[name])
        if (distance := _distance(x, y)) > SURE * math.sqrt(1 / len(x) + 1 / len(y))
    ]
    found.sort(key=lambda item: (-item[0], item[1]))
    return [{"name": name, "distance": round(d, 4), **_bins(x, y)} for d, name, x, y in found[:SHOWN]]


def features(rows: Rows) -> Mapping[str, NDArray[Any]]:
    """The finite values of each feature that a person knows by name."""
    table = rows.features[:: max(1, len(rows) // ROWS)].astype(np.float64)
    if rows.columns:
        columns = ((name, table[:, number]) for number, name in enumerate(rows.columns[:COLUMNS]))
        return {name: column[np.isfinite(column)] for name, column in columns}
    images = table.reshape(len(table), *rows.shape)
    # Neighbours along the picture's sides; an axis of at most four values, first or last, is that of the colours.
    sides = [axis for axis in range(1, images.ndim) if images.ndim < 4 or images.shape[axis] > 4]
    rough = [np.abs(np.diff(images, axis=axis)).reshape(len(table), -1).mean(axis=1) for axis in sides]
    named = {"brightness": table.mean(axis=1), "contrast": table.std(axis=1)}
    return named | ({"sharpness": np.mean(rough, axis=0)} if rough and table.shape[1] > 1 else {})


def _distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    x, y = np.sort(x), np.sort(y)
    both = np.concatenate([x, y])
    below = (np.searchsorted(values, both, side="right") / len(values) for values in (x, y))
    return float(np.abs(np.subtract(*below)).max())


def _bins(x: NDArray[Any], y: NDArray[Any]) -> dict[str, Any]:
    low, high = (float(v) for v in np.quantile(np.concatenate([x, y]), (0.005, 0.995)))
    if not high > low:  # nearly all values are one
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    shares = {}
    for name, values in (("old", x), ("new", y)):
        counts, _ = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
        shares[name] = [round(float(count) / len(values), 4) for count in counts]
    return {"low": low, "high": high, **shares}
