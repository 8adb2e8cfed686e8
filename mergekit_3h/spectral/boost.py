"""``boost``: Subspace Boosting of another merge, arXiv 2506.16506."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mergekit_3h.kernels.boosting import boosted
from mergekit_3h.kernels.noise_floors import task_edges
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.combining import COMBINED, PLAIN_SUM, CombiningMethod
from mergekit_3h.spectral.method import off_as_yaml_reads_it


@dataclass(frozen=True)
class BoostReport:
    """How the merge of one matrix came about."""

    ranks: list[int]
    """Directions of the merged update that rounding does not explain."""
    noise_edges: list[float]
    decompositions: list[str]
    kept: int
    """Of these, how many kept their singular value; the others were raised to the least of them."""
    growth: float
    """Of the merged update, in the Frobenius norm."""
    combined: Any
    """The report of the method that merged; None for the plain sum."""


class Boost(CombiningMethod):
    """Another method's merge, with its small singular values raised to one of the large ones."""

    name = "boost"
    title = "Subspace Boosting"
    paper = "https://arxiv.org/abs/2506.16506"
    is_isotropic = True

    combine: str = Field(PLAIN_SUM, description=f"What merges before: {COMBINED}")
    beta: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Singular values keep their size up to the first at which they add up to this share of all; the "
        "others are raised to that one. 0 makes all of them as large as the largest, 1 raises none.",
    )
    noise_floor: Literal["auto", "off"] = Field(
        "auto",
        description="auto raises no direction of a task_arithmetic merge that bf16/fp16 rounding of the checkpoints "
        "explains; the spectral methods have floors of their own.",
    )

    _as_yaml_reads_it = field_validator("noise_floor", mode="before")(off_as_yaml_reads_it)

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, BoostReport]:
        edges = task_edges(tasks, "off" if self.combine != PLAIN_SUM else self.noise_floor)
        edge = math.hypot(*(weight * each for weight, each in zip(weights, edges, strict=True)))
        merged, report = self.combined(tasks, weights)
        result, told = boosted(merged, tasks, weights, self.beta, edge)
        return result, BoostReport([told.rank], edges, ["exact"], told.kept, told.growth, report)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        return self.combined_bytes(rows, columns, experts, result_itemsize, 8 * min(rows, columns) ** 2)

    def remarks(self, report: BoostReport) -> Iterator[tuple[int, str]]:
        yield (
            logging.DEBUG,
            f"{report.kept} of {report.ranks[0]} directions were large enough; raising the others made the update "
            f"{report.growth:.1f} times as large",
        )
        yield from self.combined_remarks(report.combined)

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: BoostReport) -> Tensor | None:
        merged = self.combined_literally(updates, weights, report.combined)
        if merged is None:
            return None
        u, s, vh = torch.linalg.svd(merged, full_matrices=False)
        rank = report.ranks[0]
        share = s[:rank].cumsum(0) / s[:rank].sum()
        least = s[:rank][share >= self.beta][0] if rank else s.new_zeros(())
        raised = torch.cat([s[:rank].clamp(min=least), s[rank:]])
        return u @ torch.diag(raised) @ vh


METHOD = Boost
