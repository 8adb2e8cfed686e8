"""A search from end to end: measure the models, let the solver ask for candidates, return what it found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mergekit_3h.errors import ModelError
from mergekit_3h.search.combinations import is_held
from mergekit_3h.search.layout import Layout
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import Measurement, OnDemandRunner, Runner
from mergekit_3h.search.scoring import scoring_of
from mergekit_3h.search.search import Point, Search
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.solvers import solver_named
from mergekit_3h.search.trace import Trace

log = logging.getLogger(__name__)

# Changing these continues the same search: they say how long and in what portions, not what.
_NOT_IDENTITY = ("max_evaluations", "batch_size", "component_memory_gb", "strict")


OnPoint = Callable[[Point], None]


def solve_problem(
    problem: Problem,
    *,
    runner: Runner | None = None,
    trace_path: str | Path | None = None,
    resume: bool = False,
    identity: Mapping[str, object] | None = None,
    on_point: OnPoint | None = None,
) -> Solution:
    """The best coefficients of a problem, by default computed in this process.

    With ``trace_path`` every measurement is kept on disk; with ``resume`` those that are there are not repeated, and
    the result is that of an undisturbed search. A trace of another search is an error before anything is computed, and
    one that is complete costs nothing. ``identity`` is what else tells this search from others (the options of a
    host's method). ``on_point`` is called with every point, recorded ones too.
    """
    full = {**problem.identity(), **(identity or {})}
    runner = runner or OnDemandRunner(problem.local_runner, problem.set_weights)
    with Trace(trace_path, {**_identity(problem.layout, problem.options), **full}, resume) as trace:
        return _solved(runner, problem.layout, problem.options, problem.base.label, trace, on_point)


def solve(
    runner: Runner,
    layout: Layout,
    options: SearchOptions,
    *,
    base: str = "base",
    trace_path: str | Path | None = None,
    resume: bool = False,
    identity: Mapping[str, object] | None = None,
    on_point: OnPoint | None = None,
) -> Solution:
    """Like ``solve_problem``, of whatever the runner evaluates. ``base`` is the base's label."""
    with Trace(trace_path, {**_identity(layout, options), **(identity or {})}, resume) as trace:
        return _solved(runner, layout, options, base, trace, on_point)


def _identity(layout: Layout, options: SearchOptions) -> dict[str, object]:
    chosen = {name: value for name, value in options.model_dump().items() if name not in _NOT_IDENTITY}
    return {**chosen, "experts": list(layout.experts), "groups": [group.name for group in layout.groups]}


def _solved(
    runner: Runner, layout: Layout, options: SearchOptions, base: str, trace: Trace, on_point: OnPoint | None
) -> Solution:
    models = _measured_models(runner, [base, *layout.experts], trace)
    safety = {label: measured.losses["safety"] for label, measured in models.items() if "safety" in measured.losses}
    search = Search(runner, layout, options, scoring_of(options, safety), models, trace, on_point)
    stopped = solver_named(options.solver)(search)
    best, held = search.best, None
    if is_held(options.combine, options.solver):
        held, best = best, _renewed(search, best)
    if not best.satisfies:
        log.warning(
            "no candidate keeps min_safety %s: the best compromise has a safety loss %.3g nats above the limit",
            options.min_safety,
            best.violation,
        )
    uniform = next((point for point in search.points if point.coefficients == search.start), None)
    log.info("%s: %s after %d evaluations, score %.5g", options.solver, stopped, len(search.points), best.score)
    solution = Solution(options, layout, search.scoring, best, uniform, models, tuple(search.points), stopped, held)
    for remark in solution.remarks():
        log.warning("%s", remark)
    return solution


def _renewed(search: Search, found: Point) -> Point:
    """What was found as the method merges it, with what was held at the start made anew; the start, if that is better
    after all."""
    renewed, start = search.merged(found), search.points[0]
    log.info(
        "%s scores %.5g at the weights found, %+.2g from what it scored with a part of it held as at the start",
        search.options.combine,
        renewed.score,
        renewed.score - found.score,
    )
    if renewed.rank[:2] <= start.rank[:2]:
        return renewed
    log.warning(
        "the weights found score %.5g as %s merges them, the uniform merge %.5g: the latter is the result. What holds "
        "at the start does not hold that far: lower max_coefficient, or take solver cmaes",
        renewed.score,
        search.options.combine,
        start.score,
    )
    return start


def _measured_models(runner: Runner, labels: list[str], trace: Trace) -> dict[str, Measurement]:
    missing = [label for label in labels if trace.model(label) is None]
    for label, measured in zip(missing, runner.evaluate_models(missing), strict=True):
        trace.add_model(label, measured)
    models = {label: trace.model(label) or Measurement() for label in labels}
    for label, measured in models.items():
        if measured.failure:
            raise ModelError(
                f"model {label!r} by itself: {measured.failure}. It cannot take part in a merge; look for NaN or Inf "
                "in its weights, or set dtype float32."
            )
        log.info("%s: %s", label, ", ".join(f"{name} {loss:.4g}" for name, loss in measured.losses.items()))
    return models
