"""One matrix, or one stream of matrices: time, memory and errors of every contender.

Every contender runs in a process of its own. A first run shows memory and result; then rounds follow, in each of which
all contenders run one after the other, the order reversed from round to round, so that what disturbs the machine
disturbs all of them and the ratio of a round means something on a machine that is not quiet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

from mergekit_3h.benchmarks.budget import MOST_ROUNDS
from mergekit_3h.benchmarks.contenders import OURS
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.plans import ComparisonPlan
from mergekit_3h.benchmarks.processes import Contestant
from mergekit_3h.benchmarks.products import product_flops
from mergekit_3h.benchmarks.results import ContenderResult, GemmBound, Ratio, StreamResult, spread
from mergekit_3h.benchmarks.serving import Errors, FirstRun


def measure(plan: ComparisonPlan, stream: Sequence[MatrixShape], seconds: float, *, with_oracle: bool) -> StreamResult:
    """Rounds for so many seconds, but at least the fewest that the plan allows; then the oracle."""
    end = monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="mergekit-3h-bench-") as folder:
        with ExitStack() as stack:
            contestants = {c: stack.enter_context(Contestant(plan.job(c, stream))) for c in plan.contenders}
            first = {c: contestant.first_run(Path(folder)) for c, contestant in contestants.items()}
            rate = contestants[OURS].gemm_rate()
            times = _rounds(contestants, end, plan.fewest_rounds)
            rate = max(rate, contestants[OURS].gemm_rate())
        errors = _errors(plan, stream, first) if with_oracle else {}
    if not plan.fewest_rounds:
        times = {contender: [run.seconds] for contender, run in first.items()}
    largest = max(plan.problem(shape).input_bytes for shape in stream)
    results = {c: _result(times[c], first[c], errors.get(c, []), largest) for c in plan.contenders}
    ours = results[OURS].seconds.median
    return StreamResult(
        shapes=list(stream),
        is_stream=plan.as_one_stream,
        contenders=results,
        ratios={peer: _ratio(times[peer], times[OURS]) for peer in plan.peers},
        gemm_bound=_bound(stream, first[OURS], rate, ours),
    )


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    paired = spread([their / our for their, our in zip(theirs, ours, strict=True)])
    return Ratio(spread(theirs).median / spread(ours).median, paired)


def _rounds(contestants: dict[str, Contestant], end: float, fewest: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {contender: [] for contender in contestants}
    order = list(contestants)
    longest = 0.0
    for done in range(MOST_ROUNDS if fewest else 0):
        start = monotonic()
        if done >= fewest and start + longest > end:
            break
        for contender in order:
            times[contender].append(contestants[contender].seconds())
        order.reverse()
        longest = max(longest, monotonic() - start)
    return times


def _errors(plan: ComparisonPlan, stream: Sequence[MatrixShape], first: dict[str, FirstRun]) -> dict[str, list[Errors]]:
    """Every contender's result beside the float64 merge with its own ranks and factors."""
    found: dict[str, list[Errors]] = {}
    with Contestant(plan.job(OURS, stream)) as judge:
        for contender, run in first.items():
            found[contender] = [
                judge.errors(i, result, facts)
                for i, (result, facts) in enumerate(zip(run.results, run.facts, strict=True))
            ]
    return found


def _result(times: list[float], first: FirstRun, errors: list[Errors], largest: int) -> ContenderResult:
    off = [error.unrounded for error in errors if error.unrounded is not None]
    return ContenderResult(
        seconds=spread(times),
        extra_bytes=first.extra_bytes,
        extra_relative=first.extra_bytes / largest,
        error=max((error.oracle for error in errors if error.oracle is not None), default=None),
        error_unrounded=max(off, default=None),
        ranks=[rank for facts in first.facts for rank in facts.ranks],
        decompositions=sorted({name for facts in first.facts for name in facts.decompositions}),
    )


def _bound(stream: Sequence[MatrixShape], first: FirstRun, rate: float, seconds: float) -> GemmBound | None:
    is_exact = all(name.startswith("exact") for facts in first.facts for name in facts.decompositions)
    if not first.is_counted or not is_exact:
        return None
    flops = sum(
        shape.count * product_flops((shape.rows, shape.columns), facts.ranks)
        for shape, facts in zip(stream, first.facts, strict=True)
    )
    return GemmBound(flops, rate, flops / rate, seconds * rate / flops)
