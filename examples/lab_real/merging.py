"""Merges in memory. Every candidate is W_0 + lambda M, and M is computed once for all lambdas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

import torch
from mechanism import Matrix, of_merge
from torch import Tensor, nn

from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import MergedTensor, merge_tensor

State = dict[str, Tensor]
"""A model's weights by name, in float32 whatever the checkpoint is in."""

SUM = "task_arithmetic"
FIRST_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Merged:
    """M, and what the method's reports say of it."""

    update: State
    about: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A way to merge: the sum of the experts' updates, or a spectral method with its options."""

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def update(self, base: State, experts: Mapping[str, State]) -> Merged:
        """M for every tensor."""
        if self.method == SUM:
            every = experts.values()
            return Merged({name: torch.stack([e[name] - own for e in every]).sum(0) for name, own in base.items()})
        method, weights = parse_options(self.method, self.options), dict.fromkeys(experts, 1.0)
        seen: list[Matrix] = []

        def watch(one: MergedTensor) -> None:
            if one.report is not None:
                seen.append(Matrix(one.report, min(one.base.shape)))

        update: State = {}
        for name, own in base.items():
            tensors = {label: expert[name] for label, expert in experts.items()}
            update[name] = merge_tensor(name, own, tensors, weights, method, watch=watch) - own
        return Merged(update, of_merge(seen))


def weights_of(folder: Path, like: nn.Module) -> State:
    """The checkpoint's tensors under the names of the model's parameters; tied ones once."""
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    return {name: stored[name].to(torch.float32) for name, _ in like.named_parameters()}


@torch.no_grad()
def become(model: nn.Module, base: State, update: State | None = None, scale: float = 0.0) -> None:
    """Write W_0 + lambda M into the model, rounded to its dtype as a checkpoint of the merge would be."""
    for name, parameter in model.named_parameters():
        parameter.copy_(base[name] if update is None else base[name] + scale * update[name])


def surviving(base: State, experts: Mapping[str, State], update: State) -> dict[str, float]:
    """<M, D_i> / |D_i|^2 over the whole model: how much of every expert's update is in M."""
    shares: dict[str, float] = {}
    for label, expert in experts.items():
        product = square = 0.0
        for name, own in base.items():
            delta = expert[name] - own
            product += float((delta * update[name]).sum(dtype=torch.float64))
            square += float(delta.square().sum(dtype=torch.float64))
        shares[label] = product / square
    return shares


def sizes(base: State, expert: State) -> dict[str, float]:
    """The norm of an expert's update over all matrices, and over the base's norm."""
    names = [name for name, own in base.items() if own.ndim == 2]
    update, own = (
        sum(float(one.square().sum(dtype=torch.float64)) for one in tensors) ** 0.5
        for tensors in ([expert[name] - base[name] for name in names], [base[name] for name in names])
    )
    return {"norm": update, "relative": update / own}


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
