"""Which directions of a weighted sum of updates its rounding explains, and whether they are to be cut.

Whether rounding is all that lies under the edge is asked of every expert by itself, in its own directions. Those of the
sum would not do: of three LoRA experts the smaller directions come to lie under the edge of the sum, which is higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from mergekit_3h.kernels.decompositions import cheapest_certified
from mergekit_3h.kernels.noise import rounding_edge, task_edge
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.remainders import ROUNDING_ALONE, remainder
from mergekit_3h.kernels.spectra import exact_spectrum
from mergekit_3h.kernels.sums import SumSpectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all

NoiseFloor = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Floor:
    """The noise floor of one matrix."""

    kept: SumSpectrum
    """The sum's directions, without those that are cut."""
    under_edge: float | None
    """T of the expert with the most of it; None where there is no edge, or it was not asked for."""
    is_cut: bool
    """Whether what lies under the edges is to go."""


def task_edges(tasks: TaskMatrices, noise_floor: NoiseFloor) -> list[float]:
    """The rounding edge of every task; 0 where nothing was rounded, or the floor is off."""
    base, edges = tasks.base, [0.0] * len(tasks)
    if base is None or noise_floor == "off":
        return edges

    def survey(i: int) -> None:
        edges[i] = task_edge(tasks.parts(i), base)

    run_all(tasks.device, [partial(survey, i) for i in range(len(tasks))])
    return edges


def floor_of(
    tasks: TaskMatrices,
    weights: Sequence[float],
    spectrum: SumSpectrum,
    edges: Sequence[float],
    noise_floor: NoiseFloor,
) -> Floor:
    """The edge of the sum is that of independent roundings, the root of the sum of w_i^2 edge_i^2."""
    edge = math.hypot(*(weight * each for weight, each in zip(weights, edges, strict=True)))
    if tasks.base is None or edge == 0.0:
        return Floor(spectrum, None, is_cut=False)
    above = spectrum.above(edge)
    if noise_floor == "on":
        return Floor(above, None, is_cut=True)
    under_edge = max(_ratios(tasks, weights, tasks.base, edge))
    is_cut = under_edge < ROUNDING_ALONE
    return Floor(above if is_cut else spectrum, under_edge, is_cut)


def _ratios(tasks: TaskMatrices, weights: Sequence[float], base: Tensor, whole: float) -> list[float]:
    """T of every checkpoint in the sum, infinite for one that is above its edge in all directions: the edge of the
    ``whole`` sum would cut some. Of one that was not rounded, T of what lies under that edge.

    Of updates that are mixed of two checkpoints each is asked by itself too: made smaller, what an expert changed
    beside its rounding would look like rounding.
    """
    of_checkpoint = {
        (id(expert), abs(weight * factor)): expert
        for i, weight in enumerate(weights)
        for factor, expert in tasks.parts(i)
        if weight * factor != 0.0
    }
    parts = [(factor, expert) for (_, factor), expert in of_checkpoint.items()]
    found = [0.0] * len(parts)

    def measure(at: int) -> None:
        factor, expert = parts[at]
        alone, own_edge = TaskMatrices([expert], base), rounding_edge(expert, base)
        edge = own_edge or whole / factor
        rule = RankRule(alone.full_rank, alone.full_rank, edge, energy=1.0)
        spectrum = cheapest_certified(alone, 0, rule) if own_edge else exact_spectrum(alone, 0, rule)
        rank = int((spectrum.values > edge).sum())
        found[at] = remainder(alone, 0, spectrum.right[:, :rank]).ratio if rank < alone.columns else math.inf

    run_all(tasks.device, [partial(measure, at) for at in range(len(parts))])
    return found
