"""How the kernel's cost grows with the matrix and the experts, beside what its products and decompositions cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from mergekit_3h.benchmarks.budget import FEWEST_ROUNDS, MOST_ROUNDS, operations
from mergekit_3h.benchmarks.contenders import OURS
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.machine import Machine, this_machine
from mergekit_3h.benchmarks.plans import ComparisonPlan
from mergekit_3h.benchmarks.processes import Contestant, start_template
from mergekit_3h.benchmarks.products import product_flops
from mergekit_3h.benchmarks.tables import Table, machine_lines, seconds_text
from mergekit_3h.errors import OptionError

CASES = (
    *((side, side, 3) for side in (256, 512, 1024, 2048)),
    *((rows, 512, 3) for rows in (1024, 2048, 4096, 8192)),
    *((512, 512, experts) for experts in (2, 4, 6, 8)),
)
"""Rows, columns, experts: one of the three grows at a time."""

MATRICES_PER_THREAD = 2

_RUNS = FEWEST_ROUNDS + 2
"""What a case takes at least: the first run, the rounds, and products and decompositions for comparison."""


@dataclass(frozen=True)
class Growth:
    """One matrix of a case, where as many as there are threads are merged side by side."""

    rows: int
    columns: int
    experts: int
    seconds: float
    product_seconds: float
    """The GEMM bound."""
    eigh_seconds: float
    """The eigendecompositions alone: one at a time on one thread, divided by the threads."""

    @property
    def predicted_seconds(self) -> float:
        return self.product_seconds + self.eigh_seconds


@dataclass(frozen=True)
class GrowthTable:
    machine: Machine
    settings: dict[str, Any]
    cases: list[Growth]
    left_out: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_growth(plan: ComparisonPlan, say: Callable[[str], None]) -> GrowthTable:
    """The cases from cheap to expensive as far as the budget reaches."""
    start_template([OURS], plan.device)
    end = monotonic() + plan.budget
    cheap_first = sorted(CASES, key=_operations)
    costs = [_operations(case) for case in cheap_first]
    found: list[Growth] = []
    for i, (rows, columns, experts) in enumerate(cheap_first):
        left = end - monotonic()
        shape = MatrixShape(rows, columns, MATRICES_PER_THREAD * plan.threads)
        if left < (found[-1].seconds * costs[i] / costs[i - 1] * shape.count * _RUNS if found else 0):
            break
        say(f"{rows}x{columns}, n = {experts}")
        found.append(_measured(replace(plan, experts=experts), shape, left * costs[i] / sum(costs[i:])))
    if not found:
        raise OptionError(f"--budget: {plan.budget:.3g} s are not enough for a single case of --growth")
    left_out = [f"{rows}x{columns}, n = {experts}" for rows, columns, experts in cheap_first[len(found) :]]
    shown = sorted(found, key=lambda case: CASES.index((case.rows, case.columns, case.experts)))
    return GrowthTable(this_machine(plan.device), plan.as_dict(), shown, left_out)


def _operations(case: tuple[int, int, int]) -> float:
    rows, columns, experts = case
    return operations(OURS, MatrixShape(rows, columns), experts)


def _measured(plan: ComparisonPlan, shape: MatrixShape, seconds: float) -> Growth:
    end = monotonic() + seconds
    with (
        tempfile.TemporaryDirectory(prefix="mergekit-3h-bench-") as folder,
        Contestant(plan.job(OURS, [shape])) as ours,
    ):
        ranks = ours.first_run(Path(folder)).facts[0].ranks
        times: list[float] = []
        rates: list[float] = []
        sides = decomposed_sides(min(shape.rows, shape.columns), ranks)
        decompositions = {side: [] for side in sides}
        while len(times) < FEWEST_ROUNDS or (monotonic() < end and len(times) < MOST_ROUNDS):
            times.append(ours.seconds() / shape.count)
            rates.append(ours.gemm_rate())
            for side, measured in decompositions.items():
                measured.append(ours.eigh_seconds(side))
    eigh = sum(median(decompositions[side]) for side in sides) / plan.threads
    flops = product_flops((shape.rows, shape.columns), ranks)
    return Growth(shape.rows, shape.columns, plan.experts, median(times), flops / max(rates), eigh)


def decomposed_sides(columns: int, ranks: Sequence[int]) -> list[int]:
    """Sizes of the eigendecompositions of one merge: one a task, and one for each of the two polar factors."""
    width = sum(ranks)
    polar = min(ranks) if len(ranks) == 2 and width <= columns else min(width, columns)
    return [*[columns] * len(ranks), polar, polar]


def growth_lines(table: GrowthTable, *, markdown: bool) -> list[str]:
    """The whole report, ready to be printed."""
    chosen = table.settings
    rows = [
        [
            f"{case.rows}x{case.columns}",
            str(case.experts),
            seconds_text(case.seconds),
            seconds_text(case.product_seconds),
            seconds_text(case.eigh_seconds),
            f"{case.seconds / case.predicted_seconds:.2f}",
            f"{case.seconds / case.product_seconds:.1f}",
        ]
        for case in table.cases
    ]
    headers = ["matrix", "n", "time of one", "products", "eigendecompositions", "time / both", "x GEMM bound"]
    shown = Table(headers, rows)
    lines = [
        *machine_lines(table.machine, chosen["threads"]),
        f"{chosen['method']}; {chosen['dtype']} on {chosen['device']}, updates: {chosen['update']}; "
        f"{chosen['threads']} matrices side by side",
        "",
        shown.as_markdown() if markdown else shown.as_text(),
        "",
    ]
    return lines + ([f"Left out, beyond the budget: {'; '.join(table.left_out)}"] if table.left_out else [])
