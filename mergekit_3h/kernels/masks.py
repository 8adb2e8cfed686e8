"""Blocks of every task's singular components with a factor each, in a sum of the tasks: D = sum_i w_i sum_b m_ib D_ib.

With V_ib the right singular vectors of block b of delta_i, the largest first, D_ib = delta_i V_ib V_ib^T. What is left
of delta_i beside its components of any size belongs to the last block, so that the D_ib add up to delta_i whatever its
rank, and equal factors need no decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.blocks import block_slices, spread
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.spectra import exact_spectrum
from mergekit_3h.kernels.sums import UpdateSum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


@dataclass(frozen=True)
class Components:
    """The right singular vectors of a task, as columns, the largest first; those of no size are left out."""

    right: Tensor

    def projected(self, block: int, blocks: int, onto: Tensor) -> Tensor:
        """V_ib V_ib^T ``onto``; for the last block all that no other one has."""
        if block < blocks - 1:
            own = self.right[:, block_slices(self.right.shape[1], blocks)[block]]
            return own @ (own.T @ onto)
        others = self.right[:, : block_slices(self.right.shape[1], blocks)[block].start]
        return onto - others @ (others.T @ onto)

    def masked(self, factors: Sequence[float]) -> Tensor:
        """sum_b m_b V_ib V_ib^T."""
        side, rank = self.right.shape
        gains = spread(factors, rank, self.right) - factors[-1]
        rest = factors[-1] * torch.eye(side, dtype=self.right.dtype, device=self.right.device)
        return rest.addmm_(self.right * gains, self.right.T)


def components_of(tasks: TaskMatrices, which: Sequence[int]) -> dict[int, Components]:
    """Those of some tasks."""
    found: dict[int, Components] = {}
    rule = RankRule(tasks.full_rank, tasks.full_rank, noise_edge=0.0, energy=1.0)

    def find(i: int) -> None:
        found[i] = Components(exact_spectrum(tasks, i, rule).right)

    run_all(tasks.device, [partial(find, i) for i in which])
    return found


class MaskedSum(UpdateSum):
    """D with factors on the tasks' blocks."""

    def __init__(self, tasks: TaskMatrices, weights: Sequence[float], blocks: Sequence[Sequence[float]]) -> None:
        super().__init__(tasks, weights)
        self.reach = [weight * max(map(abs, own)) for weight, own in zip(self.weights, blocks, strict=True)]
        self._factors = {i: own[0] for i, own in enumerate(blocks) if len(set(own)) == 1}
        found = components_of(tasks, [i for i in range(len(tasks)) if i not in self._factors])
        self._masks = {i: components.masked(blocks[i]) for i, components in found.items()}

    def part(self, i: int, rows: slice) -> Tensor:
        block = super().part(i, rows)
        return block * self._factors[i] if i in self._factors else block @ self._masks[i]
