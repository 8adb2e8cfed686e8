"""A merge as it is planned: the tensors of the result, and what each is merged from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergekit_3h.checkpoints.headers import StoredTensor
from mergekit_3h.lint.models import NamedModel


@dataclass(frozen=True)
class PlannedInput:
    """One model's part of an output tensor. ``stored`` is None for a tensor that is absent or made of others.

    ``names`` are all that mergekit looks for, ``name`` the first of them.
    """

    model: str
    name: str
    stored: StoredTensor | None
    is_missing: bool = False
    is_made: bool = False
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.other_names)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result, and what it is merged from."""

    name: str
    inputs: tuple[PlannedInput, ...]
    vocabulary_axis: int | None = None
    is_optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return next((given.stored.shape for given in self.inputs if given.stored), ())


@dataclass(frozen=True)
class ResolvedTensor:
    """One tensor of the result with the value that each option has for it, after filters, gradients and defaults."""

    name: str
    shared: dict[str, Any]
    of_models: dict[str, dict[str, Any]]


def source_tensors(plan: list[PlannedTensor], models: list[NamedModel]) -> list[PlannedTensor]:
    """Stored tensors that mergekit converts into planned ones, such as separate experts into fused ones."""
    converted = any(
        given.stored is None and not given.is_missing for t in plan if not t.is_optional for given in t.inputs
    )
    if not converted:
        return []
    used = {given.stored.name for tensor in plan for given in tensor.inputs if given.stored}
    return [tensor for tensor in tensors_of_files(models) if tensor.name not in used]


def tensors_of_files(models: list[NamedModel]) -> list[PlannedTensor]:
    """mergekit-pytorch merges by name; a tensor that one file lacks stops it, unless told otherwise."""
    checkpoints = {model.name: model.checkpoint for model in models if model.checkpoint is not None}
    names = dict.fromkeys(name for checkpoint in checkpoints.values() for name in checkpoint.tensors)
    return [
        PlannedTensor(
            name,
            tuple(
                PlannedInput(model, name, checkpoint.tensors.get(name), name not in checkpoint.tensors)
                for model, checkpoint in checkpoints.items()
            ),
        )
        for name in names
    ]
