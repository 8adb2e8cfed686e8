"""What the experts' updates tell before a merge: how much of them rounding took, and which are nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import sqrt
from typing import TYPE_CHECKING

from mergekit_3h.checkpoints.headers import tensor_reader
from mergekit_3h.kernels.rounding import FEW_CHANGED, RoundingToll, rounding_toll
from mergekit_3h.kernels.whole_tensors import dot_products, is_finite
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.models import NamedModel

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_THE_SAME = 0.05
"""Distance of two updates, relative to the larger, under which their experts count as near duplicates. A heuristic:
experts of different data are about 1.4 apart, checkpoints of one training a few hundred steps apart 0.2 and more."""


def update_findings(models: Sequence[NamedModel]) -> Iterator[Finding]:
    """Reads the matrices of the base and of all experts once, one of each in memory at a time."""
    whole = [model for model in models if model.is_whole and not model.lora]
    base = next((model for model in whole if model.is_base), None)
    experts = [model for model in whole if not model.is_base]
    if base is None or not experts:
        return
    tolls = [RoundingToll() for _ in experts]
    dots = [[0.0] * len(experts) for _ in experts]
    for weights, tensors in _matrices(base, experts):
        tolls = [toll + rounding_toll(tensor, weights) for toll, tensor in zip(tolls, tensors, strict=True)]
        for i, row in enumerate(dot_products(tensors, weights)):
            dots[i] = [known + new for known, new in zip(dots[i], row, strict=True)]
    for expert, toll in zip(experts, tolls, strict=True):
        yield from _on_rounding(expert, toll)
    for i, j in combinations(range(len(experts)), 2):
        yield from _on_likeness(experts[i], experts[j], dots[i][i], dots[j][j], dots[i][j])


def _matrices(base: NamedModel, experts: Sequence[NamedModel]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The base's matrices with those of every expert, where all have one of the name, the shape and finite numbers."""
    assert base.checkpoint is not None
    read_base = _reader(base)
    readers = [_reader(expert) for expert in experts]
    for name, stored in base.checkpoint.tensors.items():
        found = [expert.checkpoint.tensors.get(name) for expert in experts if expert.checkpoint is not None]
        if len(stored.shape) < 2 or any(other is None or other.shape != stored.shape for other in found):
            continue
        tensors = [read(name) for read in (read_base, *readers)]
        if all(tensor.is_floating_point() and tensor.numel() and is_finite(tensor) for tensor in tensors):
            weights, *others = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
            yield weights, others


def _reader(model: NamedModel) -> Callable[[str], Tensor]:
    assert model.checkpoint is not None
    return tensor_reader(model.checkpoint)


def _on_rounding(expert: NamedModel, toll: RoundingToll) -> Iterator[Finding]:
    if toll.lost_square == 0.0:
        return
    changed, distance = toll.changed_share, toll.distance
    is_few = changed < FEW_CHANGED
    yield Finding(
        "warning" if is_few else "note",
        "rounded-update",
        f"{expert.name} was saved in 16 bits: {changed:.0%} of its matrices' weights differ from the base's, and the "
        f"saved update is about {distance:.0%} away from the trained one",
        where=expert.where,
        advice="merge its float32 checkpoint or adapter, if there is one; what rounding took is not in these files"
        if is_few
        else "",
        model=expert.name,
    )


def _on_likeness(first: NamedModel, second: NamedModel, one: float, other: float, dot: float) -> Iterator[Finding]:
    larger = max(one, other)
    distance = sqrt(max(0.0, one + other - 2 * dot) / larger) if larger else 0.0
    if 0.0 < distance < NEARLY_THE_SAME:
        yield Finding(
            "warning",
            "near-duplicates",
            f"the updates of {first.name} and {second.name} are nearly the same: {distance:.1%} of their size apart",
            where=second.where,
            advice="leave one out: a sum counts it twice, and tsvm and rtsvm blow up what little distinguishes the two",
            model=second.name,
        )
