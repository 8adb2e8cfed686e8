"""A checked problem searched where its options say: in this process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from mergekit_3h.errors import OptionError
from mergekit_3h.safety.options import SafetyMergeOptions
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import OnDemandRunner, Runner
from mergekit_3h.search.search import Point
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.solving import solve_problem


def search(
    problem: Problem,
    opened: Callable[[], Problem],
    options: SafetyMergeOptions,
    *,
    opened_by_worker: Callable[[], Problem] | None = None,
    trace_path: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, object] | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> Solution:
    """Solve a problem whose model may have no weights yet; ``opened`` gives it some, if anything is to be computed.

    ``opened_by_worker`` does so in the processes of a Ray cluster, to which it is sent.
    """

    def solved() -> Solution:
        with _runner(problem, opened, opened_by_worker, options) as runner:
            return solve_problem(
                problem, runner=runner, trace_path=trace_path, resume=resume, identity=identity, on_point=on_point
            )

    try:
        return solved()
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the merge that follows gets the room of the searched model


@contextmanager
def _runner(
    problem: Problem,
    opened: Callable[[], Problem],
    opened_by_worker: Callable[[], Problem] | None,
    options: SafetyMergeOptions,
) -> Generator[Runner]:
    if options.run.runner == "local":
        yield OnDemandRunner(lambda: opened().local_runner(), problem.set_weights)
        return
    if opened_by_worker is None:
        raise OptionError("option 'runner': got 'ray', but these models cannot be opened by other processes")
    from mergekit_3h.search.ray_runner import RayRunner

    with RayRunner(problem, opened_by_worker, options.cluster) as runner:
        yield runner
