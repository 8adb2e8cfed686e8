"""One weight an expert, found by the solvers of ``safety_merge`` on the validation questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merging import SUM, State
from rows import CLOSEST
from torch import Tensor, nn
from world import Pair

from mergekit_3h.search import Combine, Problem, SearchOptions, StateDictSource, in_memory, solve_problem
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.registry import names, parse_options
from mergekit_3h.spectral.tensors import merge_tensor

STEPS = 8
"""Of the gradient solver: 24 passes, where a scale is tuned with seven."""

CANDIDATES = 24
"""Of CMA-ES, where there is no gradient."""


@dataclass(frozen=True)
class Weighing:
    """Which merge's weights are searched, and how: one an expert, or one an expert and layer."""

    label: str
    method: str
    solver: str = "gradient"
    by_layer: bool = False
    own_options: dict[str, Any] = field(default_factory=dict[str, Any])

    def options(self) -> SearchOptions:
        chosen = {
            "combine": self.method,
            "solver": self.solver,
            "safety_weight": 0.0,
            "expert_weight": 1.0,
            "layer_granularity": int(self.by_layer),
            "max_evaluations": STEPS if self.solver == "gradient" else CANDIDATES,
            "batch_size": 256,
        }
        return SearchOptions.model_validate(chosen)


WEIGHINGS = (
    Weighing(f"{SUM}, weights", SUM),
    Weighing(f"{SUM}, weights by layer", SUM, by_layer=True),
    Weighing("tsvm, weights", "tsvm"),
    Weighing("tsvm, weights by layer", "tsvm", by_layer=True),
    Weighing("iso_c, power 0.5, weights", "iso_c", "cmaes", own_options={"power": 0.5, "noise_floor": "off"}),
)


def weighings_of(kind: str) -> list[Weighing]:
    """CMA-ES merges anew for each candidate, so it is left out where many kinds are compared."""
    return [one for one in WEIGHINGS if kind == CLOSEST or one.solver == "gradient"]


def weighed(
    weighing: Weighing,
    room: nn.Module,
    tokenizer: Any,
    base: State,
    experts: Mapping[str, State],
    questions: Mapping[str, Sequence[Pair]],
    gains: Mapping[str, float],
) -> tuple[State, dict[str, list[float]], int]:
    """The update, every expert's weights (one, or one a layer), and the passes over the questions.

    A record weighs the less the more its dimension can gain, so that what is minimised is minus the mean gain kept.
    """
    records = [
        pair.record(pair.chosen).changed(weight=1.0 / (len(members) * gains[dimension]))
        for dimension, members in questions.items()
        for pair in members
    ]
    sources = [StateDictSource(label, state) for label, state in {"base": base, **experts}.items()]
    method = parse_options(weighing.method, weighing.own_options) if weighing.method in names() else None
    problem = Problem(
        sources[0],
        tuple(sources[1:]),
        room,
        tokenizer,
        in_memory(records),
        weighing.options(),
        method,
        _merging_anew(method, list(experts)) if method is not None and not method.is_linear else None,
    )
    runner = problem.local_runner()
    solution = solve_problem(problem, runner=runner)
    list(runner.evaluate([solution.coefficients], gradient=False))  # leaves the merge in the room
    update = {name: parameter.detach() - base[name] for name, parameter in room.named_parameters()}
    groups = problem.layout.by_group(solution.coefficients).values()
    return update, {label: [group[label] for group in groups] for label in experts}, solution.passes


def _merging_anew(method: SpectralMethod, labels: Sequence[str]) -> Combine:
    """What a search calls for every tensor of a candidate where the merge is not linear in the weights."""

    def combine(name: str, own: Tensor, tensors: Sequence[Tensor], found: Sequence[float]) -> Tensor:
        experts, weights = dict(zip(labels, tensors, strict=True)), dict(zip(labels, found, strict=True))
        return merge_tensor(name, own, experts, weights, method)

    return combine
