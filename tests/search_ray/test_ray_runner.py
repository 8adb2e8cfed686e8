"""The Ray runner gives the local runner's results to the last bit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.search import Measurement, Problem, Solution, solve_problem
from mergekit_3h.search.ray_runner import RayRunner

CANDIDATES = [(0.1 * i, 0.3, 0.5 - 0.1 * i) for i in range(5)]
Opening = Callable[..., "partial[Problem]"]


def without_seconds(measured: Sequence[Measurement]) -> list[Measurement]:
    return [replace(each, seconds=0.0) for each in measured]


def found(solution: Solution) -> tuple:
    points = [(p.coefficients, p.score, p.measured.losses, p.measured.gradients) for p in solution.points]
    return points, solution.best.index, solution.stopped


@pytest.fixture(scope="session")
def two_workers(cluster: str, opening: Opening) -> Iterator[RayRunner]:
    """Shared by the tests that leave it as it was."""
    opened = opening("tsvm")
    with RayRunner(opened(), opened, ClusterOptions(address=cluster, workers=2, cpus_per_worker=0.5)) as runner:
        yield runner


def sharing(runner: RayRunner, share: str) -> RayRunner:
    runner._scale = runner._scale.model_copy(update={"share": share})
    return runner


@pytest.mark.parametrize("share", ["auto", "candidates", "records"])
@pytest.mark.parametrize("gradient", [False, True])
def test_measurements_are_the_local_ones(two_workers: RayRunner, opening: Opening, share: str, gradient: bool) -> None:
    local = opening("tsvm")().local_runner()
    runner = sharing(two_workers, share)
    expected = list(local.evaluate(CANDIDATES, gradient=gradient))
    assert len({each.losses["safety"] for each in expected}) == len(CANDIDATES)
    assert without_seconds(list(runner.evaluate(CANDIDATES, gradient=gradient))) == without_seconds(expected)
    # fewer at once than there are workers
    (single,) = runner.evaluate(CANDIDATES[:1], gradient=gradient)
    assert without_seconds([single]) == without_seconds(expected[:1])
    labels = ["expert1", "base", "expert0"]
    models = without_seconds(list(runner.evaluate_models(labels)))
    assert models == without_seconds(list(local.evaluate_models(labels)))
    assert runner.set_weights == local.set_weights


def test_two_processes_take_part(two_workers: RayRunner) -> None:
    list(two_workers.evaluate(CANDIDATES, gradient=False))
    pids = {report.pid for report in two_workers.workers}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize("share", ["candidates", "records"])
def test_a_candidate_without_a_loss_is_a_failure_with_its_reason(
    two_workers: RayRunner, opening: Opening, share: str
) -> None:
    spoilt = [(math.nan, 0.3, 0.3), CANDIDATES[0]]
    expected = without_seconds(list(opening("tsvm")().local_runner().evaluate(spoilt, gradient=False)))
    assert expected[0].failure
    assert without_seconds(list(sharing(two_workers, share).evaluate(spoilt, gradient=False))) == expected


def test_results_of_an_abandoned_call_do_not_appear_in_the_next(two_workers: RayRunner, opening: Opening) -> None:
    runner = sharing(two_workers, "candidates")
    abandoned = iter(runner.evaluate(CANDIDATES, gradient=True))
    next(abandoned)
    abandoned.close()
    expected = without_seconds(list(opening("tsvm")().local_runner().evaluate(CANDIDATES, gradient=False)))
    assert without_seconds(list(runner.evaluate(CANDIDATES, gradient=False))) == expected


def test_a_search_finds_the_same(cluster: str, opening: Opening) -> None:
    """By the gradient, with coefficients by layer; test_lost_workers.py has one by CMA-ES."""
    opened = opening(solver="gradient", max_evaluations=12, seed=3, layer_granularity=1)
    local = solve_problem(opened())
    with RayRunner(opened(), opened, ClusterOptions(address=cluster, workers=2, cpus_per_worker=0.5)) as runner:
        assert found(solve_problem(opened(), runner=runner)) == found(local)
