"""Is what lies under an expert's rounding edge a part of its update, or rounding and nothing else?

With D_k the part of the update D above the edge,

    T = |D - D_k|^2 / |round(W_0 + D_k) - (W_0 + D_k)|^2

compares what is left with what rounding would have left had the update been D_k. An update of low rank that was merged
into its checkpoint (LoRA) lies wholly above the edge: T is near 1. Of a full fine-tuning much lies under it, and T is
larger. Sums over the tensors of an expert tell the two apart far better than one tensor does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.devices import has_float32
from mergekit_3h.kernels.rounding import significand_bits
from mergekit_3h.kernels.tasks import TaskMatrices

ROUNDING_ALONE = 1.4
"""T of an expert under which rounding alone counts as what lies under its edges: all else there has 0.4 of its energy.

Of single matrices of experts of SmolLM2-135M: nine full fine-tunings 1.50 and more (945 matrices), merged adapters of
rank 16 at a root mean square of 1.2e-3 1.03 to 1.10 (840), at 3.6e-4 1.10 to 1.57, of which 9 % are over 1.4 (210); the
former made smaller 1.06 to 1.19 at 5.8e-4, 1.22 to 1.54 at 2.9e-4, of which 23 % are over 1.4 and the median is 1.35,
and 1.55 to 2.8 at 1.4e-4.

On bfloat16 weights of SmolLM2-135M, T over 12 matrices: LoRA updates of rank 4, 16 and 64 1.01 to 1.12 at a root mean
square of 6e-4 and more, 1.29 to 1.33 at 2.8e-4, and over 2.4, unrecognised, at 1e-4, where much of the update does not
survive. Full updates with singular values like j^-0.5 and j^-0.7 1.6 to 8.4, a real full fine-tuning of rms 3.3e-4
1.7. Steeper ones (j^-1, j^-1.5) come down to 1.1 at 6e-4 and count as rounding alone: little of them is under the edge.
So do flat ones at 2.4e-3 (1.08), of which the edge leaves nearly everything."""

_DTYPES = {8: torch.bfloat16, 11: torch.float16}


@dataclass(frozen=True)
class Remainder:
    """What is left of an update without its part above the edge. Those of several tensors add up."""

    left_square: float = 0.0
    """|D - D_k|^2."""
    rounding_square: float = 0.0
    """|round(W_0 + D_k) - (W_0 + D_k)|^2."""

    def __add__(self, other: Remainder) -> Remainder:
        return Remainder(self.left_square + other.left_square, self.rounding_square + other.rounding_square)

    @property
    def ratio(self) -> float:
        """T; infinite where rounding explains nothing of what is left."""
        if self.left_square == 0.0:
            return 0.0
        return self.left_square / self.rounding_square if self.rounding_square else float("inf")

    @property
    def is_rounding_alone(self) -> bool:
        """Whether the noise floor cuts nothing of the update away: for one expert, over all of its tensors."""
        return self.ratio < ROUNDING_ALONE


def _precision(tasks: TaskMatrices) -> torch.dtype:
    """What the products are computed in: the few digits that T needs float32 has, if the numbers themselves are no
    finer. Squares are float64, lest those of tiny numbers vanish."""
    is_enough = tasks.number_dtype == torch.float32 and has_float32(tasks.device)
    return torch.float32 if is_enough else torch.float64


@torch.no_grad()
def remainder(tasks: TaskMatrices, i: int, right: Tensor) -> Remainder:
    """Of task i, with ``right`` the right singular vectors of delta_i above its edge, as ``Spectrum.right`` has them.

    One pass over the matrix with two products of its size by the rank. The tasks need a base.
    """
    base = tasks.base
    if base is None:
        raise ValueError("what rounding leaves depends on the weights: the tasks need a base")
    if right.shape[1] == tasks.columns:
        return Remainder()  # all of the update is above the edge
    bits, dtype = significand_bits(tasks.experts[i]), _precision(tasks)
    left = torch.zeros((), dtype=torch.float64, device=tasks.device)
    rounding, right = torch.zeros_like(left), right.to(dtype)
    for rows, delta in zip(tasks.row_spans(), tasks.blocks(i, dtype), strict=True):
        part = (delta @ right) @ right.T
        left += (delta - part).to(torch.float64).square_().sum()
        if bits is not None:
            weights = part.add_(base[:, rows].T if tasks.is_wide else base[rows])
            rounding += (weights.to(_DTYPES[bits]).to(dtype) - weights).to(torch.float64).square_().sum()
    return Remainder(float(left), float(rounding))
