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
from mergekit_3h.kernels.sums import SumSpectrum, UpdateSum, sum_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all

NoiseFloor = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Floor:
    """The noise floor of one matrix."""

    kept: SumSpectrum
    """The sum's directions, without those that are cut."""
    under_edge: float | None
    """T of the first expert with more than rounding there, or else of the one with the most; None where there is no
    edge, or it was not asked for."""
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


def floor_of(total: UpdateSum, edges: Sequence[float], noise_floor: NoiseFloor) -> Floor:
    """The edge of the sum is that of independent roundings, the root of the sum of w_i^2 edge_i^2."""
    tasks, weights = total.tasks, total.reach
    edge = math.hypot(*(weight * each for weight, each in zip(weights, edges, strict=True)))
    if tasks.base is None or edge == 0.0:
        return Floor(sum_spectrum(total), None, is_cut=False)
    under_edge = _most_under_edge(tasks, weights, tasks.base, edge) if noise_floor == "auto" else None
    is_cut = under_edge is None or under_edge < ROUNDING_ALONE
    return Floor(sum_spectrum(total, edge if is_cut else 0.0), under_edge, is_cut)


def _most_under_edge(tasks: TaskMatrices, weights: Sequence[float], base: Tensor, whole: float) -> float:
    """The largest T of the checkpoints in the sum, infinite for one that is above its edge in all directions: the edge
    of the ``whole`` sum would cut some. Of one that was not rounded, T of what lies under that edge.

    Once the first has more than rounding there, nothing is to be cut, and the others are not asked: full fine-tunings
    seldom come together with merged adapters.

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

    for asked in (range(1), range(1, len(parts))):
        run_all(tasks.device, [partial(measure, at) for at in asked])
        if max(found) >= ROUNDING_ALONE:
            break
    return max(found)
