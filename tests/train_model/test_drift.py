"""Which features are shown to have drifted, and how far."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from tests.train_model import datasets
from train_model.drift import BINS, drifted
from train_model.readers import Rows


def table(**columns: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Rows:
    features = np.column_stack(list(columns.values()))
    blank = np.full(len(features), "")
    return Rows(features, np.zeros(len(features)), blank, (len(columns),), tuple(columns))


def pictures(features: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Rows:
    flat, blank = features.reshape(len(features), -1), np.full(len(features), "")
    return Rows(flat, np.zeros(len(features)), blank, features.shape[1:])


def test_the_columns_that_moved_are_named_the_furthest_first() -> None:
    rng = np.random.default_rng(0)
    old = table(same=rng.normal(size=800), some=rng.normal(size=800), far=rng.normal(size=800))
    new = table(same=rng.normal(size=600), some=rng.normal(0.5, 1, 600), far=rng.normal(5, 1, 600))
    found = drifted(old, new)
    assert [item["name"] for item in found] == ["far", "some"]
    for item, column in zip(found, (2, 1), strict=True):
        expected = ks_2samp(old.features[:, column], new.features[:, column]).statistic
        assert item["distance"] == round(float(expected), 4)
        assert len(item["old"]) == len(item["new"]) == BINS
        assert abs(sum(item["old"]) - 1) < 0.001 > abs(sum(item["new"]) - 1)
    assert found[0]["old"][0] > 0 == found[0]["new"][0]


def test_at_most_eight_are_shown_and_missing_values_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{number:02}" for number in range(20)]
    old = table(**{name: rng.normal(size=300) for name in names})
    new = table(**{name: rng.normal(9, 1, 300) for name in names})
    assert len(drifted(old, new)) == 8
    gaps = old.features.copy()
    gaps[::2] = np.nan
    assert drifted(old, Rows(gaps, old.labels, old.slices, old.shape, old.columns)) == []


def test_of_images_it_is_brightness_contrast_and_sharpness() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (300, 3, 8, 8)).astype(np.float32)
    bright, faded = images + 40, (images - 100) * 0.5 + 100
    smooth = np.repeat(images[:, :, ::2], 2, axis=2)
    names = {name: [item["name"] for item in drifted(pictures(images), pictures(other))]
             for name, other in (("bright", bright), ("faded", faded), ("smooth", smooth))}  # fmt: skip
    assert names["bright"] == ["brightness"]
    assert {"contrast", "sharpness"} <= set(names["faded"])
    assert "sharpness" in names["smooth"]
    assert drifted(pictures(images[:150]), pictures(images[150:])) == []


def test_turned_faded_and_noisy_digits_have_drifted() -> None:
    part, new, _ = datasets.digits()
    later = datasets.drifted(new, 0.3, 1)
    found = drifted(pictures(part.features), pictures(later.features))
    assert found[0]["distance"] > 0.5
    assert drifted(pictures(part.features), pictures(new.features)) == []


@given(st.lists(st.sampled_from([0.0, 1.0, -1e300, 1e300, np.nan]), min_size=2, max_size=30), st.integers(1, 29))
def test_whatever_the_values_are_the_answer_is_finite(values: list[float], cut: int) -> None:
    cut = min(cut, len(values) - 1)
    old, new = table(x=np.array(values[:cut] * 30)), table(x=np.array(values[cut:] * 30))
    for item in drifted(old, new):
        assert 0 < item["distance"] <= 1
        assert np.isfinite([item["low"], item["high"], *item["old"], *item["new"]]).all()
        assert abs(sum(item["new"]) - 1) < 0.01
