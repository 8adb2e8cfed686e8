"""Merges in memory. Every candidate is W_0 + lambda M, and M is computed once for all lambdas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn

from mergekit_3h.spectral.registry import names, option_names, parse_options
from mergekit_3h.spectral.tensors import merge_tensor

State = dict[str, Tensor]
"""A model's weights by name."""

SUM = "task_arithmetic"
FIRST_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """A way to merge: the sum of the experts' updates, or a spectral method with its options."""

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def update(self, base: State, experts: Mapping[str, State]) -> State:
        """M for every tensor."""
        if self.method == SUM:
            return {name: sum(expert[name] - own for expert in experts.values()) for name, own in base.items()}
        method, weights = parse_options(self.method, self.options), dict.fromkeys(experts, 1.0)
        found: State = {}
        for name, own in base.items():
            tensors = {label: expert[name] for label, expert in experts.items()}
            found[name] = merge_tensor(name, own, tensors, weights, method) - own
        return found


def rows() -> list[Row]:
    """The sum, and every spectral method that is installed, also without its noise floor and its outlier weights."""
    found = [Row(SUM, SUM)]
    for name in names():
        found.append(Row(name, name))
        if "noise_floor" in option_names(name):
            found.append(Row(f"{name}, no floor", name, {"noise_floor": "off"}))
        if "outlier_weighting" in option_names(name):
            found.append(Row(f"{name}, no outlier weights", name, {"outlier_weighting": "none"}))
    return found


@torch.no_grad()
def become(model: nn.Module, base: State, update: State, scale: float, dtype: torch.dtype) -> nn.Module:
    """The model with the weights W_0 + lambda M, rounded to ``dtype`` as a checkpoint of it would be."""
    for name, parameter in model.named_parameters():
        parameter.copy_((base[name] + scale * update[name]).to(dtype))
    return model


def rounded(model: nn.Module, dtype: torch.dtype) -> State:
    """The weights as a checkpoint in ``dtype`` has them, in float32."""
    return {name: parameter.detach().to(dtype).to(torch.float32) for name, parameter in model.named_parameters()}


def tuned(score: Callable[[float], float], trials: int) -> float:
    """The scale with the highest score after so many trials, the same number whatever the method.

    Three scales an octave apart, then always the best one's neighbours, at half the distance once both are known.
    """
    known = {scale: score(scale) for scale in FIRST_SCALES[:trials]}
    factor = 2.0
    while len(known) < trials:
        best = max(known, key=known.__getitem__)
        untried = [scale for scale in (best / factor, best * factor) if not any(isclose(scale, k) for k in known)]
        if not untried:
            factor **= 0.5
            continue
        known[untried[0]] = score(untried[0])
    return max(known, key=known.__getitem__)
