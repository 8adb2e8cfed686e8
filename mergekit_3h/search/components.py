"""One tensor of the merged model as a function of its coefficients.

For linear combinations that is W(lambda) = W_0 + sum_i lambda_i C_i. The components C_i are computed once; after
that a candidate costs an addition for each, and a derivative an inner product: dL/dlambda_i = <dL/dW, C_i>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.losses.draws import drawing_from

Combine = Callable[[str, Tensor, Sequence[Tensor], Sequence[float]], Tensor]
"""A merge method of the host: tensor name, base, experts and their weights in, merged tensor out."""


class Component(Protocol):
    """C_i of one tensor."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is kept as."""
        ...

    def add_to(self, result: Tensor, weight: float, base: Tensor) -> None:
        """Add weight * C_i. ``base`` is W_0 on the device and in the data type of ``result``."""
        ...

    def inner_product(self, gradient: Tensor, base: Tensor) -> Tensor:
        """<gradient, C_i>, in float64. ``base`` is W_0 on the device and in the data type of ``gradient``."""
        ...

    def moved(self, device: torch.device) -> Component: ...


@dataclass(frozen=True)
class Dense:
    """A component as it is."""

    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def add_to(self, result: Tensor, weight: float, base: Tensor) -> None:
        result.add_(self.values.to(result), alpha=weight)

    def inner_product(self, gradient: Tensor, base: Tensor) -> Tensor:
        return (self.values.to(gradient) * gradient).sum(dtype=torch.float64)

    def moved(self, device: torch.device) -> Dense:
        return Dense(self.values.to(device))


@dataclass(frozen=True)
class Difference:
    """scale * (expert - base), kept as the expert's checkpoint has it: half the size of the exact difference."""

    expert: Tensor
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.expert,)

    def add_to(self, result: Tensor, weight: float, base: Tensor) -> None:
        result.add_(self.expert.to(result) - base, alpha=weight * self.scale)

    def inner_product(self, gradient: Tensor, base: Tensor) -> Tensor:
        return self.scale * ((self.expert.to(gradient) - base) * gradient).sum(dtype=torch.float64)

    def moved(self, device: torch.device) -> Difference:
        return Difference(self.expert.to(device), self.scale)


@dataclass(frozen=True)
class Factors:
    """left @ right, of low rank: (..., m, k) and (..., k, d)."""

    left: Tensor
    right: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.right)

    def add_to(self, result: Tensor, weight: float, base: Tensor) -> None:
        left, right = self.left.to(result), self.right.to(result)
        if result.ndim == 2:
            result.addmm_(left, right, alpha=weight)
        else:
            result.add_(left @ right, alpha=weight)

    def inner_product(self, gradient: Tensor, base: Tensor) -> Tensor:
        projected = gradient @ self.right.to(gradient).mT
        return (projected * self.left.to(gradient)).sum(dtype=torch.float64)

    def moved(self, device: torch.device) -> Factors:
        return Factors(self.left.to(device), self.right.to(device))


class TensorFamily(Protocol):
    """All candidates of one tensor."""

    def at(self, coefficients: Sequence[float], device: torch.device) -> Tensor:
        """The merged tensor before it is rounded to the model's data type."""
        ...

    def inner_products(self, gradient: Tensor) -> list[Tensor]:
        """<gradient, C_i> for every expert."""
        ...

    def size(self) -> int:
        """Bytes it is kept in."""
        ...

    def moved(self, device: torch.device) -> TensorFamily: ...


@dataclass(frozen=True)
class LinearFamily:
    """W_0 + sum_i lambda_i C_i."""

    base: Tensor
    components: tuple[Component, ...]

    def at(self, coefficients: Sequence[float], device: torch.device) -> Tensor:
        base = self.base.to(device, precise(self.base.dtype))
        result = base.clone()
        for component, coefficient in zip(self.components, coefficients, strict=True):
            if coefficient:
                component.add_to(result, coefficient, base)
        return result

    def inner_products(self, gradient: Tensor) -> list[Tensor]:
        gradient = gradient.to(precise(gradient.dtype))
        base = self.base.to(gradient)
        return [component.inner_product(gradient, base) for component in self.components]

    def size(self) -> int:
        tensors = [self.base, *(tensor for component in self.components for tensor in component.tensors)]
        return sum(tensor.nbytes for tensor in tensors)

    def moved(self, device: torch.device) -> LinearFamily:
        return LinearFamily(self.base.to(device), tuple(part.moved(device) for part in self.components))


@dataclass(frozen=True)
class ConstantFamily:
    """A tensor that no coefficient changes: one that has no singular components, where blocks of them are searched."""

    merged: Tensor
    coefficients: int

    def at(self, coefficients: Sequence[float], device: torch.device) -> Tensor:
        return self.merged.to(device)

    def inner_products(self, gradient: Tensor) -> list[Tensor]:
        return [gradient.new_zeros((), dtype=torch.float64)] * self.coefficients

    def size(self) -> int:
        return self.merged.nbytes

    def moved(self, device: torch.device) -> ConstantFamily:
        return ConstantFamily(self.merged.to(device), self.coefficients)


@dataclass(frozen=True)
class MergedFamily:
    """A combination that is not linear: every candidate is merged anew, in memory, by the host's method."""

    name: str
    base: Tensor
    experts: tuple[Tensor, ...]
    combine: Combine

    def at(self, coefficients: Sequence[float], device: torch.device) -> Tensor:
        experts = [expert.to(device, copy=True) for expert in self.experts]
        # Methods such as dare draw at random. With the same draws for every candidate the score is a function of the
        # coefficients, and a search can be repeated.
        with drawing_from(crc32(self.name.encode()), device):
            return self.combine(self.name, self.base.to(device, copy=True), experts, list(coefficients))

    def inner_products(self, gradient: Tensor) -> list[Tensor]:
        raise OptionError(
            "this combination is not linear in its weights, so the gradient solver cannot be used; take solver 'cmaes'"
        )

    def size(self) -> int:
        return sum(tensor.nbytes for tensor in (self.base, *self.experts))

    def moved(self, device: torch.device) -> MergedFamily:
        experts = tuple(expert.to(device) for expert in self.experts)
        return MergedFamily(self.name, self.base.to(device), experts, self.combine)


def differences(base: Tensor, experts: Sequence[Tensor], scale: float = 1.0) -> LinearFamily:
    """C_i = scale * (W_i - W_0): task arithmetic, and with scale 1/n the mean that vectors get in tsvm and rtsvm."""
    return LinearFamily(base, tuple(Difference(expert, scale) for expert in experts))


def precise(dtype: torch.dtype) -> torch.dtype:
    """What candidates are computed in: float32, or float64 where a checkpoint is."""
    return torch.promote_types(dtype, torch.float32)
