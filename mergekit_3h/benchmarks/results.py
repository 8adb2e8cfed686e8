"""What was measured, as it goes into tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.machine import Machine


@dataclass(frozen=True)
class Spread:
    median: float
    quartiles: tuple[float, float]
    rounds: list[float]


def spread(values: Sequence[float]) -> Spread:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Spread(median(values), (low, high), list(values))


@dataclass(frozen=True)
class ContenderResult:
    seconds: Spread
    extra_bytes: int
    """Peak of memory beyond the inputs."""
    extra_relative: float
    """The same in units of the experts' tensors in the checkpoint's dtype; of the largest matrix, for a stream."""
    error: float | None = None
    """Relative to the float64 oracle, the largest of a stream; ``None`` where there was no time for the oracle."""
    error_unrounded: float | None = None
    """Relative to TSVM of the updates before rounding, for ``lora``."""
    ranks: list[int] = field(default_factory=list[int])
    decompositions: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Ratio:
    """How many times as long a peer takes as we do."""

    of_medians: float
    paired: Spread
    """Over the rounds; both of a round ran one after the other."""


@dataclass(frozen=True)
class GemmBound:
    flops: int
    rate: float
    """Operations per second of float64 products with the same threads."""
    seconds: float
    ratio: float
    """Our median time in units of the bound."""


@dataclass(frozen=True)
class StreamResult:
    """One matrix of a shape, or one pass over a stream: all the matrices of all its shapes."""

    shapes: list[MatrixShape]
    is_stream: bool
    contenders: dict[str, ContenderResult]
    ratios: dict[str, Ratio]
    gemm_bound: GemmBound | None
    """``None`` where the products are not known beforehand: Krylov, or the literal order."""

    @property
    def name(self) -> str:
        return f"{self.count} matrices" if self.is_stream else self.shapes[0].name

    @property
    def count(self) -> int:
        """Of the matrices in the model, or in the stream."""
        return sum(shape.count for shape in self.shapes)


@dataclass(frozen=True)
class LeftOut:
    shape: MatrixShape
    needed_seconds: float
    estimated_seconds: dict[str, float]
    """Of one merge of one such matrix."""


@dataclass(frozen=True)
class ModelTotal:
    """A whole model, by the counts of its shapes."""

    seconds: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    """First quartile, median, third quartile."""
    estimated_share: float
    """Share of our time that is estimated and not measured."""
    gemm_bound_ratio: float | None


@dataclass(frozen=True)
class Comparison:
    machine: Machine
    settings: dict[str, Any]
    measurements: list[StreamResult]
    left_out: list[LeftOut]
    total: ModelTotal | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
