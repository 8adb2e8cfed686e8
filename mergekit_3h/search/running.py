"""A checked problem searched where its options say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import OnDemandRunner, Runner
from mergekit_3h.search.session import Point
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.solving import solve_problem


def search(
    problem: Problem,
    opened: Callable[[], Problem],
    *,
    trace_path: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, object] | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> Solution:
    """Solve a problem whose model may have no weights yet; ``opened`` gives it some, if anything is to be computed."""

    def make() -> Runner:
        return opened().local_runner()

    try:
        return solve_problem(
            problem,
            runner=OnDemandRunner(make, problem.set_weights),
            trace_path=trace_path,
            resume=resume,
            identity=identity,
            on_point=on_point,
        )
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
