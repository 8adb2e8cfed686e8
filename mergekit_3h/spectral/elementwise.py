"""TIES and DARE, which ``svc`` and ``boost`` change: hosts have them as methods of their own under these names.

They are computed here so that both hosts give the same bits, which their own do not: they draw from the process's
random numbers, or compute in the checkpoint's dtype.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.memory import PASSING_BYTES
from mergekit_3h.kernels.sparse_sums import BLOCK_ELEMENTS, CANCELLED, SparseSum, chosen, row_spans_of, sparse_sum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.method import SpectralMethod


@dataclass(frozen=True)
class SparseReport:
    """How the merge of one matrix came about."""

    kept_shares: list[float]
    """Of every expert's entries, without those that are zero."""


class SparseMethod(SpectralMethod):
    """A sum of updates with entries left out."""

    is_linear = False

    density: float
    normalize: bool

    @abstractmethod
    def how(self) -> SparseSum:
        """What the kernel is to do."""

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, SparseReport]:
        merged, shares = sparse_sum(tasks, weights, self.how())
        return merged, SparseReport(shares)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        block = min(rows * columns, max(BLOCK_ELEMENTS, min(rows, columns)))
        return result_itemsize * rows * columns + (PASSING_BYTES + 24 * experts) * block

    def work(self, experts: int) -> tuple[float, float]:
        return 0, 0

    def remarks(self, report: SparseReport) -> Iterator[tuple[int, str]]:
        shares = ", ".join(f"{share:.0%}" for share in report.kept_shares)
        yield logging.DEBUG, f"{shares} of the experts' entries are summed"

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: Any) -> Tensor:
        """Of whole matrices, with the largest entries found by sorting."""
        parts = torch.stack([w * self._left(i, u) for i, (w, u) in enumerate(zip(weights, updates, strict=True))])
        shape = (-1, *[1] * (parts.ndim - 1))
        factors = torch.tensor(list(weights), dtype=parts.dtype).view(shape).expand_as(parts)
        if self.how().elects:
            positive = parts.clamp(min=0).sum(0) >= -parts.clamp(max=0).sum(0)
            agrees = torch.where(positive, parts > 0, parts < 0)
            parts, factors = parts * agrees, factors * agrees
        total, divisor = parts.sum(0), factors.sum(0)
        cancels = divisor.abs() <= CANCELLED * factors.abs().sum(0)
        return total / torch.where(cancels, torch.ones_like(divisor), divisor) if self.normalize else total

    def _left(self, i: int, update: Tensor) -> Tensor:
        how = self.how()
        if how.density >= 1.0:
            return update
        if how.seed is None:
            largest = update.abs().flatten().sort(descending=True).values
            return update * (update.abs() >= largest[max(1, int(how.density * update.numel())) - 1])
        is_wide = update.shape[0] < update.shape[1]
        tall = update.T if is_wide else update
        stays = torch.cat(
            [
                chosen(how.seed, i, rows, tall.shape[1], how.density)
                for rows in row_spans_of((tall.shape[0], tall.shape[1]))
            ]
        )
        return update * (stays.T if is_wide else stays) / how.density


class Ties(SparseMethod):
    """The largest entries of every expert, where their signs agree with the sum's."""

    name = "ties"
    title = "TIES"
    paper = "https://arxiv.org/abs/2306.01708"

    density: float = Field(0.2, gt=0.0, le=1.0, description="Share of each expert's entries that stay, the largest.")
    normalize: bool = Field(
        True, description="Divide every entry by the sum of the weights that it is made of, as the paper does."
    )

    def how(self) -> SparseSum:
        return SparseSum(self.density, None, elects=True, normalizes=self.normalize)


class DareMethod(SparseMethod):
    """Entries of every expert by chance."""

    paper = "https://arxiv.org/abs/2311.03099"
    elects: ClassVar[bool]

    density: float = Field(0.5, gt=0.0, le=1.0, description="Share of each expert's entries that stay, by chance.")
    normalize: bool = Field(False, description="Divide every entry by the sum of the weights that it is made of.")
    seed: int = Field(
        0,
        ge=0,
        description="Where the random numbers start: with the place of the expert in the config and the shape of the "
        "matrix it says which entries stay.",
    )

    def how(self) -> SparseSum:
        return SparseSum(self.density, self.seed, elects=self.elects, normalizes=self.normalize)


class DareTies(DareMethod):
    """Those whose signs agree with the sum's."""

    name = "dare_ties"
    title = "DARE with TIES"
    elects = True


class DareLinear(DareMethod):
    """All of those."""

    name = "dare_linear"
    title = "DARE"
    elects = False


SPARSE: dict[str, type[SparseMethod]] = {each.name: each for each in (Ties, DareTies, DareLinear)}
