"""What is known of one tensor: a line of JSON in the folder of an inspection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod

from pydantic import BaseModel, ConfigDict

_NUMBER = re.compile(r"^\d+$")


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpectrumMeasures(_Line):
    """The singular values of one expert's update, and what R-TSVM makes of them."""

    rank: int
    """Singular values that the merge keeps."""
    alpha: float
    """Factor on them, Eq. 8."""
    outlier_mass: float
    noise_edge: float
    above_edge: float
    """Share of the squared singular values over the edge."""
    unrounded_norm: float
    """|D_i| before the checkpoint was rounded, as the kernel estimates it .."""
    rounding_distance: float
    """.. and how far rounding moved the update, relative to that."""
    left_square: float = 0.0
    rounding_square: float = 0.0
    """The two sums of the kernel's statistic T: what lies under the edge, and what rounding alone would leave there."""
    above_count: int = 0
    """Singular values over the edge."""
    rounded_to: str = ""
    """The 16-bit type that the expert's numbers have, or had once; empty if none."""
    effective_rank: float
    energy: dict[int, float]
    """Share of the squared singular values in the largest 1, 8, 64."""
    over_counting: float
    """Mean of s_r over the leading directions of the experts' sum, weighted by their energy."""
    count: int
    """Singular values that are not zero .."""
    values: list[float]
    """.. and those at the places that ``sampled_places`` gives."""


class ExpertMeasures(_Line):
    """One expert's update of one tensor."""

    norm: float
    relative_size: float | None
    """Against the base's norm; None for a base of zeros."""
    weight_cosine: float
    unchanged: float
    kurtosis: float
    largest: float
    spectrum: SpectrumMeasures | None = None


class PairMeasures(_Line):
    """Two experts' updates of one tensor, named by their position among the experts."""

    first: int
    second: int
    cosine: float
    distance: float
    sign_conflicts: float
    overlap_output: float | None = None
    overlap_input: float | None = None
    """Overlap of the leading subspaces on either side of the matrix; by chance ``chance_output`` and
    ``chance_input``."""


class MatrixMeasures(_Line):
    """What holds for all experts of one matrix together."""

    smaller_side: int
    budget: int
    omega: float | None
    """Eq. 9 by the options of the merge; None where the rank does not depend on it."""
    interference: float
    relative_interference: float
    overlap_rank: int
    chance_output: float
    chance_input: float


class TensorMeasures(_Line):
    """One tensor of the merged model. ``problem`` says why it was not measured."""

    tensor: str
    shape: tuple[int, ...]
    dtypes: list[str]
    """Base and experts."""
    problem: str = ""
    broken: dict[int, int] = {}
    """Numbers that are not finite, by model: 0 the base, 1 the first expert."""
    rms: float = 0.0
    omegas: dict[int, float] = {}
    """Omega for the absolute epsilon 2^(e/2), by e, wherever it is more than for the e before."""
    experts: list[ExpertMeasures] = []
    pairs: list[PairMeasures] = []
    matrix: MatrixMeasures | None = None
    seconds: float = 0.0

    @property
    def entries(self) -> int:
        return prod(self.shape)

    @property
    def place(self) -> tuple[int | None, str]:
        return layer_and_type(self.tensor)


def layer_and_type(name: str) -> tuple[int | None, str]:
    """``model.layers.3.mlp.up_proj.weight`` -> (3, ``mlp.up_proj``); outside the layers the number is None.

    Further numbers, those of experts in a mixture, become ``*``.
    """
    parts = name.partition("[")[0].removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if _NUMBER.match(part)), None)
    if at is None:
        rest = [part for part in parts if part not in ("model", "transformer")] or parts
        return None, ".".join(rest)
    inner = ["*" if _NUMBER.match(part) else part for part in parts[at + 1 :]]
    return int(parts[at]), ".".join(inner) or ".".join(parts[:at])


DENSE, SPARSE = 8, 32
"""Singular values of a spectrum that are kept: so many of the largest, and so many of the others."""


def sampled_places(count: int) -> list[int]:
    """Positions, from 0, at which a spectrum of ``count`` values is kept: the first ones all, then ever fewer."""
    if count <= DENSE + SPARSE:
        return list(range(count))
    step = (count / DENSE) ** (1 / SPARSE)
    return sorted({*range(DENSE), *(min(count, round(DENSE * step**i)) - 1 for i in range(1, SPARSE + 1))})


def all_pairs(count: int) -> Iterable[tuple[int, int]]:
    return ((i, j) for i in range(count) for j in range(i + 1, count))
