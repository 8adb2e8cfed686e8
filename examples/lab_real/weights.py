"""One weight an expert, found by the gradient solver of ``safety_merge`` on the validation questions.

The solver goes downhill from where it starts, and lambda 1 may lie in a worse valley than the best scale does. So it
starts where all weights are the scale that was tuned for the same merge; that tuning's passes count among its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merging import SUM, State
from torch import nn

from mergekit_3h.data.records import Record
from mergekit_3h.search import Problem, SearchOptions, StateDictSource, in_memory, solve_problem
from mergekit_3h.spectral.registry import names, parse_options

STEPS = 8
"""Of the gradient solver: 24 passes, besides the six that tune the scale it starts from."""

REACH = 2.0
"""Weights go up to so many times the start, or this itself where that is more: the default's range around lambda 1."""

BATCH = 16


@dataclass(frozen=True)
class Weighing:
    """The merge whose weights are searched: it has to be linear in them. Its row with one scale is called like it."""

    label: str
    method: str

    def options(self, start: float) -> SearchOptions:
        return SearchOptions.model_validate(
            {
                "combine": self.method,
                "solver": "gradient",
                "safety_weight": 0.0,
                "expert_weight": 1.0,
                "start": start,
                "max_coefficient": REACH * max(1.0, start),
                "max_evaluations": STEPS,
                "batch_size": BATCH,
            }
        )


WEIGHINGS = (Weighing(f"{SUM}, weights", SUM), Weighing("tsvm, weights", "tsvm"))


@dataclass(frozen=True)
class Weighed:
    """Every expert's weight, where the search started, and the passes over the questions that it took."""

    weights: dict[str, float]
    start: float
    passes: int


def weigh(
    weighing: Weighing,
    model: nn.Module,
    tokenizer: Any,
    base: State,
    experts: Mapping[str, State],
    questions: Mapping[str, Sequence[Record]],
    gains: Mapping[str, float],
    start: float,
) -> Weighed:
    """Search from ``start``, and leave the merge in ``model``.

    A record weighs the less the more its dimension can gain, so that what is minimised is minus the mean gain kept.
    """
    records = [
        record.changed(set="domain", weight=1.0 / (len(members) * gains[dimension]))
        for dimension, members in questions.items()
        for record in members
    ]
    sources = [StateDictSource(label, state) for label, state in {"base": base, **experts}.items()]
    method = parse_options(weighing.method, {}) if weighing.method in names() else None
    problem = Problem(
        sources[0], tuple(sources[1:]), model, tokenizer, in_memory(records), weighing.options(start), method
    )
    runner = problem.local_runner()
    solution = solve_problem(problem, runner=runner)
    list(runner.evaluate([solution.coefficients], gradient=False))
    (group,) = problem.layout.by_group(solution.coefficients).values()
    return Weighed({label: round(group[label], 4) for label in experts}, start, solution.passes)
