"""Workers that die: their work is done again by others, and the result is that of an undisturbed search."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.cluster.pool import ClusterError
from mergekit_3h.search import Point, Problem, solve_problem
from mergekit_3h.search.ray_runner import RayRunner

CANDIDATES = [(0.1 * i, 0.3, 0.5 - 0.1 * i) for i in range(5)]
Opening = Callable[..., "partial[Problem]"]


def ready(runner: RayRunner) -> list[int]:
    """The process ids of both workers, once they are there. Models are measured until they are."""
    for _ in range(200):
        list(runner.evaluate_models(["base", "expert0", "expert1"]))
        if len(runner.workers) == 2:
            return [report.pid for report in runner.workers]
    raise AssertionError("the second worker was never ready")


def freeze_then_kill(pid: int) -> threading.Timer:
    """Frozen, a worker takes a job and does not finish it; so whenever the kill comes, it is in the middle of one."""
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    timer.start()
    return timer


def test_the_job_of_a_killed_worker_is_done_again(
    cluster: str, opening: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    opened = opening()
    expected = [replace(each, seconds=0.0) for each in opened().local_runner().evaluate(CANDIDATES, gradient=True)]
    scale = ClusterOptions(address=cluster, workers=2, cpus_per_worker=0.5)
    with RayRunner(opened(), opened, scale) as runner, caplog.at_level(logging.WARNING):
        for share in ("candidates", "records"):
            runner._scale = scale.model_copy(update={"share": share})
            victim = ready(runner)[0]
            timer = freeze_then_kill(victim)
            caplog.clear()
            results = [replace(each, seconds=0.0) for each in runner.evaluate(CANDIDATES, gradient=True)]
            timer.join()
            assert results == expected
            assert "takes its place and job" in caplog.text
        assert victim not in ready(runner)


def test_a_search_that_loses_workers_finds_the_same(
    cluster: str, opening: Opening, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = opening(solver="cmaes", max_evaluations=16, seed=1)
    undisturbed = solve_problem(opened())
    timers = []

    def kill_one(point: Point) -> None:
        if point.index == 4:  # in the middle of the first generation of seven
            timers.append(freeze_then_kill(runner.workers[0].pid))

    scale = ClusterOptions(address=cluster, workers=2, cpus_per_worker=0.5)
    trace = tmp_path / "trace.jsonl"
    with RayRunner(opened(), opened, scale) as runner, caplog.at_level(logging.WARNING):
        disturbed = solve_problem(opened(), runner=runner, trace_path=trace, on_point=kill_one)
    assert len(timers) == 1
    assert caplog.text.count("another one takes its place and job") == 1
    assert disturbed.coefficients == undisturbed.coefficients
    assert [p.measured.losses for p in disturbed.points] == [p.measured.losses for p in undisturbed.points]
    # and the trace of the one is that of the other: a local search goes on from it without measuring anything
    resumed = solve_problem(opened(), trace_path=trace, resume=True)
    assert [p.measured for p in resumed.points] == [p.measured for p in disturbed.points]


def test_a_job_that_ends_every_worker_ends_the_search(cluster: str, opening: Opening) -> None:
    opened = opening()
    scale = ClusterOptions(address=cluster, workers=1, cpus_per_worker=0.5, attempts=1)
    with RayRunner(opened(), opened, scale) as runner:
        list(runner.evaluate_models(["base"]))
        timer = freeze_then_kill(runner.workers[0].pid)
        with pytest.raises(ClusterError, match=r"1 workers? died of the same piece of work.*memory.*resume"):
            list(runner.evaluate(CANDIDATES, gradient=False))
        timer.join()
