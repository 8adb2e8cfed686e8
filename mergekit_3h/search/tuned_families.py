"""Tensors as functions of a method's options: merged anew when they change, but for the factor on the update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from mergekit_3h.checkpoints.sources import WeightSource
from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.kernels.passages import is_out_of_memory
from mergekit_3h.losses.draws import drawing_from
from mergekit_3h.search.axes import Axis
from mergekit_3h.search.components import TensorFamily, precise
from mergekit_3h.search.tuning import FACTOR
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import merge_tensor

log = logging.getLogger(__name__)

MergeUnder = Callable[[str, Tensor, Sequence[Tensor], "Sequence[float] | None", Mapping[str, float]], Tensor]
"""A merge of one tensor under other options: its name, base, experts, their weights (None: those that the host has for
them) and the options in, the merged tensor out."""


@dataclass(frozen=True)
class Tuning:
    """The options of a method that are searched, and the merge under them. ``scales``: lambda is a factor on M."""

    axes: tuple[Axis, ...]
    merge: MergeUnder
    scales: bool


class UnmergeableError(ThreeHError):
    """A method refuses the options of a candidate, which therefore has no score; the others may have one."""


class TunedFamily:
    """W_0 + lambda M, with M kept for the options that it was made with: another lambda costs an addition.

    M is merged from float32 copies of 16-bit tensors, as the rounding of a merged tensor would be most of M.
    """

    def __init__(self, name: str, base: Tensor, experts: Sequence[Tensor], tuning: Tuning) -> None:
        self.base = base
        self._name, self._experts, self._tuning = name, list(experts), tuning
        self._options = [axis.name for axis in tuning.axes]
        self._made_with: tuple[list[float], dict[str, float]] | None = None
        self._update = base.new_empty(0)

    def at(self, coefficients: Sequence[float], device: torch.device) -> Tensor:
        count = len(coefficients) - len(self._options)
        weights = list(coefficients[:count])
        options = dict(zip(self._options, coefficients[count:], strict=True))
        factor = 1.0
        if self._tuning.scales and FACTOR in options:
            factor, options[FACTOR] = options[FACTOR], 1.0
        base = self.base.to(device, precise(self.base.dtype))
        if (weights, options) != self._made_with:
            self._update = (self._merged(base, weights or None, options) - base).to(self.base.device)
            self._made_with = (weights, options)
        return torch.add(base, self._update.to(device), alpha=factor)

    def _merged(self, base: Tensor, weights: Sequence[float] | None, options: Mapping[str, float]) -> Tensor:
        experts = [expert.to(base, copy=True) for expert in self._experts]
        try:
            with drawing_from(crc32(self._name.encode()), base.device):
                return self._tuning.merge(self._name, base.clone(), experts, weights, options).to(base)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            said = ", ".join(f"{name} {value:g}" for name, value in options.items())
            raise UnmergeableError(f"{self._name} cannot be merged with {said}: {error}") from error

    def inner_products(self, gradient: Tensor) -> list[Tensor]:
        raise OptionError("options of a method have no derivatives; take solver 'climb'")

    def size(self) -> int:
        update = self.base.numel() * precise(self.base.dtype).itemsize
        return update + sum(tensor.nbytes for tensor in (self.base, *self._experts))

    def moved(self, device: torch.device) -> TunedFamily:
        experts = [expert.to(device) for expert in self._experts]
        return TunedFamily(self._name, self.base.to(device), experts, self._tuning)


def tuned_families(
    names: Sequence[str], base: WeightSource, experts: Sequence[WeightSource], tuning: Tuning
) -> dict[str, TensorFamily]:
    """Every tensor as a function of the weights, where they are searched, and of the options."""
    searched = ", ".join(axis.name for axis in tuning.axes)
    log.info("searching %s: %d tensors of %d experts are merged in memory", searched, len(names), len(experts))
    return {
        name: TunedFamily(name, base.tensor(name), [expert.tensor(name) for expert in experts], tuning)
        for name in names
    }


def spectral_merge(method: SpectralMethod) -> MergeUnder:
    """The merge of a spectral method without a host: weights that are not searched are 1."""
    fields = {field.alias or key: key for key, field in type(method).model_fields.items()}

    def merge(
        name: str,
        base: Tensor,
        experts: Sequence[Tensor],
        weights: Sequence[float] | None,
        options: Mapping[str, float],
    ) -> Tensor:
        changed = method.model_copy(update={fields[option]: value for option, value in options.items()})
        labels = [str(i) for i in range(len(experts))]
        factors = dict(zip(labels, weights or [1.0] * len(experts), strict=True))
        return merge_tensor(name, base, dict(zip(labels, experts, strict=True)), factors, changed)

    return merge
