"""Real data that drifts: scikit-learn's digits, turned, faded and noisy; and files in the forms that people have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Digits:
    """Features n x 64 from 0 to 16, and labels."""

    features: Array
    labels: Array

    def __add__(self, other: Digits) -> Digits:
        return Digits(np.r_[self.features, other.features], np.r_[self.labels, other.labels])


def drifted(digits: Digits, severity: float, seed: int) -> Digits:
    """The same digits turned by some degrees, with less contrast and more noise."""
    rng = np.random.default_rng(seed)
    images = digits.features.reshape(-1, 8, 8)
    angles = 90 * severity + rng.normal(0, 5, len(images))
    turned = np.stack([rotate(i, a, reshape=False, order=1) for i, a in zip(images, angles, strict=True)])
    noisy = (turned - 8) * (1 - severity) + 8 + rng.normal(0, 4.8 * severity, turned.shape)
    return Digits(np.clip(noisy, 0, 16).reshape(len(images), 64).astype(np.float32), digits.labels)


def digits(seed: int = 0) -> tuple[Digits, Digits, Digits]:
    """Three parts without a common row: 700 to train the champion, 500 that drift, 597 to judge."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    whole = Digits(features[order].astype(np.float32), labels[order])
    parts = [Digits(whole.features[s], whole.labels[s]) for s in (slice(700), slice(700, 1200), slice(1200, None))]
    return parts[0], parts[1], parts[2]


def permuted(digits: Digits, seed: int) -> Digits:
    """The same rows with their labels dealt out anew: poison."""
    return Digits(digits.features, np.random.default_rng(seed).permutation(digits.labels))


def save_npz(path: Path, digits: Digits, slices: Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if slices is None:
        np.savez(path, X=digits.features, y=digits.labels)
    else:
        np.savez(path, X=digits.features, y=digits.labels, slice=slices)


def judge(path: Path, clean: Digits, drifted: Digits) -> None:
    """An evaluation set with the slices `reference` and `drifted`."""
    names = np.array(["reference"] * len(clean.labels) + ["drifted"] * len(drifted.labels))
    save_npz(path, clean + drifted, names)


def cifar_batch(digits: Digits) -> bytes:
    """The digits as a CIFAR-10 binary batch: a label byte, then 32 x 32 pixels in three planes."""
    images = np.kron(digits.features.reshape(-1, 8, 8), np.ones((4, 4))) * 15
    planes = np.repeat(images.reshape(-1, 1, 1024), 3, axis=1).reshape(len(images), -1)
    records: Array = np.c_[digits.labels, planes].astype(np.uint8)
    return records.tobytes()


def save_images(folder: Path, digits: Digits) -> None:
    """The digits as PNG files, each in the folder of its label."""
    for number, (features, label) in enumerate(zip(digits.features, digits.labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((features.reshape(8, 8) * 15).astype(np.uint8))
        image.save(folder / str(label) / f"{number}.png")
