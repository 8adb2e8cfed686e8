"""``cart``: centred and truncated task vectors, arXiv 2412.12153."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.centred import CentredReport, centred_components, merge_centred, most_directions
from mergekit_3h.kernels.memory import truncating_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.method import TruncatingMethod


class CART(TruncatingMethod):
    """The mean of the experts' updates, and of what each has beyond it the leading directions."""

    name = "cart"
    title = "Centred and truncated task vectors (CART)"
    paper = "https://arxiv.org/abs/2412.12153"

    rank_share: float = Field(
        0.08,
        gt=0.0,
        le=1.0,
        description="p: share of the rank that each expert's difference from the mean is cut to. The paper: 0.04 to "
        "0.16.",
    )
    gain: float = Field(
        1.0,
        allow_inf_nan=False,
        description="Factor on the experts' differences from the mean, the paper's lambda; lambda here multiplies the "
        "mean too.",
    )

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, CentredReport]:
        return merge_centred(tasks, weights, self.rank_share, self.gain, self.noise_floor)

    def components(self, tasks: TaskMatrices) -> list[tuple[Tensor, Tensor]]:
        return centred_components(tasks, self.rank_share, self.gain, self.noise_floor)

    def work(self, experts: int) -> tuple[float, float]:
        return experts, 3 * experts

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        return truncating_bytes(rows, columns, experts, result_itemsize)

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: CentredReport) -> Tensor:
        stacked = torch.stack(list(updates))
        merged = torch.zeros_like(updates[0])
        for update, weight in zip(updates, weights, strict=True):
            u, s, vh = torch.linalg.svd(update - stacked.mean(0), full_matrices=False)
            rank = most_directions(s.numel(), self.rank_share)
            truncated = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
            merged = merged + weight * (update / len(updates) + self.gain * truncated)
        return merged


METHOD = CART
