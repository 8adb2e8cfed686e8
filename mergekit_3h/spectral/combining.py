"""What methods have in common that change another method's merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.memory import summing_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.truncations import Truncations
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import SpectralMethod

PLAIN_SUM = "task_arithmetic"

COMBINED = (
    "task_arithmetic, the weighted sum of the updates, or a spectral method with its defaults; not one with singular "
    "values alike (iso_c, iso_cts, boost), nor svc."
)
"""What ``combine`` may be, in its description."""


class CombiningMethod(SpectralMethod):
    """Another method's merge, taken in float64 before it is decomposed again."""

    is_linear = False

    combine: str = PLAIN_SUM

    @field_validator("combine")
    @classmethod
    def _is_there_to_be_changed(cls, value: str) -> str:
        if value != PLAIN_SUM and not (value in registry.names() and has_directions(value)):
            raise OptionError(f"option 'combine': got {value!r}; {cls.name} takes {', '.join(combined_methods())}")
        return value

    @property
    def is_equivariant(self) -> bool:
        return self.combine == PLAIN_SUM or self.inner().is_equivariant

    def inner(self) -> SpectralMethod:
        """The method that merges; there is none for the plain sum."""
        return registry.parse_options(self.combine, {})

    def combined(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, Any]:
        """The merge to be changed, in float64, and its report; None for the plain sum."""
        exact = tasks.with_exact_result()
        if self.combine == PLAIN_SUM:
            return Truncations(exact, [None] * len(tasks)).weighted_sum(weights), None
        return self.inner().merge(exact, weights)

    def combined_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int, changing: int) -> int:
        """``working_bytes``, if changing the merge takes ``changing`` beyond its decomposition."""
        own = 2 * 8 * rows * columns  # before and after it, in float64
        whole = own + summing_bytes(rows, columns, result_itemsize) + changing
        if self.combine == PLAIN_SUM:
            return whole
        return max(whole, self.inner().working_bytes(rows, columns, experts, result_itemsize) + own // 4)

    def work(self, experts: int) -> tuple[float, float]:
        decompositions, products = (0, 0) if self.combine == PLAIN_SUM else self.inner().work(experts)
        return decompositions + 1, products + experts + 2

    def combined_remarks(self, report: Any) -> Iterator[tuple[int, str]]:
        if report is not None:
            yield from self.inner().remarks(report)

    def combined_literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: Any) -> Tensor | None:
        if self.combine == PLAIN_SUM:
            return torch.stack([w * u for w, u in zip(weights, updates, strict=True)]).sum(0)
        return self.inner().literally(updates, weights, report)


def has_directions(name: str) -> bool:
    """Whether a method's merges have singular vectors that are defined, and it is not one of ours that needs them."""
    method = registry.method(name)
    return not (method.is_isotropic or issubclass(method, CombiningMethod))


def combined_methods() -> list[str]:
    """What ``combine`` may be."""
    return [PLAIN_SUM, *(name for name in registry.methods() if has_directions(name))]
