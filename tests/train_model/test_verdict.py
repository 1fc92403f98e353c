"""The gate's verdict: what it must always hold, and how often it errs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from train_model.attempt import GateSettings
from train_model.verdict import (
    LEAST,
    Said,
    Slice,
    Verdict,
    _p,
    guess,
    interval,
    judge,
    loss,
    lower_of_counts,
    lower_of_mean,
    mcnemar,
    metric_of,
    p_of_mean,
)

SETTINGS = GateSettings()
Array = NDArray[np.str_]
Columns = tuple[Array, Array, Array, Array]


def cases(won: int, lost: int, both: int, neither: int, name: str = "") -> Columns:
    """Labels, challenger, champion and slices with these counts of right answers."""
    counts = (won, lost, both, neither)
    right = np.repeat([True, False, True, False], counts)
    was_right = np.repeat([False, True, True, False], counts)
    total = sum(counts)
    return (
        np.full(total, "a"),
        np.where(right, "a", "b"),
        np.where(was_right, "a", "b"),
        np.full(total, name, dtype="<U64"),
    )


def together(*parts: Columns) -> Columns:
    labels, challenger, champion, slices = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return labels, challenger, champion, slices


def ask(columns: Columns, settings: GateSettings = SETTINGS, attempts: int = 1) -> Verdict:
    labels, challenger, champion, slices = columns
    return judge(labels, Said(challenger), Said(champion), slices, settings, attempts)


def compare(labels: Any, challenger: Any, champion: Any | None, metric: str = "", **settings: Any) -> Verdict:
    """The verdict on two columns of numbers, without slices."""
    none, was = np.full(len(labels), "", dtype="<U64"), None if champion is None else Said(champion)
    return judge(labels, Said(challenger), was, none, replace(SETTINGS, metric=metric, **settings))


def test_a_clear_winner_is_accepted_in_words_with_its_numbers() -> None:
    verdict = ask(cases(751, 2, 192, 55), attempts=3)
    assert (verdict.accept, verdict.reason) == (True, "Accepted")
    assert verdict.explanation == (
        "challenger 94.3 % vs champion 19.4 % on 1,000 rows (p = 6e-222, needed below 0.017)"
    )


def test_an_equal_challenger_is_not_better_and_a_surely_worse_one_is_worse() -> None:
    equal, less, worse = (ask(cases(*counts, 400, 60)) for counts in ((20, 20), (20, 24), (10, 60)))
    assert (equal.accept, equal.reason) == (less.accept, less.reason) == (False, "NotBetter")
    assert equal.explanation.startswith("not clearly better than the champion: challenger")
    assert (worse.accept, worse.reason) == (False, "Worse")
    assert worse.explanation.startswith("worse than the champion: challenger")


def test_who_is_better_but_not_clearly_is_told_how_many_rows_would_show_it() -> None:
    gained = 30 / 1000
    verdict = ask(cases(60, 30, 800, 110), replace(SETTINGS, alpha=0.0005))
    spread = np.std([1] * 61 + [-1] * 31 + [0] * 910)
    needed = ((norm.isf(0.0005) + norm.isf(0.2)) * spread / gained) ** 2
    assert verdict.reason == "NotBetter"
    assert f"(if it is, some {float(f'{needed:.2g}'):,.0f} rows would show it)" in verdict.explanation


def test_too_few_rows_are_not_enough_data_however_good_it_looks() -> None:
    verdict = ask(cases(150, 0, 49, 0))
    assert (verdict.accept, verdict.reason) == (False, "NotEnoughData")
    assert verdict.explanation.startswith(
        "not enough data (199 rows, at least 200 are needed: in four cases of five 200 rows show a gain of "
    )
    assert ask(cases(150, 0, 50, 0)).accept


def test_the_level_is_shared_among_the_attempts() -> None:
    columns = cases(60, 40, 300, 100)
    p = binomtest(60, 100, alternative="greater").pvalue
    assert 0.05 / 2 < p < 0.05
    assert ask(columns).accept
    second = ask(columns, attempts=2)
    assert (second.accept, second.level) == (False, 0.025)


def test_forgetting_is_caught_by_its_slice_though_the_whole_is_better() -> None:
    verdict = ask(together(cases(300, 0, 200, 0, "drifted"), cases(0, 40, 260, 0, "reference")))
    assert (verdict.accept, verdict.reason) == (False, "SliceHarmed")
    assert verdict.explanation.startswith(
        "slice reference lost too much (\u221213.3 points on 300 rows, perhaps \u2212"
    )


def test_a_slice_too_small_to_judge_is_reported_not_judged() -> None:
    verdict = ask(together(cases(300, 0, 200, 0, "drifted"), cases(0, 30, 69, 0, "tiny")))
    assert verdict.accept
    assert "slice tiny \u221230.3 points on 99 rows (too few rows to judge)" in verdict.explanation


def test_without_slices_there_are_none() -> None:
    assert ask(cases(60, 1, 200, 0)).slices == ()


counts = st.integers(0, 400)


@given(won=counts, lost=counts, both=counts, neither=counts, seed=st.integers(0, 9))
def test_the_verdict_is_the_same_each_time_and_in_any_order(
    won: int, lost: int, both: int, neither: int, seed: int
) -> None:
    columns = cases(won, lost, both, neither, "s")
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    labels, challenger, champion, slices = (column[order] for column in columns)
    assert ask(columns).explanation == ask((labels, challenger, champion, slices)).explanation


@given(won=counts, lost=counts, both=counts, neither=counts, more=st.integers(1, 100))
def test_more_right_answers_never_turn_an_accept_into_a_reject(
    won: int, lost: int, both: int, neither: int, more: int
) -> None:
    moved = min(more, neither)
    before, after = ask(cases(won, lost, both, neither)), ask(cases(won + moved, lost, both, neither - moved))
    assert after.accept or not before.accept


@given(won=counts, lost=counts, both=counts, neither=counts)
def test_what_is_accepted_is_better_and_has_enough_rows(won: int, lost: int, both: int, neither: int) -> None:
    verdict = ask(cases(won, lost, both, neither), attempts=3)
    if verdict.accept:
        assert won > lost
        assert won + lost + both + neither >= 200
        assert verdict.p is not None
        assert verdict.p < 0.05 / 3


@pytest.mark.parametrize(("won", "lost"), [(10, 3), (60, 40), (0, 0), (5, 9), (0, 7), (1, 0), (900, 1100)])
def test_mcnemar_is_the_textbook_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost, 0.5, alternative="greater").pvalue if won + lost else 1.0
    assert float(mcnemar(won, lost)) == pytest.approx(expected, rel=1e-9)


def test_the_bound_of_counts_is_bonett_and_prices() -> None:
    # One row more in each changing cell, over n + 2.
    change, spread = 20 / 302, math.sqrt(42 / 302 - (20 / 302) ** 2)
    expected = change - norm.isf(0.05) * spread / math.sqrt(302)
    assert float(lower_of_counts(30, 10, 300, 0.05)) == pytest.approx(expected)
    assert float(lower_of_counts(0, 0, 100, 0.05)) == pytest.approx(-norm.isf(0.05) * math.sqrt(2 / 102 / 102))


@pytest.mark.parametrize("disagreement", [0.1, 0.4, 0.9])
def test_a_slice_of_300_that_lost_ten_points_passes_in_less_than_one_of_a_hundred(disagreement: float) -> None:
    shares = [(disagreement - 0.1) / 2, (disagreement + 0.1) / 2, 1 - disagreement]
    won, lost, _ = np.random.default_rng(0).multinomial(300, shares, size=20_000).T
    assert np.mean(lower_of_counts(won, lost, 300, 0.05) >= -SETTINGS.margin) < 0.01


def test_an_unharmed_reference_slice_of_500_usually_passes() -> None:
    won, lost, _ = np.random.default_rng(0).multinomial(500, [0.03, 0.03, 0.94], size=500).T
    assert np.sum(lower_of_counts(won, lost, 500, 0.05) >= -SETTINGS.margin) >= 490


@pytest.mark.parametrize("rows", [200, 1000])
def test_an_equal_challenger_with_skewed_losses_is_promoted_no_more_often_than_said(rows: int) -> None:
    rng, trials, level = np.random.default_rng(0), 4000, 0.05 / 3
    skewed = np.exp(0.5) - rng.lognormal(0, 1, size=(trials, rows))  # a little better mostly, much worse at times
    passed = np.mean(p_of_mean(skewed) < level)
    assert passed <= level
    naive = np.mean(t.sf(skewed.mean(1) / skewed.std(1, ddof=1) * math.sqrt(rows), rows - 1) < level)
    assert naive > 1.5 * level  # which is why it is not that test


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=60), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_of_a_mean_lies_below_it_and_says_what_its_test_says(values: list[float], level: float) -> None:
    change = np.array(values)
    bound = float(lower_of_mean(change, level))
    assert bound <= change.mean() + 1e-9
    if abs(bound) > 1e-6 * (1 + float(np.abs(change).max())):
        assert (bound > 0) == (float(p_of_mean(change)) < level)


def test_no_change_at_all_is_no_gain() -> None:
    assert float(p_of_mean(np.zeros(300))) == 0.5
    assert float(lower_of_mean(np.zeros(300), 0.05)) == 0.0
    assert compare(np.arange(300.0), np.zeros(300), np.zeros(300)).reason == "NotBetter"


def test_what_is_no_number_is_never_accepted() -> None:
    truth = np.zeros(400)
    far = np.full(400, 1e200)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not compare(truth, truth, far, "mse").accept
        assert not compare(truth, far, truth, "mse").accept


# --- losses


KINDS = np.array(["a", "b", "c"])
SHARES = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [1.0, 0.0, 0.0]])


def test_a_loss_is_what_its_name_says() -> None:
    truth = np.array(["a", "c", "b"])
    said = Said(np.array(["a", "b", "a"]), KINDS, SHARES)
    assert loss("accuracy", truth, said).tolist() == [0, 1, 1]
    assert loss("brier", truth, said) == pytest.approx([0.09 + 0.04 + 0.01, 0.01 + 0.36 + 0.49, 1 + 1])
    assert loss("logLoss", truth, said) == pytest.approx([-math.log(0.7), -math.log(0.3), -math.log(LEAST)])
    numbers = Said(np.array([1.0, 5.0]))
    assert loss("mae", np.array([2.0, 2.0]), numbers).tolist() == [1, 3]
    assert loss("mse", np.array([2.0, 2.0]), numbers).tolist() == [1, 9]


def test_a_class_that_a_model_does_not_know_has_no_probability() -> None:
    said = Said(np.array(["a"]), KINDS, SHARES[:1])
    assert loss("brier", np.array(["z"]), said) == pytest.approx([1 + 0.49 + 0.04 + 0.01])
    assert loss("logLoss", np.array(["z"]), said) == pytest.approx([-math.log(LEAST)])


def test_the_order_of_the_classes_does_not_matter() -> None:
    order = [2, 0, 1]
    for metric in ("brier", "logLoss"):
        one, other = (Said(KINDS, KINDS[o], SHARES[:, o]) for o in ([0, 1, 2], order))
        assert np.allclose(loss(metric, KINDS, one), loss(metric, KINDS, other))


def test_the_best_guess_is_the_best_constant() -> None:
    labels, numbers = np.array(["a"] * 60 + ["b"] * 40), np.array([0.0, 1.0, 5.0])
    assert loss("accuracy", labels, guess("accuracy", labels)).mean() == pytest.approx(0.4)
    assert loss("brier", labels, guess("brier", labels)).mean() == pytest.approx(0.48)
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    assert loss("logLoss", labels, guess("logLoss", labels)).mean() == pytest.approx(entropy)
    assert (guess("mae", numbers).labels == 1).all()
    assert (guess("mse", numbers).labels == 2).all()


def test_the_metric_is_that_of_the_task_unless_the_owner_names_one() -> None:
    texts, numbers = np.array(["1"]), np.array([1.0])
    assert (metric_of(SETTINGS, texts), metric_of(SETTINGS, numbers)) == ("accuracy", "mae")
    assert metric_of(GateSettings(metric="brier"), texts) == "brier"


@pytest.mark.parametrize("metric", ["mae", "mse"])
def test_a_regression_that_errs_less_is_accepted_and_one_that_errs_as_much_is_not(metric: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    good, old, same = (truth + rng.normal(0, scale, 400) for scale in (0.5, 1.0, 1.0))
    better, equal = compare(truth, good, old, metric), compare(truth, same, old, metric)
    assert (better.accept, better.metric) == (True, metric)
    assert equal.reason == "NotBetter"
    assert better.champion is not None
    assert better.change is not None
    change, low, high = better.change
    assert change == pytest.approx(better.champion - better.challenger)
    assert 0 < low < change < high
    assert better.explanation.startswith(f"{metric} of the challenger {better.challenger:.4g} vs champion ")
    assert compare(truth, good, old, metric, max_loss=0.01).reason == "BelowFloor"
    assert compare(truth, good, None, metric).accept
    assert compare(truth, np.zeros(400), None, metric).reason == "NotBetter"
    worse = compare(truth, old, good, metric)
    assert worse.reason == "Worse"


def test_probabilities_that_are_nearer_to_the_truth_are_better_though_the_answers_are_the_same() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b"], size=500)
    kinds, answers = np.array(["a", "b"]), np.full(500, "a")

    def at(share: float) -> Said:
        """Gives the true class this share."""
        return Said(answers, kinds, np.where(labels[:, None] == kinds, share, 1 - share))

    none = np.full(500, "", dtype="<U64")
    for metric in ("brier", "logLoss"):
        settings = GateSettings(metric=metric)
        assert judge(labels, at(0.8), at(0.7), none, settings).accept
        assert judge(labels, at(0.7), at(0.8), none, settings).reason == "Worse"
        assert judge(labels, at(0.8), None, none, settings).accept
    assert judge(labels, at(0.8), at(0.7), none, SETTINGS).reason == "NotBetter"


def test_a_slice_may_lose_a_share_of_the_champions_loss_over_all_rows() -> None:
    rng = np.random.default_rng(0)
    truth, names = np.zeros(1000), np.repeat(["much", "little"], 500).astype("<U64")
    old = np.concatenate([rng.uniform(1.9, 2.1, 500), rng.uniform(0.9, 1.1, 500)])
    new = np.concatenate([old[:500] - 1, old[500:] + 0.06])
    mean = old.mean()
    for margin, accepted in ((0.05, True), (0.035, False)):
        verdict = judge(truth, Said(new), Said(old), names, replace(SETTINGS, margin=margin))
        assert verdict.accept is accepted, verdict.explanation
        words = f"(none may lose more than {margin * mean:.3g})" if accepted else "slice little lost too much (from "
        assert words in verdict.explanation
    assert 0.035 * mean < 0.06 < 0.05 * mean


# --- without a champion


def alone(right: int, rows: int, min_accuracy: float = 0.0) -> Verdict:
    """Without a champion, on two classes of the same size."""
    labels = np.where(np.arange(rows) < rows / 2, "a", "b")
    challenger = np.where(np.arange(rows) < right, labels, "z")
    return compare(labels, challenger, None, min_accuracy=min_accuracy)


@pytest.mark.parametrize(
    ("right", "rows", "floor", "reason", "words"),
    [
        (200, 200, 0.0, "Accepted", "challenger 100.0 % on 200 rows, no champion yet; guessing gives 50.0 %"),
        (199, 199, 0.0, "NotEnoughData", "not enough data (199 rows, at least 200 are needed: "),
        (100, 200, 0.0, "NotBetter", "not clearly better than guessing: challenger 50.0 % on 200 rows, "),
        (150, 200, 0.75, "Accepted", "challenger 75.0 % on 200 rows, "),
        (150, 200, 0.76, "BelowFloor", "below the floor of 76.0 %: challenger 75.0 % on 200 rows, "),
        (
            100,
            200,
            0.76,
            "NotBetter",
            "not clearly better than guessing; below the floor of 76.0 %: challenger 50.0 % ",
        ),
        (20, 200, 0.0, "Worse", "worse than guessing: challenger 10.0 %"),
    ],
)
def test_without_a_champion_a_challenger_must_beat_guessing_and_the_floor(
    right: int, rows: int, floor: float, reason: str, words: str
) -> None:
    verdict = alone(right, rows, min_accuracy=floor)
    assert verdict.explanation.startswith(words)
    assert (verdict.accept, verdict.reason) == (reason == "Accepted", reason)
    assert (verdict.champion, verdict.change, set(verdict.intervals)) == (None, None, {"challenger"})
    assert verdict.challenger == right / rows


def test_no_rows_at_all_are_not_enough() -> None:
    empty = np.array([], dtype="<U1")
    for champion in (empty, None):
        verdict = compare(empty, empty, champion)
        assert (verdict.accept, verdict.reason) == (False, "NotEnoughData")
        assert verdict.explanation == "not enough data: there are no rows to judge by"


# --- numbers and words


def test_the_floor_is_reached_by_standing_on_it() -> None:
    at = ask(cases(300, 0, 60, 40), replace(SETTINGS, min_accuracy=0.9))
    assert at.accept, at.explanation
    below = ask(cases(300, 0, 60, 40), replace(SETTINGS, min_accuracy=0.91))
    assert below.explanation.startswith("below the floor of 91.0 %: challenger 90.0 % vs champion 15.0 % on 400 rows")


def test_a_slice_that_lost_is_told_apart_from_one_that_may_have() -> None:
    columns = together(cases(300, 0, 200, 0, "drifted"), cases(8, 12, 160, 20, "small"))
    assert (
        "slice small may have lost too much (\u22122.0 points on 200 rows, perhaps \u2212" in ask(columns).explanation
    )


def test_a_verdict_carries_its_numbers() -> None:
    columns = together(cases(100, 10, 60, 30, "drifted"), cases(6, 4, 70, 20, "clean"), cases(5, 5, 30, 59, "tiny"))
    accepted = ask(columns, replace(SETTINGS, margin=0.2), 2)

    def part(name: str, won: int, lost: int, rows: int, before: int, after: int, *, judged: bool = True) -> Slice:
        low, high = float(lower_of_counts(won, lost, rows, 0.05)), -float(lower_of_counts(lost, won, rows, 0.05))
        least, most = (low, high) if judged else (None, None)
        return Slice(name, rows, before / rows, after / rows, least, most, (won - lost) / rows)

    clean, drifted = part("clean", 6, 4, 100, 74, 76), part("drifted", 100, 10, 200, 70, 160)
    tiny = part("tiny", 5, 5, 99, 35, 35, judged=False)
    low, high = float(lower_of_counts(111, 19, 399, 0.025)), -float(lower_of_counts(19, 111, 399, 0.025))
    assert accepted.explanation == (
        "challenger 67.9 % vs champion 44.9 % on 399 rows (p = 3e-17, needed below 0.025); "
        "slice clean +2.0 points on 100 rows; slice drifted +45.0 points on 200 rows; "
        "slice tiny +0.0 points on 99 rows (too few rows to judge) (none may lose more than 20.0 points)"
    )
    assert (accepted.accept, accepted.reason, accepted.metric) == (True, "Accepted", "accuracy")
    assert (accepted.rows, accepted.challenger, accepted.champion) == (399, 271 / 399, 179 / 399)
    assert accepted.p == pytest.approx(binomtest(111, 130, alternative="greater").pvalue)
    assert accepted.level == 0.025
    assert accepted.change == pytest.approx((92 / 399, low, high))
    assert accepted.intervals["challenger"] == pytest.approx(wilson(271, 399))
    assert accepted.intervals["champion"] == pytest.approx(wilson(179, 399))
    assert accepted.slices == (clean, drifted, tiny)


def wilson(right: int, rows: int) -> tuple[float, float]:
    low, high = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def test_the_interval_of_a_mean_holds_it_and_is_never_below_no_loss() -> None:
    low, high = interval("mae", np.array([0.0] * 90 + [1.0] * 10))
    assert 0 <= low < 0.1 < high
    draws = np.random.default_rng(0).lognormal(0, 1, size=(1000, 300))
    held = [low < math.exp(0.5) < high for low, high in (interval("mae", row) for row in draws)]
    assert np.mean(held) > 0.92


def test_two_reasons_are_told_one_after_the_other() -> None:
    verdict = ask(cases(10, 60, 400, 60, "all"))
    assert verdict.reason == "Worse"
    assert verdict.explanation.startswith(
        "worse than the champion; slice all lost too much (\u22129.4 points on 530 rows"
    )


def test_a_small_chance_is_spelled_as_a_power() -> None:
    assert [_p(p) for p in (1.0, 0.0123, 0.00012, 0.00001, 0.0)] == ["1", "0.012", "0.00012", "1e-05", "0"]


def test_a_bound_of_just_the_margin_is_no_harm() -> None:
    at = replace(SETTINGS, margin=-float(lower_of_counts(6, 14, 400, 0.05)))
    columns = together(cases(751, 2, 192, 55, "drifted"), cases(6, 14, 300, 80, "clean"))
    assert ask(columns, at).accept
    assert not ask(columns, replace(at, margin=at.margin - 1e-9)).accept


def test_a_chance_of_just_alpha_is_not_small_enough() -> None:
    beside = replace(SETTINGS, alpha=float(mcnemar(30, 20)))
    assert not ask(cases(30, 20, 400, 60), beside).accept
    assert ask(cases(30, 20, 400, 60), replace(beside, alpha=beside.alpha + 1e-9)).accept


def test_a_slice_that_lost_just_the_margin_may_have_lost_too_much() -> None:
    columns = together(cases(751, 2, 192, 55, "drifted"), cases(0, 20, 300, 80, "clean"))
    [clean, _] = ask(columns).slices
    told = ask(columns, replace(SETTINGS, margin=-clean.change)).explanation
    assert told.startswith("slice clean may have lost too much")
