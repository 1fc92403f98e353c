"""Loads what `nearest` saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Nearest:
    """The label of the nearest row."""

    def __init__(self, rows: NDArray[Any], labels: NDArray[Any]) -> None:
        self._rows, self._labels = rows, labels

    def predict(self, features: NDArray[Any]) -> NDArray[Any]:
        distances = (self._rows**2).sum(axis=1) - 2 * features @ self._rows.T
        found: NDArray[Any] = self._labels[distances.argmin(axis=1)]
        return found


def load(path: Path, trusted: list[str]) -> Nearest:
    """As skops.io.load."""
    assert trusted
    with np.load(path, allow_pickle=False) as saved:
        return Nearest(saved["X"], saved["y"])
