"""``svc``: singular value calibration of another merge, arXiv 2602.05536."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mergekit_3h.kernels.calibration import NOTHING, Calibration, calibrated
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.combining import COMBINED, PLAIN_SUM, CombiningMethod


@dataclass(frozen=True)
class SVCReport:
    """How the merge of one matrix came about."""

    ranks: list[int]
    """Directions of the merged update."""
    decompositions: list[str]
    least_factor: float
    median_factor: float
    combined: Any
    """The report of the method that merged; None for the plain sum."""


class SVC(CombiningMethod):
    """Another method's merge, with the singular values lowered where the experts count a direction several times."""

    name = "svc"
    title = "Singular value calibration (SVC)"
    paper = "https://arxiv.org/abs/2602.05536"

    combine: str = Field(PLAIN_SUM, description=f"What merges before the calibration: {COMBINED}")
    alpha: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="Least s_r that an expert counts with. Unset: 1 after a method that decorrelates (tsvm, rtsvm), "
        "else 1 / n (the paper's).",
    )

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, SVCReport]:
        merged, report = self.combined(tasks, weights)
        result, told = calibrated(merged, tasks, self._alpha(len(tasks)))
        return result, _report(told, report)

    def _alpha(self, experts: int) -> float:
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.combine in ("tsvm", "rtsvm") else 1.0 / experts

    def in_effect(self, option: str, experts: int) -> Any:
        return self._alpha(experts) if option == "alpha" else super().in_effect(option, experts)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        calibrating = 8 * min(rows, columns) ** 2 * (experts + 2)
        return self.combined_bytes(rows, columns, experts, result_itemsize, calibrating)

    def remarks(self, report: SVCReport) -> Iterator[tuple[int, str]]:
        factors = f"{report.least_factor:.2f} at least, {report.median_factor:.2f} in the median"
        yield logging.DEBUG, f"singular values are scaled by {factors}"
        yield from self.combined_remarks(report.combined)

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: SVCReport) -> Tensor | None:
        merged = self.combined_literally(updates, weights, report.combined)
        if merged is None:
            return None
        u, s, vh = torch.linalg.svd(merged, full_matrices=False)
        calibrated_values = torch.zeros_like(s)
        for r in range(report.ranks[0]):
            own = u[:, r] @ merged
            divisor = 0.0
            for update in updates:
                part = u[:, r] @ update
                square = float(part @ part)
                is_there = square > NOTHING * float(update.square().sum())
                divisor += max(self._alpha(len(updates)), float(own @ part) / square if is_there else 0.0)
            calibrated_values[r] = len(updates) / divisor * s[r]
        return u @ torch.diag(calibrated_values) @ vh


def _report(told: Calibration, combined: Any) -> SVCReport:
    return SVCReport([told.rank], ["exact"], told.least_factor, told.median_factor, combined)


METHOD = SVC
