"""Merges in memory. Every candidate is W_0 + lambda M, and M is computed once for all lambdas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import MergedTensor, merge_tensor

State = dict[str, Tensor]
"""A model's weights by name."""

SUM = "task_arithmetic"
FIRST_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """A way to merge: the sum of the updates, a spectral method of this package, or a method of mergekit's."""

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    is_spectral: bool = True

    def update(self, base: State, experts: Mapping[str, State]) -> Merged:
        """M for every tensor."""
        if self.method == SUM:
            return Merged({name: _sum([e[name] - own for e in experts.values()]) for name, own in base.items()})
        return self._spectral(base, experts) if self.is_spectral else self._by_mergekit(base, experts)

    def _spectral(self, base: State, experts: Mapping[str, State]) -> Merged:
        method, weights = parse_options(self.method, self.options), dict.fromkeys(experts, 1.0)
        seen: list[MergedTensor] = []
        update: State = {}
        for name, own in base.items():
            tensors = {label: expert[name] for label, expert in experts.items()}
            update[name] = merge_tensor(name, own, tensors, weights, method, watch=seen.append) - own
        reports = [(one.report, min(one.base.shape)) for one in seen if one.report is not None]
        return Merged(update, mean(sum(report.ranks) / side for report, side in reports))

    def _by_mergekit(self, base: State, experts: Mapping[str, State]) -> Merged:
        from mergekit import merge_methods

        torch.manual_seed(0)  # some of them drop weights at random
        update: State = {}
        for name, own in base.items():
            tensors = [own.clone(), *(expert[name].clone() for expert in experts.values())]
            ids = ["base", *experts]
            merged = merge_methods.merge_tensors(
                tensors, self.method, parameters=_per_expert(self.options, ids), ids=ids, base_index=0, name=name
            )
            update[name] = merged - own
        return Merged(update)


@dataclass(frozen=True)
class Merged:
    """M, and the number of directions kept over the smaller side, a mean of the matrices, where a method has ranks."""

    update: State
    rank: float | None = None


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _per_expert(options: Mapping[str, Any], ids: list[str]) -> dict[str, Any]:
    """mergekit's weights and densities are an expert's own, the other options are the merge's."""
    own = ("weight", "density", "gamma", "epsilon")
    return {name: dict.fromkeys(ids[1:], value) if name in own else value for name, value in options.items()}


@torch.no_grad()
def become(model: nn.Module, base: State, update: State, scale: float, dtype: torch.dtype) -> nn.Module:
    """The model with the weights W_0 + lambda M, rounded to ``dtype`` as a checkpoint of it would be."""
    for name, parameter in model.named_parameters():
        parameter.copy_((base[name] + scale * update[name]).to(dtype))
    return model


def rounded(model: nn.Module, dtype: torch.dtype) -> State:
    """The weights as a checkpoint in ``dtype`` has them, in float32."""
    return {name: parameter.detach().to(dtype).to(torch.float32) for name, parameter in model.named_parameters()}


def surviving(base: State, experts: Mapping[str, State], update: State) -> dict[str, float]:
    """<M, D_i> / |D_i|^2 over the whole model: how much of every expert's update is in M."""
    shares: dict[str, float] = {}
    for label, expert in experts.items():
        deltas = {name: expert[name] - own for name, own in base.items()}
        product = sum(float((delta * update[name]).sum()) for name, delta in deltas.items())
        shares[label] = product / sum(float(delta.square().sum()) for delta in deltas.values())
    return shares


def tuned(score: Callable[[float], float], trials: int) -> dict[float, float]:
    """The score of so many scales, the same number whatever the method; the best one is what is looked for.

    Three scales an octave apart, then always the best one's neighbours, at a root of the distance once both are known.
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
    return known
