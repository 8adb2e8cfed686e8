"""``resmerge``: residual-based spectral merging, arXiv 2606.02252."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.memory import truncating_bytes
from mergekit_3h.kernels.residual_consensus import Consensus, ConsensusReport, merge_by_consensus
from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS, TaskMatrices
from mergekit_3h.spectral.method import TruncatingMethod


class ResMerge(TruncatingMethod):
    """The experts' updates without their leading directions, of a size that their agreement sets."""

    name = "resmerge"
    title = "Residual-based spectral merging (ResMerge)"
    paper = "https://arxiv.org/abs/2606.02252"
    is_linear = False

    noise_floor: Literal["auto", "off"] = Field(
        "auto",
        description="auto takes no direction into a head that bf16/fp16 rounding of the checkpoints alone explains; "
        "float32 checkpoints are not affected.",
    )
    head_rank: int = Field(
        1, ge=1, description="K: how many leading directions of each expert are its head, the others its residual."
    )
    head_share: float = Field(
        0.2,
        ge=0.0,
        allow_inf_nan=False,
        description="rho: how large the merged head is beside the merged residual, where the heads agree.",
    )
    least_exponent: float = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="beta of c^beta, the size of the merged residual for a coherence c of the residuals, where they "
        "are alike; it goes to 1 the less they are.",
    )

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, ConsensusReport]:
        consensus = Consensus(self.head_rank, self.head_share, self.least_exponent)
        return merge_by_consensus(tasks, weights, consensus, self.noise_floor)

    def work(self, experts: int) -> tuple[float, float]:
        return experts, 3 * experts

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        blocks = 16 * experts * min(rows * columns, BLOCK_ELEMENTS)
        vectors = 8 * experts * min(rows, columns) * self.head_rank
        return blocks + vectors + truncating_bytes(rows, columns, 0, result_itemsize)

    def remarks(self, report: ConsensusReport) -> Iterator[tuple[int, str]]:
        yield (
            logging.DEBUG,
            f"coherence {report.coherence:.2f} of the residuals, exponent {report.exponent:.2f}, agreement "
            f"{report.head_agreement:.2f} of the heads",
        )

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: ConsensusReport) -> Tensor:
        heads, residuals = [], []
        for update, weight, rank in zip(updates, weights, report.ranks, strict=True):
            u, s, vh = torch.linalg.svd(weight * update, full_matrices=False)
            heads.append(u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank])
            residuals.append(weight * update - heads[-1])
        n = len(updates)
        q = torch.stack([residual / residual.norm() for residual in residuals])
        direction = q.sum(0) / q.sum(0).norm()
        c = float((q * direction).sum((1, 2)).mean())
        merged = torch.stack(residuals).mean(0)
        if c > 1 / math.sqrt(n):
            beta = 1 - (1 - self.least_exponent) * ((_pairs(q, -1.0) + 1) / 2 + (c + 1) / 2) / 2
            merged = c**beta * torch.stack([residual.norm() for residual in residuals]).mean() * direction
        agreement = _pairs(torch.stack([head / head.norm() for head in heads]), 0.0)
        head = torch.stack(heads).mean(0)
        return merged + self.head_share * agreement * merged.norm() * head / head.norm()


def _pairs(directions: Tensor, least: float) -> float:
    """Mean cosine of every two, each counted with ``least`` at least."""
    n = directions.shape[0]
    found = [max(least, float((directions[i] * directions[j]).sum())) for i in range(n) for j in range(i + 1, n)]
    return sum(found) / len(found) if found else 1.0


METHOD = ResMerge
