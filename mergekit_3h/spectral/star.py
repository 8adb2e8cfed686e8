"""``star``: spectral truncation and rescaling, arXiv 2502.10339."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.memory import truncating_bytes
from mergekit_3h.kernels.rescaled_truncations import RescaledReport, merge_rescaled, rescaled_components
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.method import TruncatingMethod


class STAR(TruncatingMethod):
    """The mean of the experts' updates, each cut to its leading singular values and rescaled to what it lost."""

    name = "star"
    title = "Spectral truncation and rescaling (STAR)"
    paper = "https://arxiv.org/abs/2502.10339"

    eta: float = Field(
        0.4,
        gt=0.0,
        le=1.0,
        description="Keep as few leading singular values of each expert as hold this share of the sum of all; 1 keeps "
        "all of them.",
    )

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, RescaledReport]:
        return merge_rescaled(tasks, weights, self.eta, self.noise_floor)

    def components(self, tasks: TaskMatrices) -> list[tuple[Tensor, Tensor]]:
        return rescaled_components(tasks, self.eta, self.noise_floor)

    def work(self, experts: int) -> tuple[float, float]:
        return experts, 3 * experts

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        return truncating_bytes(rows, columns, experts, result_itemsize)

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: RescaledReport) -> Tensor:
        total = torch.zeros_like(updates[0])
        for update, weight in zip(updates, weights, strict=True):
            u, s, vh = torch.linalg.svd(update, full_matrices=False)
            rank = int(torch.searchsorted(s.cumsum(0), self.eta * s.sum())) + 1
            total += weight * s.sum() / s[:rank].sum() * u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
        return total / len(updates)


METHOD = STAR
