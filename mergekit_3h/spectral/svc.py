"""``svc``: singular value calibration of another merge, arXiv 2602.05536."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.calibration import NOTHING, Calibration, calibrated
from mergekit_3h.kernels.memory import summing_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.truncations import Truncations
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import SpectralMethod

PLAIN_SUM = "task_arithmetic"


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


class SVC(SpectralMethod):
    """Another method's merge, with the singular values lowered where the experts count a direction several times."""

    name = "svc"
    title = "Singular value calibration (SVC)"
    paper = "https://arxiv.org/abs/2602.05536"
    is_linear = False

    combine: str = Field(
        PLAIN_SUM,
        description="What merges before the calibration: task_arithmetic, the weighted sum of the updates, or a "
        "spectral method with its defaults; not svc itself, nor one with all singular values alike (iso_c, iso_cts).",
    )
    alpha: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="Least s_r that an expert counts with. Unset: 1 after a method that decorrelates (tsvm, rtsvm), "
        "else 1 / n (the paper's).",
    )

    @field_validator("combine")
    @classmethod
    def _can_be_calibrated(cls, value: str) -> str:
        allowed = [PLAIN_SUM, *(name for name in registry.names() if name == value and _has_directions(name))]
        if value not in allowed:
            raise OptionError(f"option 'combine': got {value!r}; svc calibrates {', '.join(calibrated_methods())}")
        return value

    @property
    def is_equivariant(self) -> bool:
        return self.combine == PLAIN_SUM or registry.parse_options(self.combine, {}).is_equivariant

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, SVCReport]:
        merged, report = self._combined(tasks.with_exact_result(), weights)
        result, told = calibrated(merged, tasks, self._alpha(len(tasks)))
        return result, _report(told, report)

    def _combined(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, Any]:
        if self.combine == PLAIN_SUM:
            return Truncations(tasks, [None] * len(tasks)).weighted_sum(weights), None
        return registry.parse_options(self.combine, {}).merge(tasks, weights)

    def _alpha(self, experts: int) -> float:
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.combine in ("tsvm", "rtsvm") else 1.0 / experts

    def in_effect(self, option: str, experts: int) -> Any:
        return self._alpha(experts) if option == "alpha" else super().in_effect(option, experts)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        side, own = min(rows, columns), 2 * 8 * rows * columns  # before and after it, in float64
        calibrating = own + summing_bytes(rows, columns, result_itemsize) + 8 * side * side * (experts + 2)
        if self.combine == PLAIN_SUM:
            return calibrating
        merging = registry.parse_options(self.combine, {}).working_bytes(rows, columns, experts, result_itemsize)
        return max(calibrating, merging + own // 4)

    def remarks(self, report: SVCReport) -> Iterator[tuple[int, str]]:
        factors = f"{report.least_factor:.2f} at least, {report.median_factor:.2f} in the median"
        yield logging.DEBUG, f"singular values are scaled by {factors}"
        if report.combined is not None:
            yield from registry.parse_options(self.combine, {}).remarks(report.combined)

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: SVCReport) -> Tensor | None:
        merged: Tensor | None = torch.stack([w * u for w, u in zip(weights, updates, strict=True)]).sum(0)
        if self.combine != PLAIN_SUM:
            merged = registry.parse_options(self.combine, {}).literally(updates, weights, report.combined)
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


def _has_directions(name: str) -> bool:
    return name != SVC.name and not registry.method(name).is_isotropic


def calibrated_methods() -> list[str]:
    """What ``combine`` may be."""
    return [PLAIN_SUM, *(name for name in registry.methods() if _has_directions(name))]


METHOD = SVC
