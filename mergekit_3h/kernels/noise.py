"""Which singular values of a task matrix the rounding of its checkpoint explains.

The delta between two checkpoints of 16 bits carries rounding noise, whose singular values end at an edge. What lies
under it says nothing about the task, yet a fixed rank takes hundreds of such directions into the orthogonalisation.

Rows and columns of real weights differ in size up to fivefold, and their units in the last place (ulp) with them, so
the edge is that of a random matrix whose entries have the variances min(ulp^2 / 12, update^2) of their own, summed by
row and by column. One pass over the weights, no random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.random_edges import random_edge
from mergekit_3h.kernels.rounding import SMALLEST_EXPONENT, RoundingToll, significand_bits, update_mean_square
from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS_ON_DEVICE, CACHE_ELEMENTS
from mergekit_3h.kernels.workers import spans

_EXPONENT_OF_FLOAT32 = 0x7F800000


def task_edge(parts: Sequence[tuple[float, Tensor]], base: Tensor, toll: RoundingToll | None = None) -> float:
    """Largest singular value that rounding explains of an update made of these checkpoints, with their factors.

    Their roundings are independent. ``toll`` is that of the first.
    """
    (factor, expert), *others = parts
    edge = factor * rounding_edge(expert, base, toll)
    return math.hypot(edge, *(share * rounding_edge(other, base) for share, other in others)) if others else edge


def rounding_edge(expert: Tensor, base: Tensor, toll: RoundingToll | None = None) -> float:
    """Largest singular value that rounding ``expert`` explains; 0 for a tensor that was not rounded to 16 bits.

    ``toll``, where it is known, has the size of the update already.
    """
    bits = significand_bits(expert)
    if bits is None:
        return 0.0
    update = update_mean_square(expert, base, bits) if toll is None else toll.update_mean_square
    if update == 0.0:
        return 0.0
    return random_edge(*_noise_sums(expert, bits, update))


def _noise_sums(expert: Tensor, bits: int, most: float) -> tuple[Tensor, Tensor]:
    """Sums of the entries' noise variances over each row and over each column, on the CPU."""
    by_row = torch.empty(expert.shape[0], dtype=torch.float64, device=expert.device)
    by_column = torch.zeros(expert.shape[1], dtype=torch.float64, device=expert.device)
    smallest_power = 2.0 ** (SMALLEST_EXPONENT[bits] - 1)
    step = CACHE_ELEMENTS if expert.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE
    for rows in spans(expert.shape[0], max(1, step // expert.shape[1])):
        # The number without its significand is a power of two, 2^(bits - 1) ulps.
        bit_pattern = expert[rows].to(torch.float32).contiguous().view(torch.int32)
        power = (bit_pattern & _EXPONENT_OF_FLOAT32).view(torch.float32).to(torch.float64).clamp_(min=smallest_power)
        variance = power.square_().mul_(4.0 ** (1 - bits) / 12).clamp_(max=most)
        by_row[rows] = variance.sum(1)
        by_column += variance.sum(0)
    return by_row.cpu(), by_column.cpu()
