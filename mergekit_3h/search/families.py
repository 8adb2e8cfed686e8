"""The tensor families of a model for the combination that is asked for, and where they are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mergekit_3h.checkpoints.sources import WeightSource
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.card_memory import free_on
from mergekit_3h.search.components import (
    Combine,
    Component,
    ConstantFamily,
    Dense,
    Factors,
    LinearFamily,
    MergedFamily,
    TensorFamily,
    differences,
)
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import (
    ExpertShare,
    averaged_factor,
    merge_tensor,
    merges_as_matrices,
    tensor_blocks,
    tensor_components,
)

log = logging.getLogger(__name__)


def families(
    names: Sequence[str],
    base: WeightSource,
    experts: Sequence[WeightSource],
    options: SearchOptions,
    method: SpectralMethod | None,
    combine: Combine | None,
    device: torch.device,
) -> dict[str, TensorFamily]:
    """Every tensor as a function of its coefficients. Spectral methods decompose here, once, on ``device``."""
    log.info("%s: preparing %d tensors of %d experts", options.combine, len(names), len(experts))
    made: dict[str, TensorFamily] = {}
    held_at = options.held_at(len(experts))
    for name in names:
        base_tensor = base.tensor(name)
        tensors = {expert.label: expert.tensor(name) for expert in experts}
        if options.combine == "task_arithmetic":
            made[name] = differences(base_tensor, list(tensors.values()))
        elif method is not None and options.combine == method.name and (method.is_linear or held_at is not None):
            made[name] = _decorrelated(name, base_tensor, tensors, method, held_at, device)
        elif combine is not None:
            made[name] = MergedFamily(name, base_tensor, tuple(tensors.values()), combine)
        else:
            raise OptionError(f"option 'combine': got {options.combine!r}, which cannot be searched")
    return made


def _decorrelated(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    method: SpectralMethod,
    held_at: Sequence[float] | None,
    device: torch.device,
) -> LinearFamily:
    """Each expert's component, as U_perp_i S_i V_perp_i^T, and the mean for tensors that are no matrices.

    An expert with coefficient 0 still takes part in the decorrelation, as it does in a merge with weight 0.
    """
    if not merges_as_matrices(name, base, method):
        return differences(base, list(experts.values()), averaged_factor(name, method) / len(experts))
    there = {label: tensor.to(device) for label, tensor in experts.items()}
    shares = tensor_components(name, base.to(device), there, method, held_at=held_at)
    return LinearFamily(base, tuple(_kept(share, base) for share in shares.values()))


def block_families(
    names: Sequence[str],
    base: WeightSource,
    experts: Sequence[WeightSource],
    options: SearchOptions,
    method: SpectralMethod,
    weights: Sequence[float] | None,
    device: torch.device,
) -> dict[str, TensorFamily]:
    """Every matrix as a function of the coefficients of its experts' blocks; others as the method merges them."""
    blocks, factors = options.component_blocks, list(weights or [1.0] * len(experts))
    log.info("%s: %d blocks of each of %d experts in %d tensors", method.name, blocks, len(experts), len(names))
    made: dict[str, TensorFamily] = {}
    for name in names:
        base_tensor = base.tensor(name)
        there = {expert.label: expert.tensor(name).to(device) for expert in experts}
        if not merges_as_matrices(name, base_tensor, method):
            own = dict(zip(there, factors, strict=True))
            merged = merge_tensor(name, base_tensor.to(device), there, own, method).to(base_tensor.device)
            made[name] = ConstantFamily(merged, len(experts) * blocks)
            continue
        shares = tensor_blocks(name, base_tensor.to(device), there, method, blocks, factors)
        kept = [_kept(share.times(factors[i // blocks]), base_tensor) for i, share in enumerate(shares)]
        made[name] = LinearFamily(base_tensor, tuple(kept))
    return made


def _kept(share: ExpertShare, like: Tensor) -> Component:
    """A component as float32 factors or as it is, whichever is smaller."""
    host = torch.device("cpu")
    rank = max(left.shape[-1] for left, _ in share.products)
    if rank * (like.shape[-2] + like.shape[-1]) >= like.shape[-2] * like.shape[-1]:
        return Dense(share.dense().to(host, torch.float32))
    lefts = [pad(left, (0, rank - left.shape[1])) for left, _ in share.products]
    rights = [pad(right, (0, 0, 0, rank - right.shape[0])) for _, right in share.products]
    left, right = (torch.stack(lefts), torch.stack(rights)) if share.is_stack else (lefts[0], rights[0])
    return Factors(left.to(host, torch.float32).contiguous(), right.to(host, torch.float32).contiguous())


def placed(made: Mapping[str, TensorFamily], device: torch.device, memory_gb: float | None) -> dict[str, TensorFamily]:
    """The families on the model's device as far as its memory allows, the others where they are.

    Smallest first: that keeps the number of transfers per candidate low.
    """
    if device.type == "cpu":
        return dict(made)
    if memory_gb is not None:
        room = memory_gb * 1e9
    else:
        room = free_on(device) / 2 if device.type == "cuda" else float("inf")
    kept: dict[str, TensorFamily] = {}
    moved = 0
    for name, family in sorted(made.items(), key=lambda item: item[1].size()):
        room -= family.size()
        kept[name] = family.moved(device) if room >= 0 else family
        moved += room >= 0
    log.info("components of %d of %d tensors are kept on %s", moved, len(made), device)
    return kept
