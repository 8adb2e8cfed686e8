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

from mergekit_3h.kernels.decompositions import cheapest_certified
from mergekit_3h.kernels.noise import task_edge
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
    if edge == 0.0:
        return Floor(spectrum, None, is_cut=False)
    above = spectrum.above(edge)
    if noise_floor == "on":
        return Floor(above, None, is_cut=True)
    under_edge = max(_ratios(tasks, weights, edges, edge))
    is_cut = under_edge < ROUNDING_ALONE
    return Floor(above if is_cut else spectrum, under_edge, is_cut)


def _ratios(tasks: TaskMatrices, weights: Sequence[float], edges: Sequence[float], whole: float) -> list[float]:
    """T of every expert, infinite for one that is above its edge in all directions: the edge of the ``whole`` sum would
    cut some. Of one that was not rounded, T of what lies under that edge."""
    found = [0.0] * len(tasks)

    def measure(i: int) -> None:
        edge = edges[i] or whole / abs(weights[i])
        rule = RankRule(tasks.full_rank, tasks.full_rank, edge, energy=1.0)
        spectrum = cheapest_certified(tasks, i, rule) if edges[i] else exact_spectrum(tasks, i, rule)
        rank = int((spectrum.values > edge).sum())
        found[i] = remainder(tasks, i, spectrum.right[:, :rank]).ratio if rank < tasks.columns else math.inf

    run_all(tasks.device, [partial(measure, i) for i in range(len(tasks)) if weights[i] != 0.0])
    return found
