"""What saving a checkpoint in 16 bits did to its entries.

A weight is saved as the nearest multiple of its unit in the last place (ulp), which is one for all weights of one
exponent. An update larger than an ulp is rounded by ulp^2 / 12 in the mean square; a smaller one is mostly rounded away
and costs no more than itself. The base is taken to be what the expert was trained from, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS
from mergekit_3h.kernels.values import floats
from mergekit_3h.kernels.workers import spans

SIGNIFICAND_BITS = {torch.bfloat16: 8, torch.float16: 11}
_BITS_BELOW = {8: 0xFFFF, 11: 0x1FFF}
SMALLEST_EXPONENT = {8: -125, 11: -13}
"""By ``torch.frexp``, of the smallest normal number of the format: smaller ones have its ulp."""

EXPONENTS = 14
"""Exponents told apart below the largest weight's; smaller weights count with the smallest of these."""

SMALLEST_SHARE = 1e-2
"""An exponent that a smaller share of the weights has is too rare to estimate the update from."""

SAMPLE = 1 << 16
"""Weights looked at, evenly scattered over the matrix: what is estimated from them comes out within two percent."""

FEW_CHANGED = 0.5
"""Share of the weights that differ from the base's under which a user is warned. A heuristic: of the full fine-tunings
seen to change fewer, rounding had taken more than 0.6 of the update."""

SERIES = 64
"""Terms of the series for the error of rounding."""


@dataclass(frozen=True)
class RoundingToll:
    """How much of an update its checkpoint lost to rounding. Those of several tensors add up."""

    weights: float = 0.0
    changed: float = 0.0
    """Weights that are not the base's."""
    update_square: float = 0.0
    """Sum of the squares of the update before it was rounded, as estimated."""
    lost_square: float = 0.0
    """Sum of the squares of what rounding changed it by."""

    def __add__(self, other: RoundingToll) -> RoundingToll:
        return RoundingToll(
            self.weights + other.weights,
            self.changed + other.changed,
            self.update_square + other.update_square,
            self.lost_square + other.lost_square,
        )

    @property
    def changed_share(self) -> float:
        return self.changed / self.weights if self.weights else 0.0

    @property
    def update_mean_square(self) -> float:
        return self.update_square / self.weights if self.weights else 0.0

    @property
    def distance(self) -> float:
        """Between the saved update and the one before rounding, relative to the latter."""
        return math.sqrt(self.lost_square / self.update_square) if self.update_square else 0.0


def rounding_toll(expert: Tensor, base: Tensor) -> RoundingToll:
    """For a matrix: the share of weights changed by count in a sample, the rest for an update of Gaussian entries."""
    count = float(expert.numel())
    weights, deltas = _sampled(expert, base)
    changed = count * float((deltas != 0).to(torch.float64).mean())
    bits = significand_bits(expert)
    if bits is None:
        return RoundingToll(count, changed, count * float(deltas.square().mean()), 0.0)
    bins = _bins(weights, deltas, bits)
    update = _update_square(bins)
    lost = sum(n * ulp_square * _error_square(update / ulp_square) for n, _, ulp_square in bins)
    return RoundingToll(count, changed, count * update, count * lost / max(1.0, sum(n for n, _, _ in bins)))


def update_mean_square(expert: Tensor, base: Tensor, bits: int) -> float:
    """Of the update before rounding, as the weights show it whose ulp is small enough."""
    return _update_square(_bins(*_sampled(expert, base), bits))


def delta_square(expert: Tensor, base: Tensor) -> float:
    """Sum of the squares of the entries of their difference."""
    return expert.numel() * float(_sampled(expert, base)[1].square().mean())


def _sampled(expert: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly scattered weights and their updates, in float64, on the CPU: there are few."""
    weights = _sample(expert)
    return weights, weights - _sample(base)


def _sample(tensor: Tensor) -> Tensor:
    # An odd step: an even one would meet the same few columns in every row.
    step = tensor.numel() // SAMPLE | 1
    if tensor.is_contiguous():
        return tensor.view(-1)[::step].cpu().to(torch.float64)
    at = torch.arange(0, tensor.numel(), step, device=tensor.device)
    return tensor[at // tensor.shape[1], at % tensor.shape[1]].cpu().to(torch.float64)


Bin = tuple[float, float, float]
"""Of the sampled weights of one exponent: how many, the mean square of their deltas, and ulp^2."""


def _bins(weights: Tensor, deltas: Tensor, bits: int) -> list[Bin]:
    is_zero = weights == 0
    exponents = torch.frexp(weights)[1].masked_fill_(is_zero, SMALLEST_EXPONENT[bits])
    exponents.clamp_(min=SMALLEST_EXPONENT[bits])
    largest = int(exponents.max())
    # Zeros have an ulp and no exponent: they are counted in a bin of their own, behind the others.
    below = (largest - exponents).clamp_(0, EXPONENTS - 1).masked_fill_(is_zero, EXPONENTS)
    counts = torch.bincount(below, minlength=EXPONENTS + 1)[:EXPONENTS]
    squares = torch.bincount(below, weights=deltas.square(), minlength=EXPONENTS + 1)[:EXPONENTS]
    return [
        (count, square / count, 4.0 ** (largest - bits - i))
        for i, (count, square) in enumerate(zip(floats(counts.to(torch.float64)), floats(squares), strict=True))
        if count
    ]


def _update_square(bins: list[Bin]) -> float:
    """The mean square of deltas is that of the update and ulp^2 / 12, where the ulp is no larger than the update."""
    total = sum(count for count, _, _ in bins)
    seen = [
        (count, square - ulp_square / 12, ulp_square)
        for count, square, ulp_square in bins
        if count > SMALLEST_SHARE * total
    ]
    most = max((update for _, update, _ in seen), default=0.0)
    # Which ulps are that small is told by the largest estimate: those from larger ulps are too low.
    clear = [(count, update) for count, update, ulp_square in seen if ulp_square <= most]
    if not clear:
        return max(0.0, most)
    return sum(count * update for count, update in clear) / sum(count for count, _ in clear)


def _error_square(update: float) -> float:
    """Mean square error of rounding a Gaussian number of mean square ``update`` to whole numbers."""
    # From the Fourier series of the sawtooth's square; a small number is rounded to 0 and errs by itself.
    terms = ((-1) ** k * math.exp(-2 * (math.pi * k) ** 2 * update) / (math.pi * k) ** 2 for k in range(1, SERIES))
    return min(update, 1 / 12 + sum(terms)) if update > 0 else 0.0


def number_error(expert: Tensor, dtype: torch.dtype) -> float:
    """Root mean square error of the entries if their last digits in ``dtype`` were made up, from a sample of them.

    A number errs by ulp / sqrt(12), and its ulp is eps / 1.4 of it in the mean square: together about eps / 4.
    Numbers of a float32 file that are computed with in float64 have the last digits of float32.
    """
    sample = _sample(expert)
    is_single = torch.equal(sample.to(torch.float32).to(torch.float64), sample)
    return float(sample.square().mean().sqrt()) * torch.finfo(torch.float32 if is_single else dtype).eps / 4


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
