"""Our kernel beside others, shape by shape, within a budget: cheap shapes first, and the others are estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from mergekit_3h.benchmarks.budget import Costs, first_share
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.machine import this_machine
from mergekit_3h.benchmarks.measurement import measure
from mergekit_3h.benchmarks.plans import ComparisonPlan
from mergekit_3h.benchmarks.processes import Contestant, start_template
from mergekit_3h.benchmarks.results import Comparison, LeftOut, StreamResult
from mergekit_3h.benchmarks.totals import model_total
from mergekit_3h.errors import OptionError

CALIBRATION = MatrixShape(256, 256)

Stream = Sequence[MatrixShape]


def compare(plan: ComparisonPlan, say: Callable[[str], None] = lambda _: None) -> Comparison:
    """Measure what the budget allows; ``say`` gets a line before each measurement."""
    start_template(plan.contenders, plan.device)
    costs = calibrate(plan)
    deadline = monotonic() + plan.budget
    streams = sorted(plan.streams(), key=lambda stream: costs.round(plan.contenders, stream))
    done: list[StreamResult] = []
    for i, stream in enumerate(streams):
        allowed = _allowance(plan, costs, streams[i:], deadline - monotonic())
        if allowed is None:
            break
        seconds, with_oracle = allowed
        say(f"{_named(stream)}: up to {seconds:.0f} s")
        reserve = costs.oracle(plan.contenders, stream) if with_oracle else 0.0
        done.append(measure(plan, stream, seconds - reserve, with_oracle=with_oracle))
        if not plan.as_one_stream:
            for contender, result in done[-1].contenders.items():
                costs.learn(contender, stream[0], result.seconds.median)
    if not done:
        raise _too_small(plan, costs, streams[0])
    if plan.as_one_stream:
        return Comparison(this_machine(plan.device), plan.as_dict(), done, left_out=[], total=None)
    counted = {shape.name: shape for shape in plan.shapes}
    measured = [replace(found, shapes=[counted[found.name]]) for found in done]
    left_out = [_left_out(plan, costs, counted[stream[0].name]) for stream in streams[len(done) :]]
    total = model_total(measured, left_out, plan.contenders)
    return Comparison(this_machine(plan.device), plan.as_dict(), measured, left_out, total)


def calibrate(plan: ComparisonPlan) -> Costs:
    """Every contender on a small matrix; measured shapes refine it as they grow."""
    costs = Costs(plan.experts, plan.fewest_rounds)
    for contender in plan.contenders:
        start = monotonic()
        with Contestant(plan.job(contender, [CALIBRATION])) as contestant:
            contestant.seconds()
            costs.start_seconds = max(costs.start_seconds, monotonic() - start)
            costs.learn(contender, CALIBRATION, min(contestant.seconds() for _ in range(2)))
    return costs


def _allowance(plan: ComparisonPlan, costs: Costs, streams: Sequence[Stream], left: float) -> tuple[float, bool] | None:
    """Seconds for the first of these streams, and whether the oracle fits too; ``None`` where not even it fits."""
    for with_oracle in (True, False) if plan.fewest_rounds else (False,):
        needs = [costs.fewest(plan.contenders, stream, with_oracle=with_oracle) for stream in streams]
        seconds = first_share(left, needs)
        if seconds is not None:
            return seconds, with_oracle
    return None


def _left_out(plan: ComparisonPlan, costs: Costs, shape: MatrixShape) -> LeftOut:
    needed = costs.fewest(plan.contenders, [replace(shape, count=1)], with_oracle=False)
    return LeftOut(shape, needed, {contender: costs.one(contender, shape) for contender in plan.contenders})


def _too_small(plan: ComparisonPlan, costs: Costs, stream: Stream) -> OptionError:
    needed = costs.fewest(plan.contenders, stream, with_oracle=False)
    return OptionError(
        f"--budget: {plan.budget:.3g} s are not enough for {_named(stream)}: about {needed:.3g} s here. Give it more, "
        "or fewer experts (-n), a smaller --shape, or --peer none to measure our kernel alone"
    )


def _named(stream: Stream) -> str:
    return stream[0].name if len(stream) == 1 else f"all {sum(shape.count for shape in stream)} matrices"
