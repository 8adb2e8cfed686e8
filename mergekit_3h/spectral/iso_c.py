"""``iso_c``: isotropic merging in the common subspace, arXiv 2502.04959, and all between it and task arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.blocks import spread
from mergekit_3h.kernels.isotropic import IsotropicReport, Isotropy, merge_isotropic, preconditioner
from mergekit_3h.kernels.memory import summing_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.block_weights import BlockWeights, block_weights_field, blocks_of
from mergekit_3h.spectral.method import FlooredMethod

AMPLIFICATION_WORTH_A_WORD = 1e3
"""(s_1 / s_k)^(1 - p) from which a remark says that noise is magnified; a percent of noise on real updates moved merges
of condition 1e3 to 7e4 by tens of percent."""


class IsoC(FlooredMethod):
    """The sum of the updates with its singular values made more alike, by one decomposition."""

    name = "iso_c"
    title = "Isotropic merging in the common subspace (Iso-C)"
    paper = "https://arxiv.org/abs/2502.04959"
    is_linear = False
    has_held_components = True
    has_blocks = True
    is_isotropic = True

    power: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="p of M = c U S^p V^T, for the sum U S V^T of the updates: 0 is Iso-C, all singular values alike; "
        "1 is task arithmetic.",
    )
    scale: Literal["norm", "mean"] = Field(
        "norm",
        description="norm: the merged update is as large as the sum of the updates, in the directions that are kept; "
        "mean: its singular values have the mean of the sum's (the paper's), so it is smaller.",
    )

    block_weights: BlockWeights = block_weights_field("singular components")

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, IsotropicReport]:
        return merge_isotropic(tasks, weights, self._isotropy(self._blocks(len(tasks))))

    def held_components(self, tasks: TaskMatrices, weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        return preconditioner(tasks, weights, self._isotropy(self._blocks(len(tasks)))).components()

    def block_components(
        self, tasks: TaskMatrices, blocks: int, weights: Sequence[float]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        return preconditioner(tasks, weights, self._isotropy(None)).block_components(blocks)

    def _isotropy(self, blocks: list[list[float]] | None) -> Isotropy:
        return Isotropy(self.power, self.scale, self.noise_floor, blocks)

    def _blocks(self, experts: int) -> list[list[float]] | None:
        return blocks_of(self.block_weights, experts)

    def require_experts(self, experts: int) -> None:
        self._blocks(experts)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        # Of each expert the vectors and the mask, in float64, and a decomposition with workspace.
        masks = 8 * (2 * experts + 4) * min(rows, columns) ** 2 if self.block_weights.strip() else 0
        return masks + summing_bytes(rows, columns, result_itemsize)

    def work(self, experts: int) -> tuple[float, float]:
        masks = experts if self.block_weights.strip() else 0
        own = 0 if self.power == 1.0 and self.noise_floor == "off" else 1
        return own + masks, 2 * own + 3 * masks

    def remarks(self, report: IsotropicReport) -> Iterator[tuple[int, str]]:
        yield from self.floor_remarks(report.under_edge, report.ranks[0])
        if report.amplification > AMPLIFICATION_WORTH_A_WORD:
            yield (
                logging.INFO,
                f"the smallest direction of the sum is magnified {report.amplification:.1e} times more than the "
                "largest, and noise in it as much; a larger power magnifies less",
            )

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: IsotropicReport) -> Tensor:
        blocks = self._blocks(len(updates)) or [[1.0]] * len(updates)
        masked = [_literally_masked(update, own) for update, own in zip(updates, blocks, strict=True)]
        total = torch.stack([weight * update for weight, update in zip(weights, masked, strict=True)]).sum(0)
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
        rank = report.ranks[0]
        s = s[:rank]
        powered = s**self.power
        if rank:
            powered = powered * (s.mean() / powered.mean() if self.scale == "mean" else s.norm() / powered.norm())
        return u[:, :rank] @ torch.diag(powered) @ vh[:rank]


def _literally_masked(update: Tensor, factors: Sequence[float]) -> Tensor:
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    return u @ torch.diag(s * spread(factors, s.numel(), s)) @ vh


METHOD = IsoC
