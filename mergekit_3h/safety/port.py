"""What a host has to give for a safety merge: its models, its method, and a place for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mergekit_3h.checkpoints.sources import WeightSource
from mergekit_3h.safety.combination import Combination

BASE_LABEL = "base"
"""What reports and traces call the base in every host."""


@dataclass(frozen=True)
class OpenedModels:
    """The models of a merge, with nothing read but what costs little. Labels are those of ``SafetyHost.names``."""

    base: WeightSource
    experts: tuple[WeightSource, ...]
    tokenizers: Mapping[str, Any]
    """By label; None where a model has none."""
    module: nn.Module
    """The base's architecture. It is not searched: it has no weights, or belongs to the host."""
    stored: torch.dtype | None
    """The data type of the base's weights."""


class FixedMerge(Protocol):
    """The method with fixed weights and options, exactly as the host merges with it."""

    @property
    def spec(self) -> Any:
        """mergekit's declaration of the method."""
        ...

    def not_merged(self, names: Sequence[str]) -> list[str]:
        """Which of the model's tensors the host would not merge."""
        ...

    def samples(self) -> Iterable[str]:
        """A tensor for every different set of parameters."""
        ...

    def combine(
        self,
        name: str,
        base: Tensor,
        experts: Sequence[Tensor],
        weights: Sequence[float] | None,
        options: Mapping[str, float] = ...,
    ) -> Tensor:
        """One tensor with other weights (None: those) and other options than those that were fixed, recording
        nothing."""
        ...


Fixed = TypeVar("Fixed", bound=FixedMerge, covariant=True)


class SafetyHost(Protocol[Fixed]):
    """A toolkit that merges the models."""

    @property
    def combination(self) -> Combination: ...

    @property
    def names(self) -> Mapping[str, str]:
        """What reports call the models, by label; the first is the base."""
        ...

    @property
    def device(self) -> Any:
        """Where candidates are evaluated in this process."""
        ...

    @property
    def silent(self) -> bool | None:
        """Whether no progress is shown; None: only on a terminal."""
        ...

    def opened(self) -> OpenedModels:
        """The models. What is wrong with them is an error that names the model."""
        ...

    def searched_module(self, device: Any, dtype: str) -> nn.Module:
        """A module with the base's weights that candidates are written into; ``auto``: in their own data type."""
        ...

    def fixed(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> Fixed:
        """The merge with these ``weight`` parameters by label, which may have filters, unless the weights are not
        searched, and with these options of the method."""
        ...

    def static(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any] | None:
        """The mergekit config of that merge; None if mergekit could not find the models."""
        ...

    def report_folder(self) -> Path | None:
        """Where this process leaves the report, if anywhere."""
        ...

    def reopening(self) -> Callable[[], SafetyHost[Any]] | None:
        """Makes the same host in another process, to which it is sent; None if that cannot be."""
        ...
