"""One weight an expert, found by the gradient solver of ``safety_merge`` on the validation questions."""

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
"""Of the gradient solver: 24 passes, where a scale is tuned with six."""

BATCH = 16


@dataclass(frozen=True)
class Weighing:
    """The merge whose weights are searched: it has to be linear in them."""

    label: str
    method: str

    def options(self) -> SearchOptions:
        return SearchOptions.model_validate(
            {
                "combine": self.method,
                "solver": "gradient",
                "safety_weight": 0.0,
                "expert_weight": 1.0,
                "max_evaluations": STEPS,
                "batch_size": BATCH,
            }
        )


WEIGHINGS = (Weighing(f"{SUM}, weights", SUM), Weighing("tsvm, weights", "tsvm"))


@dataclass(frozen=True)
class Weighed:
    """Every expert's weight, and the passes over the questions that it took."""

    weights: dict[str, float]
    passes: int


def weigh(
    weighing: Weighing,
    model: nn.Module,
    tokenizer: Any,
    base: State,
    experts: Mapping[str, State],
    questions: Mapping[str, Sequence[Record]],
    gains: Mapping[str, float],
) -> Weighed:
    """Search, and leave the merge in ``model``.

    A record weighs the less the more its dimension can gain, so that what is minimised is minus the mean gain kept.
    """
    records = [
        record.changed(set="domain", weight=1.0 / (len(members) * gains[dimension]))
        for dimension, members in questions.items()
        for record in members
    ]
    sources = [StateDictSource(label, state) for label, state in {"base": base, **experts}.items()]
    method = parse_options(weighing.method, {}) if weighing.method in names() else None
    problem = Problem(sources[0], tuple(sources[1:]), model, tokenizer, in_memory(records), weighing.options(), method)
    runner = problem.local_runner()
    solution = solve_problem(problem, runner=runner)
    list(runner.evaluate([solution.coefficients], gradient=False))
    (group,) = problem.layout.by_group(solution.coefficients).values()
    return Weighed({label: round(group[label], 4) for label in experts}, solution.passes)
