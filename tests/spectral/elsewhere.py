"""Merges on a device that is not the CPU, in a process of their own: torch keeps the pretended device for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pretended_device import pretended

from mergekit_3h.spectral import registry
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.low_rank import LowRankUpdates, Route, merge_low_rank
from mergekit_3h.spectral.tensors import merge_tensor, tensor_components
from mergekit_3h.testing.updates import checkpoints, factors, low_rank, normal


def merge_is_the_same(
    method: str, options: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype, *, rank: int | None = None
) -> bool:
    """Whether a tensor merged on the device has the bits of the same on the CPU. It raises where places are mixed."""
    parsed = registry.parse_options(method, options)
    base, experts = checkpoints(shape[-2:], 3, dtype) if len(shape) > 1 else _vectors(shape, dtype)
    if len(shape) > 2:
        base = base.expand(shape).contiguous()
        experts = {label: expert.expand(shape).contiguous() for label, expert in experts.items()}
    if rank is not None:
        experts = {label: base + low_rank(shape[-2:], rank, i).to(dtype) for i, label in enumerate(experts)}
    weights = dict.fromkeys(experts, 1.0)
    here = merge_tensor("w", base, experts, weights, parsed)
    with pretended() as device:
        moved = {label: expert.to(device) for label, expert in experts.items()}
        there = merge_tensor("w", base.to(device), moved, weights, parsed)
        return there.device == device and torch.equal(there.cpu(), here)


def _vectors(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    base = normal((1, *shape), 0)[0]
    return base.to(dtype), {str(i): (base + normal((1, *shape), i)[0] / 50).to(dtype) for i in range(1, 4)}


def components_stay_there(method: str) -> bool:
    """Whether what a search takes of a method is on the device, and the CPU's but for the order of sums in float64."""
    parsed = registry.parse_options(method, {})
    base, experts = checkpoints((24, 40), 3, torch.float32)
    held = [1.0] * len(experts) if parsed.has_held_components else None
    here = tensor_components("w", base, experts, parsed, held_at=held)
    with pretended() as device:
        moved = {label: expert.to(device) for label, expert in experts.items()}
        there = tensor_components("w", base.to(device), moved, parsed, held_at=held)
        dense = {label: share.dense() for label, share in there.items()}
        return all(
            dense[label].device == device and relative_error(dense[label].cpu(), here[label].dense()) < 1e-11
            for label in here
        )


def adapters_are_merged_there(method: str, route: Route) -> bool:
    """Whether adapters' factors, which files leave on the CPU, are merged where the base is."""
    parsed = registry.parse_options(method, {})
    base = normal((40, 56), 77)
    labels = [f"expert{i}" for i in range(3)]
    updates = {label: factors((40, 56), 3, i) for i, label in enumerate(labels)}
    given = LowRankUpdates("w", updates, dict.fromkeys(labels, 1.0))
    here = merge_low_rank(base, given, parsed, route=route)
    with pretended() as device:
        there = merge_low_rank(base.to(device), given, parsed, route=route)
        return there.device == device and torch.equal(there.cpu(), here)
