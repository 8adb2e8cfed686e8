"""LM-Cocktail's own formula, and the grid."""

from __future__ import annotations

import math

import pytest

from mergekit_3h.search import SearchOptions, solve


@pytest.mark.parametrize("include_base", [False, True])
def test_softmax_over_the_models_losses(quadratic, include_base: bool) -> None:
    runner = quadratic(3)
    options = SearchOptions(solver="cocktail", temperature=0.5, expert_weight=1.0, include_base=include_base)
    solution = solve(runner, runner.layout, options)
    labels = (["base"] if include_base else []) + list(runner.layout.experts)
    # Both sets weigh 10 records, so the loss over their union is the mean of the two.
    union = {label: sum(solution.models[label].losses.values()) / 2 for label in labels}
    powers = {label: math.exp(-loss / 0.5) for label, loss in union.items()}
    expected = [powers[label] / sum(powers.values()) for label in runner.layout.experts]
    assert list(solution.points[0].coefficients) == pytest.approx(expected)
    assert (sum(expected) < 0.999) == include_base


def test_weights_of_the_sets_count(quadratic) -> None:
    runner = quadratic(3)
    found = []
    for weight in (0.0, 1.0):
        options = SearchOptions(solver="cocktail", temperature=0.5, expert_weight=weight)
        found.append(solve(runner, runner.layout, options).points[0].coefficients)
    assert found[0] != found[1]


def test_every_group_of_layers_takes_the_same(quadratic) -> None:
    runner = quadratic(2, 3)
    solution = solve(runner, runner.layout, SearchOptions(solver="cocktail", layer_granularity=1))
    first = solution.points[0].coefficients
    assert first[:2] == first[2:4] == first[4:]


def test_grid_is_the_full_product_that_the_budget_allows(quadratic) -> None:
    runner = quadratic(2)
    solve(runner, runner.layout, SearchOptions(solver="grid", max_evaluations=40))
    values = sorted({candidate[0] for candidate in runner.evaluated[1:]})
    assert values == pytest.approx([i * 0.4 for i in range(6)])
    assert len(set(runner.evaluated)) == 37


def test_grid_of_many_coefficients_shares_one_value(quadratic) -> None:
    runner = quadratic(4, 4)
    solve(runner, runner.layout, SearchOptions(solver="grid", max_evaluations=12, layer_granularity=1))
    assert all(len(set(candidate)) == 1 for candidate in runner.evaluated)
    assert len(runner.evaluated) == 12
