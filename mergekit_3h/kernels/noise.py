"""How much of a task matrix is nothing but the rounding of its checkpoint.

A bfloat16 weight w lies up to half a unit in the last place from the trained one, so a delta between two checkpoints
carries noise of variance mean(ulp(w)^2) / 12. The singular values of such noise end at the Marchenko-Pastur edge;
those of the delta below it say nothing about the task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS
from mergekit_3h.kernels.workers import spans

SIGNIFICAND_BITS = {torch.bfloat16: 8, torch.float16: 11}
_BITS_BELOW = {8: 0xFFFF, 11: 0x1FFF}


def rounding_edge(expert: Tensor) -> float:
    """Largest singular value that rounding this checkpoint tensor explains; 0 for one that was not rounded to 16 bits."""
    bits = significand_bits(expert)
    if bits is None:
        return 0.0
    variance = float(sum((ulp_squares(part, bits).sum() for part in row_blocks(expert)), start=torch.zeros(()))) / (
        12 * expert.numel()
    )
    return math.sqrt(variance) * (math.sqrt(expert.shape[0]) + math.sqrt(expert.shape[1]))


def significand_bits(expert: Tensor) -> int | None:
    """Precision the numbers were rounded to, by dtype, or by their bits where a config loads 16-bit files as float32."""
    if expert.dtype in SIGNIFICAND_BITS:
        return SIGNIFICAND_BITS[expert.dtype]
    if expert.dtype not in (torch.float32, torch.float64):
        return None
    for bits, mask in _BITS_BELOW.items():
        if all(_fits(part, mask) for part in row_blocks(expert)):
            return bits
    return None


def _fits(part: Tensor, mask: int) -> bool:
    as_float32 = part.to(torch.float32)
    if part.dtype == torch.float64 and not torch.equal(as_float32.to(torch.float64), part):
        return False
    return not bool((as_float32.contiguous().view(torch.int32) & mask).any())


def ulp_squares(part: Tensor, bits: int) -> Tensor:
    """Squared unit in the last place of every number, in float64; exact zeros have none."""
    mantissa, exponent = torch.frexp(part.to(torch.float32))
    squares = torch.ldexp(torch.ones((), dtype=torch.float64, device=part.device), 2 * (exponent - bits))
    return squares.mul_(mantissa != 0)


def row_blocks(tensor: Tensor) -> list[Tensor]:
    return [tensor[rows] for rows in spans(tensor.shape[0], max(1, BLOCK_ELEMENTS // tensor.shape[1]))]
