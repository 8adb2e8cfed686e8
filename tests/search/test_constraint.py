"""Constrained mode, scores and the Pareto front."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from mergekit_3h.search import SearchOptions, solve
from mergekit_3h.search.scoring import Scoring, pareto_front, scoring_of


def test_the_score_is_the_weighted_sum() -> None:
    scoring = scoring_of(SearchOptions(safety_weight=2.0, expert_weight=0.5), {"base": 1.0})
    assert scoring.score({"safety": 1.5, "domain": 4.0, "overrefusal": 9.0}) == pytest.approx(5.0)


def test_the_limit_is_a_share_of_the_best_models_quality() -> None:
    scoring = scoring_of(SearchOptions(min_safety=0.9), {"base": 2.0, "aligned": 0.5, "bad": 3.0})
    assert math.exp(-scoring.safety_limit) == pytest.approx(0.9 * math.exp(-0.5))
    assert scoring.weights["safety"] == 0.0
    assert scoring.score({"safety": 0.5, "domain": 2.0}) == pytest.approx(0.6)
    assert scoring.score({"safety": 1.0, "domain": 0.0}) > 1.0


def constrained_optimum(runner, limit: float) -> float:
    """Brute force over the box: the least domain loss among points within the limit."""
    steps = torch.arange(201, dtype=torch.float64) / 100
    points = torch.cartesian_prod(steps, steps)
    losses = {}
    for name, (matrix, centre) in runner.parts.items():
        away = points - centre
        losses[name] = 0.2 + (away @ matrix * away).sum(dim=1) / 2
    return float(losses["domain"][losses["safety"] <= limit].min())


@pytest.mark.parametrize(("solver", "optimizer"), [("gradient", "bfgs"), ("gradient", "adam"), ("cmaes", "bfgs")])
def test_the_best_domain_quality_within_the_limit(quadratic, solver: str, optimizer: str) -> None:
    runner = quadratic(2)
    options = SearchOptions(solver=solver, optimizer=optimizer, min_safety=0.97, max_evaluations=150, convergence=1e-6)
    solution = solve(runner, runner.layout, options)
    limit = solution.scoring.safety_limit
    best = constrained_optimum(runner, limit)
    unconstrained = constrained_optimum(runner, math.inf)
    found = solution.best.measured.losses
    assert found["safety"] <= limit
    assert best > unconstrained + 0.01, "the constraint must bind, or this shows nothing"
    # The brute-force grid has steps of 0.01 and the solver keeps a margin of 0.001 nats.
    assert found["domain"] == pytest.approx(best, abs=0.01)


def test_a_limit_that_is_kept_from_the_start_does_not_end_the_descent(quadratic) -> None:
    """Many coefficients need more steps than one round of the multiplier has."""
    runner = quadratic(3, groups=11)
    free = solve(runner, runner.layout, SearchOptions(safety_weight=0.0, convergence=1e-6))
    loose = solve(runner, runner.layout, SearchOptions(min_safety=0.01, convergence=1e-6))
    assert max(point.violation for point in loose.points) < 0, "the limit must not bind, or this shows nothing"
    found, best = (solution.best.measured.losses["domain"] for solution in (loose, free))
    assert found == pytest.approx(best, rel=1e-3)


def test_a_limit_that_cannot_be_kept_is_said(quadratic, caplog: pytest.LogCaptureFixture) -> None:
    runner = quadratic(2)
    options = SearchOptions(min_safety=1.0, max_coefficient=0.1, start=0.05, max_evaluations=20)
    with caplog.at_level(logging.WARNING):
        solution = solve(runner, runner.layout, options)
    assert not solution.best.satisfies
    assert solution.to_dict()["satisfied"] is False
    assert "no candidate keeps min_safety 1.0" in caplog.text


def test_a_point_within_the_limit_beats_a_better_score_beyond_it(quadratic) -> None:
    runner = quadratic(3)
    solution = solve(runner, runner.layout, SearchOptions(solver="grid", min_safety=0.9, max_evaluations=64))
    kept = [point for point in solution.points if point.violation <= 0]
    assert kept
    assert solution.best in kept
    assert solution.best.score == min(point.score for point in kept)


def test_pareto_front() -> None:
    points = [(1, 5), (2, 2), (5, 1), (3, 3), (2, 2), (1, 6)]
    losses = [{"safety": float(a), "domain": float(b)} for a, b in points]
    assert pareto_front(losses) == [0, 1, 2]
    assert pareto_front([{}, {"safety": 1.0}, {}]) == [1]


def test_a_report_compares_with_every_model(quadratic) -> None:
    import json

    runner = quadratic(3)
    report = json.loads(json.dumps(solve(runner, runner.layout, SearchOptions()).to_dict(), allow_nan=False))
    assert set(report["models"]) == {"base", "expert0", "expert1", "expert2"}
    for name in ("safety", "domain"):
        relative = [losses[name]["relative"] for losses in report["models"].values()]
        assert min(relative) == 1.0
        best = min(losses[name]["loss"] for losses in report["models"].values())
        assert report["losses"][name]["relative"] == pytest.approx(report["losses"][name]["loss"] / best)
    assert report["uniform"]["safety"]["loss"] > 0
    front = [report["pareto"], [point.index for point in solve(runner, runner.layout, SearchOptions()).pareto()]]
    assert front[0] == front[1]
    assert front[0]


def test_scoring_without_a_limit_has_no_violation() -> None:
    assert Scoring({"safety": 1.0}).violation({"safety": 100.0}) == -math.inf
