"""Intervals hold what they should as often as they should, and paired differences see what single scores hide."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product
from math import comb

import pytest

from mergekit_3h.evaluation.intervals import (
    CONFIDENCE,
    EXACT_UP_TO,
    FEWEST_ITEMS,
    interval_of,
    mcnemar,
    paired_difference,
    resampled_means,
    resampled_share,
    sign_flips,
)


def test_resampling_follows_from_the_seed_and_the_name() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    first = resampled_means(values, 500, 3, "a")
    assert first.tolist() == resampled_means(values, 500, 3, "a").tolist()
    assert first.tolist() != resampled_means(values, 500, 4, "a").tolist()
    assert first.tolist() != resampled_means(values, 500, 3, "b").tolist()


def test_an_interval_holds_the_true_share_about_95_times_in_100() -> None:
    draws, share, runs = random.Random(5), 0.7, 200
    held = 0
    for run in range(runs):
        values = [float(draws.random() < share) for _ in range(100)]
        found = interval_of(resampled_means(values, 400, run, "x"))
        held += found.low <= share <= found.high
    # Of 200 runs at 95 %: the standard deviation is 3, so five of them are 15.
    assert abs(held - 0.95 * runs) <= 15


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_items_that_all_come_out_alike_are_no_proof(outcome: float) -> None:
    found = interval_of(resampled_share([outcome] * 30, 4000, 0, "x"))
    far = found.high if outcome == 0.0 else 1.0 - found.low
    # The exact 97.5 % bound under a uniform prior: 1 - 0.025 ** (1 / 31); sampling adds a few per cent to it.
    assert far == pytest.approx(1.0 - 0.025 ** (1 / 31), rel=0.1)


def test_many_items_do_not_change_what_is_computed() -> None:
    values = [float(number % 7) for number in range(30_000)]
    means = resampled_means(values, 300, 0, "many")  # several blocks
    assert len(means) == 300
    assert means.mean().item() == pytest.approx(sum(values) / len(values), abs=5 * 2.0 / 30_000**0.5 / 300**0.5)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 5), (9, 1), (1, 9), (20, 3), (0, 6)])
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int) -> None:
    differ = better + worse
    chances = [Fraction(comb(differ, k), 2**differ) for k in range(differ + 1)]
    unlikely = sum(chance for chance in chances if chance <= chances[better])
    assert mcnemar(better, worse) == pytest.approx(float(unlikely), rel=1e-12)


def test_mcnemar_goes_on_where_powers_of_two_end() -> None:
    assert mcnemar(499, 500) == pytest.approx(mcnemar(500, 501), rel=0.05)
    assert mcnemar(3000, 1000) < 1e-100


def test_a_paired_difference_sees_what_single_intervals_hide() -> None:
    draws = random.Random(0)
    difficulty = [draws.random() for _ in range(300)]
    worse = {str(i): float(d < 0.5) for i, d in enumerate(difficulty)}
    better = {str(i): float(d < 0.56) for i, d in enumerate(difficulty)}
    alone = [interval_of(resampled_means(list(one.values()), 1000, 0, "x")) for one in (worse, better)]
    assert alone[0].high > alone[1].low, "the single intervals overlap"
    found = paired_difference(better, worse, 100.0, 1000, 0, "x")
    assert found is not None and found.is_clear and found.p_value is not None and found.p_value < 0.001
    turned = paired_difference(worse, better, 100.0, 1000, 0, "x")
    assert turned is not None and turned.difference == -found.difference and turned.p_value == found.p_value


def test_two_items_prove_nothing() -> None:
    found = paired_difference({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}, 100.0, 500, 0, "x")
    assert found is not None and found.difference == 100.0 and not found.is_clear


def test_the_fewest_items_are_those_that_the_exact_test_needs() -> None:
    assert mcnemar(FEWEST_ITEMS, 0) < 1.0 - CONFIDENCE <= mcnemar(FEWEST_ITEMS - 1, 0)
    for count in (FEWEST_ITEMS - 1, FEWEST_ITEMS):
        better = {str(i): 1.5 for i in range(count)}
        found = paired_difference(better, dict.fromkeys(better, 1.0), 1.0, 500, 0, "x")
        assert found is not None and found.p_value == 2.0 / 2**count and found.interval.low == 0.5
        assert found.is_clear == (count == FEWEST_ITEMS), "an interval of no width alone proves nothing"


def test_turning_signs_is_the_exact_test_of_a_sum() -> None:
    draws = random.Random(2)
    differences = [Fraction(draws.randint(-4, 6), 4) for _ in range(9)]
    reached = abs(sum(differences))
    ways = [
        sum((sign * size for sign, size in zip(signs, differences, strict=True)), Fraction(0))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = sum(abs(way) >= reached for way in ways) / len(ways)
    assert sign_flips([float(one) for one in differences]) == pytest.approx(expected, rel=1e-12)
    assert sign_flips([0.1, 0.2, -0.3]) == 1.0, "what rounding leaves of 0.1 + 0.2 - 0.3 is nothing"


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (4, 0), (5, 1), (6, 0), (8, 8), (13, 3)])
def test_of_differences_of_one_size_it_is_mcnemars(better: int, worse: int) -> None:
    differences = [0.7] * better + [-0.7] * worse + [0.0] * 5
    assert sign_flips(differences) == pytest.approx(mcnemar(better, worse), rel=1e-12)


def test_where_it_ends_the_bootstrap_says_the_same() -> None:
    assert sign_flips([1.0] * (EXACT_UP_TO + 1)) is None
    for better in range(EXACT_UP_TO + 2):
        differences = [1.0] * better + [-1.0] * (EXACT_UP_TO + 1 - better) + [0.0] * 100
        found = interval_of(resampled_means(differences, 20_000, 0, "x"))
        is_exact = mcnemar(better, EXACT_UP_TO + 1 - better) < 1.0 - CONFIDENCE
        assert (found.low > 0.0 or found.high < 0.0) == is_exact, better


def test_models_that_are_the_same_do_not_differ() -> None:
    values = {str(i): float(i % 3 == 0) for i in range(30)}
    found = paired_difference(values, values, 100.0, 500, 0, "x")
    assert found is not None and (found.difference, found.p_value) == (0.0, 1.0)
    assert (found.interval.low, found.interval.high) == (0.0, 0.0) and not found.is_clear


def test_only_shared_items_are_compared() -> None:
    found = paired_difference({"a": 1.0, "b": 0.0, "c": 5.0}, {"b": 0.5, "c": 4.5, "d": 9.0}, 1.0, 500, 0, "x")
    assert found is not None and found.items == 2 and found.difference == 0.0 and found.p_value == 1.0
    assert paired_difference({"a": 1.0}, {"b": 1.0}, 1.0, 500, 0, "x") is None
