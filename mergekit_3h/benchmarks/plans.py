"""What a comparison is to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergekit_3h.benchmarks.budget import FEWEST_ROUNDS
from mergekit_3h.benchmarks.contenders import OURS, Recipe
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.problems import WEIGHT_RMS, MatrixProblem, UpdateKind
from mergekit_3h.benchmarks.serving import Assignment


@dataclass(frozen=True)
class ComparisonPlan:
    """What to compare, on what, and for how long."""

    shapes: tuple[MatrixShape, ...]
    experts: int
    dtype: str
    update: UpdateKind
    recipe: Recipe
    peers: tuple[str, ...]
    device: str
    threads: int
    budget: float
    as_one_stream: bool = False
    fewest_rounds: int = FEWEST_ROUNDS
    """0: nothing but the first run, which shows memory and a rough time."""
    seed: int = 0
    weights: float = WEIGHT_RMS

    @property
    def contenders(self) -> list[str]:
        return [OURS, *self.peers]

    def streams(self) -> list[tuple[MatrixShape, ...]]:
        """What is timed as one piece: one matrix of every shape, or all matrices together."""
        if self.as_one_stream:
            return [self.shapes]
        return [(replace(shape, count=1),) for shape in self.shapes]

    def problem(self, shape: MatrixShape) -> MatrixProblem:
        return MatrixProblem(shape.rows, shape.columns, self.experts, self.dtype, self.update, self.seed, self.weights)

    def job(self, contender: str, stream: Sequence[MatrixShape]) -> Assignment:
        matrices = tuple((self.problem(shape), shape.count) for shape in stream)
        return Assignment(contender, matrices, self.recipe, self.device, self.threads)

    def as_dict(self) -> dict[str, Any]:
        return {
            "experts": self.experts,
            "dtype": self.dtype,
            "update": self.update,
            "weights": self.weights,
            "method": self.recipe.method,
            "options": dict(self.recipe.options),
            "device": self.device,
            "threads": self.threads,
            "budget_seconds": self.budget,
            "as_one_stream": self.as_one_stream,
            "fewest_rounds": self.fewest_rounds,
            "seed": self.seed,
        }
