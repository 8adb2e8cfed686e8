"""``iso_c``: isotropic merging in the common subspace, arXiv 2502.04959, and all between it and task arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.isotropic import IsotropicReport, held_components, merge_isotropic
from mergekit_3h.kernels.memory import summing_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
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

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, IsotropicReport]:
        return merge_isotropic(tasks, weights, self.power, self.scale, self.noise_floor)

    def held_components(self, tasks: TaskMatrices, weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        return held_components(tasks, weights, self.power, self.scale, self.noise_floor)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        return summing_bytes(rows, columns, result_itemsize)

    def work(self, experts: int) -> tuple[float, float]:
        return (0.0, 0.0) if self.power == 1.0 and self.noise_floor == "off" else (1.0, 2.0)

    def remarks(self, report: IsotropicReport) -> Iterator[tuple[int, str]]:
        yield from self.floor_remarks(report.under_edge, report.ranks[0])
        if report.amplification > AMPLIFICATION_WORTH_A_WORD:
            yield (
                logging.INFO,
                f"the smallest direction of the sum is magnified {report.amplification:.1e} times more than the "
                "largest, and noise in it as much; a larger power magnifies less",
            )

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: IsotropicReport) -> Tensor:
        total = torch.stack([weight * update for weight, update in zip(weights, updates, strict=True)]).sum(0)
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
        rank = report.ranks[0]
        s = s[:rank]
        powered = s**self.power
        if rank:
            powered = powered * (s.mean() / powered.mean() if self.scale == "mean" else s.norm() / powered.norm())
        return u[:, :rank] @ torch.diag(powered) @ vh[:rank]


METHOD = IsoC
