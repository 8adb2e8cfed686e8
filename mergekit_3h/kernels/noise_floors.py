"""Which directions of a weighted sum of updates its rounding explains, and whether they are to be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from mergekit_3h.kernels.noise import task_edge
from mergekit_3h.kernels.remainders import Remainder, remainder
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
    """T of all experts together; None where there is no edge, or it was not asked for."""
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
    remains = _remainder(tasks, weights, above.right)
    is_cut = remains.is_rounding_alone
    return Floor(above if is_cut else spectrum, remains.ratio, is_cut)


def _remainder(tasks: TaskMatrices, weights: Sequence[float], right: Tensor) -> Remainder:
    """Of all experts together, each as it enters the sum."""
    found = [Remainder()] * len(tasks)

    def measure(i: int) -> None:
        one, square = remainder(tasks, i, right), weights[i] ** 2
        found[i] = Remainder(square * one.left_square, square * one.rounding_square)

    run_all(tasks.device, [partial(measure, i) for i in range(len(tasks)) if weights[i] != 0.0])
    return sum(found, Remainder())
