"""The demo's data: scikit-learn's digits, and the same digits as a camera that slipped would see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

Array = NDArray[Any]

TURN_DEGREES, CONTRAST, NOISE = 27.0, 0.7, 1.4
"""A drift that takes a champion from nine right answers in ten to about two, and that retraining repairs."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images as n x 64 grey values from 0 to 16, and the digit that each shows."""

    images: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class Data:
    """`old`: what the champion learned; `new`: fresh, drifted data; the rest judges, and is never trained on."""

    old: Part
    new: Part
    reference: Part
    drifted: Part


def make(seed: int) -> Data:
    """Split the digits into parts that share no row, and let some drift."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = images[order].astype(np.float32), labels[order]
    return Data(
        old=Part(images[:700], labels[:700]),
        new=Part(_slipped(images[700:1200], rng), labels[700:1200]),
        reference=Part(images[1200:], labels[1200:]),
        drifted=Part(_slipped(images[1200:], rng), labels[1200:]),
    )


def _slipped(images: Array, rng: np.random.Generator) -> Array:
    turned = [
        rotate(image, TURN_DEGREES + rng.normal(0, 5), reshape=False, order=1) for image in images.reshape(-1, 8, 8)
    ]
    faded = (np.stack(turned) - 8) * CONTRAST + 8 + rng.normal(0, NOISE, (len(images), 8, 8))
    return np.clip(faded, 0, 16).reshape(len(images), 64).astype(np.float32)


def write(data: Data, folder: Path, seed: int) -> None:
    """Put the datasets where the demo's models look for them."""
    shuffled = Part(data.new.images, np.random.default_rng(seed + 1).permutation(data.new.labels))
    for name, part in (("old", data.old), ("new", data.new), ("harmful", shuffled)):
        _save(folder / name, X=part.images, y=part.labels)
    slices = np.array(["reference"] * len(data.reference.labels) + ["drifted"] * len(data.drifted.labels))
    _save(
        folder / "evaluation",
        X=np.r_[data.reference.images, data.drifted.images],
        y=np.r_[data.reference.labels, data.drifted.labels],
        slice=slices,
    )


def _save(folder: Path, **arrays: Array) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping of arrays
