"""The gate's verdict: what it must always hold, and how often it errs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from train_model.attempt import GateSettings
from train_model.verdict import REPLICATES, Slice, Verdict, _p, binomial_tail, judge, lower_bound

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


def test_a_clear_winner_is_accepted_in_words_with_its_numbers() -> None:
    verdict = judge(*cases(751, 2, 192, 55), SETTINGS, 0)
    assert verdict.accept
    assert verdict.explanation.startswith("challenger 94.3 % vs champion 19.4 % on 1,000 rows (p = ")


def test_an_equal_or_worse_challenger_is_rejected() -> None:
    equal, worse = judge(*cases(20, 20, 400, 60), SETTINGS, 0), judge(*cases(10, 60, 400, 30), SETTINGS, 0)
    assert (equal.accept, worse.accept) == (False, False)
    assert "not clearly better than the champion" in equal.explanation
    assert "worse than the champion" in worse.explanation


def test_too_few_rows_are_not_enough_data_however_good_it_looks() -> None:
    verdict = judge(*cases(150, 0, 49, 0), SETTINGS, 0)
    assert not verdict.accept
    assert "not enough data (199 rows, at least 200)" in verdict.explanation
    assert judge(*cases(150, 0, 50, 0), SETTINGS, 0).accept


def test_forgetting_is_caught_by_its_slice_though_the_whole_is_better() -> None:
    parts = cases(300, 0, 200, 0, "drifted"), cases(0, 40, 260, 0, "reference")
    verdict = judge(*together(*parts), SETTINGS, 0)
    assert not verdict.accept
    assert "slice reference lost too much (\u221213.3 points" in verdict.explanation


def test_a_slice_too_small_to_judge_is_reported_not_judged() -> None:
    parts = cases(300, 0, 200, 0, "drifted"), cases(0, 30, 69, 0, "tiny")
    verdict = judge(*together(*parts), SETTINGS, 0)
    assert verdict.accept
    assert "too few rows to judge" in verdict.explanation


def test_without_slices_the_whole_is_the_slice() -> None:
    assert [part.name for part in judge(*cases(60, 1, 200, 0), SETTINGS, 0).slices] == []


def test_without_a_champion_guessing_is_the_bar() -> None:
    labels = np.repeat(["a", "b"], [600, 400])
    lazy, good = np.full(1000, "a"), np.where(np.arange(1000) % 10 == 0, "x", labels)
    none = np.full(1000, "")
    assert not judge(labels, lazy, None, none, SETTINGS, 0).accept
    accepted = judge(labels, good, None, none, SETTINGS, 0)
    assert accepted.accept
    assert "no champion yet; guessing gives 60.0 %" in accepted.explanation
    assert not judge(labels, good, None, none, GateSettings(min_accuracy=0.95), 0).accept
    assert not judge(labels[:150], good[:150], None, none[:150], SETTINGS, 0).accept


def test_no_rows_at_all_are_rejected() -> None:
    empty = np.array([], dtype="<U1")
    assert not judge(empty, empty, empty, empty, SETTINGS, 0).accept
    assert not judge(empty, empty, None, empty, SETTINGS, 0).accept


counts = st.integers(0, 400)


@given(won=counts, lost=counts, both=counts, neither=counts, seed=st.integers(0, 9))
def test_the_verdict_is_the_same_each_time_and_in_any_order(
    won: int, lost: int, both: int, neither: int, seed: int
) -> None:
    columns = cases(won, lost, both, neither, "s")
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    labels, challenger, champion, slices = (column[order] for column in columns)
    first, second = judge(*columns, SETTINGS, 1), judge(labels, challenger, champion, slices, SETTINGS, 1)
    assert (first.accept, first.explanation) == (second.accept, second.explanation)


@given(won=counts, lost=counts, both=counts, neither=counts, more=st.integers(1, 100))
def test_more_right_answers_never_turn_an_accept_into_a_reject(
    won: int, lost: int, both: int, neither: int, more: int
) -> None:
    moved = min(more, neither)
    before = judge(*cases(won, lost, both, neither), SETTINGS, 0)
    after = judge(*cases(won + moved, lost, both, neither - moved), SETTINGS, 0)
    assert after.accept or not before.accept


@given(won=counts, lost=counts, both=counts, neither=counts)
def test_what_is_accepted_is_better_and_has_enough_rows(won: int, lost: int, both: int, neither: int) -> None:
    verdict = judge(*cases(won, lost, both, neither), SETTINGS, 0)
    if verdict.accept:
        assert won > lost
        assert won + lost + both + neither >= 200
        assert verdict.p is not None
        assert verdict.p < 0.05


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 0.99))
def test_the_tail_is_the_exact_binomial_one(least: int, trials: int, chance: float) -> None:
    assert binomial_tail(least, trials, chance) == pytest.approx(float(binom.sf(least - 1, trials, chance)), rel=1e-9)


def test_mcnemar_is_the_textbook_test() -> None:
    for won, lost in ((10, 3), (60, 40), (0, 0), (5, 9)):
        expected = binomtest(won, won + lost, 0.5, alternative="greater").pvalue if won + lost else 1.0
        verdict = judge(*cases(won, lost, 300, 10), SETTINGS, 0)
        assert verdict.p == pytest.approx(expected)


def test_an_equal_challenger_is_promoted_by_luck_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(1000, [0.1, 0.1, 0.7, 0.1], size=2000)
    accepted = sum(judge(*cases(*draw), SETTINGS, 0).accept for draw in draws)
    assert accepted / 2000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("disagreement", [0.1, 0.2, 0.4])
def test_a_slice_of_300_that_lost_ten_points_passes_in_less_than_one_of_a_hundred(disagreement: float) -> None:
    rng = np.random.default_rng(0)
    won, lost = (disagreement - 0.1) / 2, (disagreement + 0.1) / 2
    draws = rng.multinomial(300, [won, lost, 1 - disagreement], size=1000)
    passed = sum(lower_bound(int(w), int(loss), 300, 0) >= -SETTINGS.margin for w, loss, _ in draws)
    assert passed <= 10


def test_an_unharmed_reference_slice_of_500_usually_passes() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(500, [0.03, 0.03, 0.94], size=500)
    passed = sum(lower_bound(int(w), int(loss), 500, 0) >= -SETTINGS.margin for w, loss, _ in draws)
    assert passed >= 490


def alone(right: int, rows: int, min_accuracy: float = 0.0) -> Verdict:
    """Without a champion, on two classes of the same size."""
    labels = np.where(np.arange(rows) < rows / 2, "a", "b")
    challenger = np.where(np.arange(rows) < right, labels, "z")
    return judge(
        labels, challenger, None, np.full(rows, "", dtype="<U8"), replace(SETTINGS, min_accuracy=min_accuracy), 0
    )


@pytest.mark.parametrize(
    ("right", "rows", "floor", "accepted", "words"),
    [
        (200, 200, 0.0, True, "challenger 100.0 % on 200 rows, no champion yet; guessing gives 50.0 %"),
        (199, 199, 0.0, False, "not enough data (199 rows, at least 200): challenger 100.0 % on 199 rows, "),
        (100, 200, 0.0, False, "not clearly better than guessing: challenger 50.0 % on 200 rows, "),
        (150, 200, 0.75, True, "challenger 75.0 % on 200 rows, "),
        (150, 200, 0.76, False, "below the floor of 76.0 %: challenger 75.0 % on 200 rows, "),
        (100, 200, 0.76, False, "not clearly better than guessing; below the floor of 76.0 %: challenger 50.0 % "),
    ],
)
def test_without_a_champion_a_challenger_must_beat_guessing_and_the_floor(
    right: int, rows: int, floor: float, accepted: bool, words: str
) -> None:
    verdict = alone(right, rows, min_accuracy=floor)
    assert verdict.explanation.startswith(words)
    assert verdict == Verdict(accepted, verdict.explanation, rows, right / rows, None, None, ())


def test_no_rows_at_all_are_not_enough() -> None:
    assert alone(0, 0).explanation == (
        "not enough data (0 rows, at least 200); not clearly better than guessing: "
        "challenger 0.0 % on 0 rows, no champion yet; guessing gives 100.0 %"
    )


def test_the_floor_is_reached_by_standing_on_it() -> None:
    at = judge(*cases(300, 0, 60, 40), replace(SETTINGS, min_accuracy=0.9), 0)
    assert at.accept, at.explanation
    below = judge(*cases(300, 0, 60, 40), replace(SETTINGS, min_accuracy=0.91), 0)
    assert below.explanation.startswith("below the floor of 91.0 %: challenger 90.0 % vs champion 15.0 % on 400 rows")


def test_a_slice_that_lost_is_told_apart_from_one_that_may_have() -> None:
    drifted = cases(751, 2, 192, 55, "drifted")
    lost = judge(*together(drifted, cases(0, 30, 290, 80, "clean"), cases(5, 5, 30, 10, "tiny")), SETTINGS, 0)
    assert not lost.accept
    assert lost.explanation.startswith("slice clean lost too much (\u22127.5 points on 400 rows, perhaps \u2212")
    assert lost.explanation.endswith("; slice tiny +0.0 points on 50 rows (too few rows to judge)")
    assert "slice drifted +74.9 points on 1,000 rows;" in lost.explanation
    perhaps = judge(*together(drifted, cases(2, 18, 300, 80, "clean")), SETTINGS, 0)
    assert not perhaps.accept
    assert perhaps.explanation.startswith("slice clean may have lost too much (\u22124.0 points on 400 rows, perhaps ")
    kept = judge(*together(drifted, cases(6, 14, 300, 80, "clean")), SETTINGS, 0)
    assert kept.accept
    assert kept.explanation.endswith(
        "; slice clean \u22122.0 points on 400 rows; slice drifted +74.9 points on 1,000 rows"
        " (none may lose more than 5)"
    )


@pytest.mark.parametrize(("won", "lost", "words"), [(20, 20, "not clearly better than"), (40, 44, "worse than")])
def test_the_reason_comes_first(won: int, lost: int, words: str) -> None:
    assert judge(*cases(won, lost, 400, 60), SETTINGS, 0).explanation.startswith(words + " the champion: challenger")


def test_a_verdict_carries_its_numbers() -> None:
    columns = together(cases(100, 10, 60, 30, "drifted"), cases(6, 4, 70, 20, "clean"), cases(5, 5, 30, 59, "tiny"))
    accepted = judge(*columns, replace(SETTINGS, margin=0.2), 3)
    drifted = Slice("drifted", 200, 70 / 200, 160 / 200, lower_bound(100, 10, 200, 3))
    clean = Slice("clean", 100, 74 / 100, 76 / 100, lower_bound(6, 4, 100, 3))
    tiny = Slice("tiny", 99, 35 / 99, 35 / 99, None)
    p = binomial_tail(111, 130, 0.5)
    words = accepted.explanation
    assert accepted == Verdict(True, words, 399, 271 / 399, 179 / 399, p, (clean, drifted, tiny))
    assert words == (
        "challenger 67.9 % vs champion 44.9 % on 399 rows (p = 3e-17); slice clean +2.0 points on 100 rows; "
        "slice drifted +45.0 points on 200 rows; slice tiny +0.0 points on 99 rows (too few rows to judge) "
        "(none may lose more than 20)"
    )
    refused = judge(*columns, replace(SETTINGS, margin=0.2, min_accuracy=0.7), 3)
    assert refused == Verdict(False, refused.explanation, 399, 271 / 399, 179 / 399, p, (clean, drifted, tiny))
    plain = judge(*cases(100, 10, 60, 30), SETTINGS, 3)
    assert plain.explanation == "challenger 80.0 % vs champion 35.0 % on 200 rows (p = 4e-20)"


def test_two_reasons_are_told_one_after_the_other() -> None:
    verdict = judge(*cases(10, 60, 400, 60), SETTINGS, 5)
    lower = f"{100 * lower_bound(10, 60, 530, 5):+.1f}".replace("-", "\u2212")
    assert verdict.explanation == (
        "worse than the champion; slice all rows lost too much "
        f"(\u22129.4 points on 530 rows, perhaps {lower} points): "
        "challenger 77.4 % vs champion 86.8 % on 530 rows (p = 1.00)"
    )


def test_no_rows_beside_a_champion_are_not_enough() -> None:
    nothing = judge(*cases(0, 0, 0, 0), SETTINGS, 0)
    assert nothing.explanation == (
        "not enough data (0 rows, at least 200): challenger 0.0 % vs champion 0.0 % on 0 rows (p = 1.00)"
    )


@pytest.mark.parametrize(
    ("least", "trials", "chance", "expected"),
    [
        (0, 10, 0.5, 1.0),
        (-1, 10, 0.5, 1.0),
        (1, 10, 0.5, 1 - 0.5**10),
        (1, 10, 0.0, 0.0),
        (0, 10, 0.0, 1.0),
        (3, 10, 1.0, 1.0),
        (3, 2, 0.5, 0.0),
        (0, 0, 0.5, 1.0),
        (10, 10, 0.5, 0.5**10),
    ],
)
def test_the_tail_at_its_ends(least: int, trials: int, chance: float, expected: float) -> None:
    assert binomial_tail(least, trials, chance) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_bound_is_of_the_smoothed_counts() -> None:
    # One row more in each changing cell, over n + 2: the mean of the draws lies there, not at the raw shares.
    assert lower_bound(0, 0, 100, 0) == pytest.approx(-0.03, abs=0.011)
    draws = np.random.default_rng(7).multinomial(300, [31 / 302, 11 / 302, 260 / 302], size=REPLICATES)
    assert lower_bound(30, 10, 300, 7) == float(np.quantile((draws[:, 0] - draws[:, 1]) / 300, 0.05))


def test_a_chance_of_a_hundredth_is_spelled_out_and_a_smaller_one_as_a_power() -> None:
    assert (_p(0.01), _p(0.0099), _p(1.0)) == ("0.01", "1e-02", "1.00")


def test_a_bound_of_just_the_margin_is_harm_neither_to_a_slice_nor_to_the_whole() -> None:
    at = replace(SETTINGS, margin=-lower_bound(6, 14, 400, 0))
    columns = together(cases(751, 2, 192, 55, "drifted"), cases(6, 14, 300, 80, "clean"))
    assert judge(*columns, at, 0).accept


def test_a_chance_of_just_alpha_is_not_small_enough() -> None:
    beside = replace(SETTINGS, alpha=binomial_tail(30, 50, 0.5), margin=1.0)
    assert not judge(*cases(30, 20, 400, 60), beside, 0).accept
    assert judge(*cases(30, 20, 400, 60), replace(beside, alpha=beside.alpha + 1e-9), 0).accept
    labels, right, _, slices = cases(130, 0, 0, 70)
    labels = np.where(np.arange(200) % 2 == 0, labels, "c")
    right = np.where(right == "a", labels, right)
    by_luck = replace(SETTINGS, alpha=binomial_tail(130, 200, 0.5))
    assert not judge(labels, right, None, slices, by_luck, 0).accept
    assert judge(labels, right, None, slices, replace(by_luck, alpha=by_luck.alpha * 1.001), 0).accept


def test_a_slice_that_lost_just_the_margin_may_have_lost_too_much() -> None:
    columns = together(cases(751, 2, 192, 55, "drifted"), cases(0, 20, 300, 80, "clean"))
    [clean, _] = judge(*columns, SETTINGS, 0).slices
    told = judge(*columns, replace(SETTINGS, margin=-clean.change), 0).explanation
    assert told.startswith("slice clean may have lost too much")


def test_the_smoothing_adds_two_rows() -> None:
    for won, lost, rows in ((2, 1, 5), (0, 0, 4), (1, 4, 7)):
        cells = [(won + 1) / (rows + 2), (lost + 1) / (rows + 2), (rows - won - lost) / (rows + 2)]
        draws = np.random.default_rng(11).multinomial(rows, cells, size=REPLICATES)
        assert lower_bound(won, lost, rows, 11) == float(np.quantile((draws[:, 0] - draws[:, 1]) / rows, 0.05))
