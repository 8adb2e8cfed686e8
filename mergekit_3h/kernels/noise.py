"""How much of a task matrix is nothing but the rounding of its checkpoint.

A bfloat16 weight lies up to half a unit in the last place (ulp) from the trained one, so the delta between two
checkpoints carries noise whose singular values end at the Marchenko-Pastur edge s (sqrt m + sqrt d), s^2 its variance.
Singular values under the edge say nothing about the task, yet a fixed rank takes hundreds of them into the
orthogonalisation.

Rounding a weight errs by ulp^2 / 12 in the mean square, but no more than the update itself where that is smaller than
an ulp and is rounded away. The size of the update is read from the weights small enough to show it: weights of one
exponent share one ulp, and the mean square of their deltas is that of the update plus ulp^2 / 12.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS
from mergekit_3h.kernels.workers import spans

SIGNIFICAND_BITS = {torch.bfloat16: 8, torch.float16: 11}
_BITS_BELOW = {8: 0xFFFF, 11: 0x1FFF}

EXPONENTS = 14
"""Exponents told apart below the largest weight's; smaller weights count with the smallest of these."""

SMALLEST_SHARE = 1e-2
"""An exponent that a smaller share of the weights has is too rare to estimate the update from."""

SAMPLE = 1 << 16
"""Weights looked at, evenly scattered over the matrix: the edge comes out within two percent."""


def rounding_edge(expert: Tensor, base: Tensor) -> float:
    """Largest singular value that rounding ``expert`` explains; 0 for a tensor that was not rounded to 16 bits."""
    bits = significand_bits(expert)
    if bits is None:
        return 0.0
    low, high = torch.aminmax(expert)
    largest = int(torch.frexp(torch.maximum(-low, high).to(torch.float32))[1])
    at = torch.arange(0, expert.numel(), _step(expert.numel()), device=expert.device)
    rows, columns = at // expert.shape[1], at % expert.shape[1]
    weights = expert[rows, columns].to(torch.float32)
    below = (largest - torch.frexp(weights)[1]).clamp_(0, EXPONENTS - 1)
    squared = (weights.to(torch.float64) - base[rows, columns]).square_()
    belongs = (below == torch.arange(EXPONENTS, device=expert.device)[:, None]) & (weights != 0)
    belongs = belongs.to(torch.float64)
    counts, squares = belongs.sum(dim=1), belongs @ squared
    # One transfer from the device for both.
    share, square = cast("list[list[float]]", torch.stack([counts, squares]).tolist())  # pyright: ignore
    variance = _rounding_variance(share, square, largest - bits)
    return math.sqrt(variance) * (math.sqrt(expert.shape[0]) + math.sqrt(expert.shape[1]))


def _step(numel: int) -> int:
    """Odd: an even one would meet the same few columns in every row."""
    return numel // SAMPLE | 1


def _rounding_variance(counts: list[float], squares: list[float], largest_ulp: int) -> float:
    """Mean squared rounding error; ``largest_ulp`` is the base-2 logarithm of the largest weight's ulp."""
    total = sum(counts)
    if total == 0:
        return 0.0
    uniform = [4.0 ** (largest_ulp - below) / 12 for below in range(EXPONENTS)]
    update = max(
        (
            square / count - ulp
            for count, square, ulp in zip(counts, squares, uniform, strict=True)
            if count > SMALLEST_SHARE * total
        ),
        default=0.0,
    )
    return sum(count * min(ulp, max(update, 0.0)) for count, ulp in zip(counts, uniform, strict=True)) / total


def number_error(expert: Tensor, dtype: torch.dtype) -> float:
    """Root mean square error of the entries if their last digits in ``dtype`` were made up, from a sample of them.

    A number errs by ulp / sqrt(12), and its ulp is eps / 1.4 of it in the mean square: together about eps / 4.
    """
    step = _step(expert.numel())
    at = torch.arange(0, expert.numel(), step, device=expert.device)
    sample = expert[at // expert.shape[1], at % expert.shape[1]].to(torch.float64)
    return float(sample.square().mean().sqrt()) * torch.finfo(dtype).eps / 4


def significand_bits(expert: Tensor) -> int | None:
    """Precision the numbers were rounded to: by dtype, or by their bits where 16-bit files are loaded as float32."""
    if expert.dtype in SIGNIFICAND_BITS:
        return SIGNIFICAND_BITS[expert.dtype]
    if expert.dtype not in (torch.float32, torch.float64):
        return None
    row_spans = spans(expert.shape[0], max(1, BLOCK_ELEMENTS // expert.shape[1]))
    for bits, mask in _BITS_BELOW.items():
        # The first row gives almost every float32 checkpoint away.
        if _fits(expert[:1], mask) and all(_fits(expert[rows], mask) for rows in row_spans):
            return bits
    return None


def _fits(part: Tensor, mask: int) -> bool:
    as_float32 = part.to(torch.float32)
    if part.dtype == torch.float64 and not torch.equal(as_float32.to(torch.float64), part):
        return False
    return not bool((as_float32.contiguous().view(torch.int32) & mask).any())
