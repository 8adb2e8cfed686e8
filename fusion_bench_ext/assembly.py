"""The merged model as a module: the reference's architecture around the merged tensors."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from fusion_bench_ext.models import OpenModel, tie_again
from mergekit_3h.errors import ModelError


def build_module(reference: OpenModel, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module like ``reference``'s with ``tensors`` as its weights; ``reference`` keeps its own.

    Buffers that no checkpoint stores (rotary frequencies) are copied, tied weights are tied again, and nothing is
    left on the meta device.
    """
    module = _without_weights(reference.module)
    weights = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    known = module.state_dict(keep_vars=True)
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for alias in (name, *reference.ties.get(name, ())):
            # One Parameter under all names of a tied weight keeps modules without a tie_weights() tied, too.
            state[alias] = weights[name] if isinstance(known.get(alias), nn.Parameter) else tensor
    unknown = module.load_state_dict(state, strict=False, assign=True).unexpected_keys
    tie_again(module)
    left = [name for name, tensor in _all_tensors(module) if tensor.is_meta]
    if unknown or left:
        raise ModelError(
            f"the merged tensors do not fit the architecture of {reference.label}: "
            f"{len(unknown)} have no place in it ({unknown[:3]}), {len(left)} of its own are missing ({left[:3]})"
        )
    return module.cpu()


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device, so that copying a large model costs no memory."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    return deepcopy(module, memo)


def _all_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
