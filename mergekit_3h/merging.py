"""One tensor of the merged model, as both hosts compute it: base and experts in, merged tensor out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING

import torch

from mergekit_3h.errors import TensorError
from mergekit_3h.kernels.assembly import Report, merge
from mergekit_3h.kernels.tasks import TaskMatrices, mean_update

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_3h.options import TSVMOptions

LOG = logging.getLogger(__name__)

SMALLEST_FUSED_SIDE = 8
"""A three-dimensional tensor whose matrices are smaller than this is a convolution, not fused experts. A heuristic: the
fused experts of Mixtral, Qwen-MoE, Llama-4 and gpt-oss are hundreds wide, convolution kernels 1 to 7."""


def merge_tensor(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    options: TSVMOptions,
    *,
    base_label: str = "the base model",
) -> Tensor:
    """Merge the tensor ``name`` of the base and of each expert; ``experts`` are keyed by the labels that errors use.

    Matrices, and the matrices of a three-dimensional tensor one by one, take the method's way; everything else, and
    what ``exclude`` names, gets the weighted mean of the updates. The result has the promoted dtype of the inputs and
    is rounded once, after the base was added.
    """
    require_mergeable(name, {base_label: base, **experts})
    if base.numel() == 0:
        return base.clone()
    tensors, factors = list(experts.values()), [weights[label] for label in experts]
    if merges_as_matrices(name, base, options):
        update = _merge_matrices(name, base, tensors, factors, list(experts), options)
    else:
        update = mean_update(tensors, base, factors)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), base.dtype)
    return update.mul_(options.lambda_).add_(base).to(dtype)


def merges_as_matrices(name: str, tensor: Tensor, options: TSVMOptions) -> bool:
    """Whether ``name`` takes the singular-vector way, by its shape and the option ``exclude``."""
    fused = tensor.ndim == 3 and min(tensor.shape[1:]) >= SMALLEST_FUSED_SIDE
    return (tensor.ndim == 2 or fused) and not is_excluded(name, options.exclude)


def is_excluded(name: str, exclude: str) -> bool:
    """Whether a comma-separated pattern of ``exclude`` fits: whole-name with wildcards, else anywhere in the name."""
    patterns = [pattern.strip() for pattern in exclude.split(",") if pattern.strip()]
    return any(
        fnmatchcase(name, pattern) if "*" in pattern or "?" in pattern else pattern in name for pattern in patterns
    )


def require_mergeable(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise, naming model and tensor, unless all have one shape and every number in them is finite."""
    shapes = {label: tuple(tensor.shape) for label, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label}: {shape}" for label, shape in shapes.items())
        raise TensorError(
            f"tensor {name!r} has different shapes: {listed}. The models must share one architecture; where only the "
            "vocabulary differs, let mergekit align it (tokenizer: {source: base})."
        )
    for label, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TensorError(f"tensor {name!r} of {label} holds {tensor.dtype}, expected floating-point numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise TensorError(
                f"tensor {name!r} of {label} holds NaN or infinity. Check that this checkpoint loads and was saved "
                "whole; a merge with it would be NaN too."
            )


def _merge_matrices(
    name: str, base: Tensor, experts: list[Tensor], factors: list[float], labels: list[str], options: TSVMOptions
) -> Tensor:
    settings = options.settings()
    if base.ndim == 2:
        update, report = merge(TaskMatrices(experts, base), factors, settings)
        _log(name, labels, report)
        return update
    slices: list[Tensor] = []
    for i in range(base.shape[0]):
        update, report = merge(TaskMatrices([expert[i] for expert in experts], base[i]), factors, settings)
        _log(f"{name}[{i}]", labels, report)
        slices.append(update)
    return torch.stack(slices)


def _log(name: str, labels: list[str], report: Report) -> None:
    LOG.debug("%s: %s", name, report)
    if report.omega is not None and report.omega > 0.99:
        LOG.warning(
            "%s: sparsity Omega = %.3f, so the rank is %d whatever the layer holds; epsilon_mode: relative adapts it",
            name,
            report.omega,
            report.budget,
        )
    for label, rank, edge in zip(labels, report.ranks, report.noise_edges, strict=True):
        if rank == 0 and edge > 0:
            LOG.warning(
                "%s: the update of %s is no larger than the rounding of its checkpoint and adds nothing here; "
                "noise_floor: off keeps it",
                name,
                label,
            )
