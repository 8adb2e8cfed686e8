"""Which coefficient each tensor takes: one per expert, or one per expert and group of layers.

Groups are told apart by mergekit's own rule for parameter filters (the first filter that is a substring of the
tensor's name wins), so coefficients found here mean the same in a mergekit config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergekit_3h.errors import ModelError
from mergekit_3h.search.axes import Axis

_LAYER = re.compile(r"^(?P<prefix>(?:[^.]*\.)*?)(?P<number>\d+)\.")

REST = "rest"
"""The group of all tensors outside the layers: embeddings, final norm, head."""


@dataclass(frozen=True)
class Group:
    """Tensors that share their coefficients. Without filters: all that no earlier group takes."""

    name: str
    filters: tuple[str, ...]

    def takes(self, tensor: str) -> bool:
        return not self.filters or any(pattern in tensor for pattern in self.filters)


@dataclass(frozen=True)
class Layout:
    """The meaning of a coefficient vector: all experts of the first group, then of the second, and so on, then the
    options of the method that are searched. No groups: the weights are not searched."""

    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    options: tuple[Axis, ...] = ()
    blocks: int = 0
    """Blocks of each expert's singular components that have a coefficient of their own; 0: the expert has one."""

    @property
    def dimension(self) -> int:
        return self.weights + len(self.options)

    @property
    def weights(self) -> int:
        """How many of the coefficients are weights of experts, or of blocks of them."""
        return len(self.columns) * len(self.groups)

    @property
    def columns(self) -> tuple[str, ...]:
        """What has a coefficient in every group: an expert, or each block of its components."""
        if not self.blocks:
            return self.experts
        return tuple(f"{expert} #{block}" for expert in self.experts for block in range(1, self.blocks + 1))

    def names(self) -> list[str]:
        """A name for every coefficient."""
        options = [axis.name for axis in self.options]
        if len(self.groups) == 1:
            return [*self.columns, *options]
        return [*(f"{column} @ {group.name}" for group in self.groups for column in self.columns), *options]

    def group_index(self, tensor: str) -> int:
        """The group whose coefficients the tensor takes."""
        return next(index for index, group in enumerate(self.groups) if group.takes(tensor))

    def offset(self, tensor: str) -> int:
        """Where the tensor's coefficients begin in the vector; there are as many as columns."""
        return self.group_index(tensor) * len(self.columns)

    def of_tensor(self, coefficients: Sequence[float], tensor: str) -> list[float]:
        """The weights of one tensor, a column each; none where they are not searched."""
        if not self.groups:
            return []
        begin = self.offset(tensor)
        return list(coefficients[begin : begin + len(self.columns)])

    def option_values(self, coefficients: Sequence[float]) -> dict[str, float]:
        """The options of the method that are searched, by name."""
        return {axis.name: value for axis, value in zip(self.options, coefficients[self.weights :], strict=True)}

    def by_group(self, coefficients: Sequence[float]) -> dict[str, dict[str, float]]:
        """Coefficients as {group: {column: value}}, for reports and plots."""
        values = iter(coefficients)
        return {group.name: {column: next(values) for column in self.columns} for group in self.groups}

    def mergekit_weights(self, coefficients: Sequence[float]) -> dict[str, float | list[dict[str, float | str]]]:
        """The ``weight`` parameter of each expert as a mergekit config takes it; none where they are not searched."""
        groups = self.by_group(coefficients)
        if not groups or self.blocks:
            return {}
        if len(self.groups) == 1:
            return dict(next(iter(groups.values())))
        weights: dict[str, float | list[dict[str, float | str]]] = {}
        for expert in self.experts:
            conditions: list[dict[str, float | str]] = []
            for group in self.groups:
                value = groups[group.name][expert]
                conditions += [{"filter": pattern, "value": value} for pattern in group.filters]
                if not group.filters:
                    conditions.append({"value": value})
            weights[expert] = conditions
        return weights

    def by_block(self, coefficients: Sequence[float]) -> list[tuple[Group, list[list[float]]]]:
        """The coefficients of the blocks of every expert, by group."""
        groups = self.by_group(coefficients)
        return [(group, divided(list(groups[group.name].values()), self.blocks)) for group in self.groups]


def divided(values: list[float], size: int) -> list[list[float]]:
    """The coefficients of each expert's blocks, of which there are ``size``."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def layout_of(
    tensors: Iterable[str],
    experts: Sequence[str],
    granularity: int,
    options: Sequence[Axis] = (),
    *,
    with_weights: bool = True,
    blocks: int = 0,
) -> Layout:
    """The layout of a model with these tensors; ``granularity`` 0 is one group, k is groups of k layers.

    A layer is known by the path before the first number in a tensor's name (``model.layers.3.``). Models with
    several stacks of layers (encoder and decoder, vision and text) get groups of their own for each.
    """
    if not with_weights:
        return Layout(tuple(experts), (), tuple(options))
    if granularity == 0:
        return Layout(tuple(experts), (Group("all", ()),), tuple(options), blocks)
    intended = {name: _layer(name) for name in tensors}
    stacks: dict[str, set[int]] = {}
    for layer in intended.values():
        if layer is not None:
            stacks.setdefault(layer[0], set()).add(layer[1])
    if not stacks:
        raise ModelError(
            f"layer_granularity is {granularity}, but no tensor's name has a layer number (such as model.layers.3.); "
            "set layer_granularity to 0"
        )
    # A prefix may end another one's name (model.layers. in vision_model.layers.), so the longer is asked first.
    groups: list[Group] = []
    for prefix in sorted(stacks, key=lambda prefix: (-len(prefix), prefix)):
        groups += _stack_groups(prefix, sorted(stacks[prefix]), granularity)
    if None in intended.values():
        groups.append(Group(REST, ()))
    layout = Layout(tuple(experts), tuple(groups), tuple(options), blocks)
    _require_unambiguous(layout, intended)
    return layout


def _layer(tensor: str) -> tuple[str, int] | None:
    match = _LAYER.match(tensor)
    return (match["prefix"], int(match["number"])) if match else None


def _stack_groups(prefix: str, numbers: list[int], size: int) -> list[Group]:
    members = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    return [
        Group(
            f"{prefix}{part[0]}" if len(part) == 1 else f"{prefix}{part[0]}-{part[-1]}",
            tuple(f"{prefix}{number}." for number in part),
        )
        for part in members
    ]


def _require_unambiguous(layout: Layout, intended: dict[str, tuple[str, int] | None]) -> None:
    for name, layer in intended.items():
        taken = layout.groups[layout.group_index(name)]
        expected = f"{layer[0]}{layer[1]}." if layer else None
        if (expected in taken.filters) if expected else (taken.name == REST):
            continue
        raise ModelError(
            f"tensor {name!r} would fall to the group {taken.name!r}: mergekit's substring filters cannot tell this "
            "model's layers apart. Set layer_granularity to 0."
        )
