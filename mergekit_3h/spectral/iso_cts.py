"""``iso_cts``: isotropic merging in common and task-specific subspaces, arXiv 2502.04959."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.common_and_specific import CommonSpecificReport, merge_common_and_specific
from mergekit_3h.kernels.memory import STORED_ASPECT, summing_bytes, working_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import polar_factor
from mergekit_3h.spectral.method import FlooredMethod


class IsoCTS(FlooredMethod):
    """Leading directions of the sum of the updates, and each expert's own beside them, all of one size."""

    name = "iso_cts"
    title = "Isotropic merging in common and task-specific subspaces (Iso-CTS)"
    paper = "https://arxiv.org/abs/2502.04959"
    is_linear = False
    is_isotropic = True

    common_fraction: float = Field(
        0.8,
        ge=0.0,
        le=1.0,
        description="Share of the rank that the sum's leading directions get; the experts divide the rest among them.",
    )

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, CommonSpecificReport]:
        return merge_common_and_specific(tasks, weights, self.common_fraction, self.noise_floor)

    def work(self, experts: int) -> tuple[float, float]:
        return experts + 3, 3 * experts + 3

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        side = min(rows, columns)
        shares = 8 * side * side * (experts + 2 + STORED_ASPECT)
        summing = summing_bytes(rows, columns, result_itemsize)
        return shares + max(summing, working_bytes(rows, columns, side, result_itemsize))

    def remarks(self, report: CommonSpecificReport) -> Iterator[tuple[int, str]]:
        yield from self.floor_remarks(report.under_edge, sum(report.ranks))

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: CommonSpecificReport) -> Tensor:
        *own, common = report.ranks
        weighted = [weight * update for weight, update in zip(weights, updates, strict=True)]
        u_c, s_c, vh_c = torch.linalg.svd(torch.stack(weighted).sum(0), full_matrices=False)
        u_c = u_c[:, :common]
        parts = []
        for update, rank in zip(weighted, own, strict=True):
            u, s, vh = torch.linalg.svd(update - u_c @ (u_c.T @ update), full_matrices=False)
            parts.append((u[:, :rank], s[:rank], vh[:rank]))
        u, s, vh = zip(*parts, (u_c, s_c[:common], vh_c[:common]), strict=True)
        values = torch.cat(s)
        mean = values.mean() if values.numel() else 0.0
        return mean * polar_factor(torch.cat(u, 1)) @ polar_factor(torch.cat(vh, 0))


METHOD = IsoCTS
