"""``swudi``: closed forms of WUDI merging, arXiv 2606.07289."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.closed_forms import ClosedFormReport, Pull, closed_form_components, merge_closed_form
from mergekit_3h.kernels.memory import MOST_PASSING_BYTES
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.method import SpectralMethod


class SWUDI(SpectralMethod):
    """The merged update whose difference from every expert's is least seen by that expert's own input directions."""

    name = "swudi"
    title = "Spectral WUDI merging (SWUDI, SWUDI-A)"
    paper = "https://arxiv.org/abs/2606.07289"

    start: Literal["mean", "sum", "zero"] = Field(
        "mean",
        description="What the merge has in directions that are not pulled: the mean or the sum of the updates, or "
        "nothing. With sum a lambda of about 1 / n is usual.",
    )
    filter: Literal["sharp", "exponential"] = Field(
        "sharp",
        description="sharp puts the closed form into the leading directions (SWUDI-A); exponential goes the share "
        "1 - exp(-filter_time l) of the way there, as gradient descent does (SWUDI).",
    )
    filter_time: float = Field(
        300.0,
        gt=0.0,
        allow_inf_nan=False,
        description="t of filter: exponential; the eigenvalues l sum to the number of experts. The paper: 300 to 1800.",
    )
    rank: Literal["participation", "gavish_donoho", "noise_edge"] = Field(
        "participation",
        description="How many leading directions: participation, (sum s)^2 / sum s^2 of their singular values s; "
        "gavish_donoho, those above its threshold for noise of unknown size; noise_edge, those that bf16/fp16 rounding "
        "of the checkpoints does not explain, all of float32 checkpoints.",
    )

    def pull(self, experts: int) -> Pull:
        start = {"mean": 1.0 / experts, "sum": 1.0, "zero": 0.0}[self.start]
        return Pull(start, self.rank, math.inf if self.filter == "sharp" else self.filter_time)

    @property
    def is_equivariant(self) -> bool:
        return True

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, ClosedFormReport]:
        return merge_closed_form(tasks, weights, self.pull(len(tasks)))

    def components(self, tasks: TaskMatrices) -> list[tuple[Tensor, Tensor]]:
        return closed_form_components(tasks, self.pull(len(tasks)))

    def work(self, experts: int) -> tuple[float, float]:
        return 1, 2 * experts + 1

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        """The Gram matrices are those of the input side, also where it is the longer one."""
        return 8 * columns * columns * (experts + 5) + 2 * MOST_PASSING_BYTES + result_itemsize * rows * columns

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: ClosedFormReport) -> Tensor:
        rank, pull = report.ranks[0], self.pull(len(updates))
        shares = [1 / update.square().sum() if bool(update.any()) else 0.0 for update in updates]
        stacked = torch.cat([update * share**0.5 for update, share in zip(updates, shares, strict=True)])
        _, s, vh = torch.linalg.svd(stacked, full_matrices=False)
        q, squares = vh[:rank].T, s[:rank] ** 2
        pulled = torch.diag(pull.filtered(squares))
        target, total = torch.zeros_like(updates[0]), torch.zeros_like(updates[0])
        for update, weight, share in zip(updates, weights, shares, strict=True):
            total = total + weight * update
            target = target + weight * share * update @ update.T @ update
        first = pull.start * total
        return first - first @ q @ pulled @ q.T + target @ q @ (pulled / squares) @ q.T


METHOD = SWUDI
