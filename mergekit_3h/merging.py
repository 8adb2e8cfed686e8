"""One tensor of the merged model, as both hosts compute it: base and experts in, merged tensor out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING

import torch

from mergekit_3h.errors import TensorError
from mergekit_3h.kernels.assembly import Report, components, merge
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.whole_tensors import is_finite, mean_share, mean_update

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_3h.kernels.settings import Settings
    from mergekit_3h.options import TSVMOptions

LOG = logging.getLogger(__name__)

SMALLEST_FUSED_SIDE = 8
"""A three-dimensional tensor whose matrices are smaller than this is a convolution, not fused experts. A heuristic: the
fused experts of Mixtral, Qwen-MoE, Llama-4 and gpt-oss are hundreds wide, convolution kernels 1 to 7."""


@torch.no_grad()
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
        update = _merged_matrices(name, base, tensors, factors, options.settings())
    else:
        update = mean_update(tensors, base, factors)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), base.dtype)
    return update.mul_(options.lambda_).add_(base).to(dtype)


def _merged_matrices(
    name: str, base: Tensor, experts: list[Tensor], factors: list[float], settings: Settings
) -> Tensor:
    device = computing_device(base.device)
    updates: list[Tensor] = []
    for matrix, tasks in _layers(name, base.to(device), [expert.to(device) for expert in experts]):
        update, report = merge(tasks, factors, settings)
        _log(matrix, report)
        updates.append(update.to(base.device))
    return updates[0] if base.ndim == 2 else torch.stack(updates)


@dataclass(frozen=True)
class Component:
    """One expert's share C_i of a merged tensor, W = W_0 + sum_i w_i C_i, as products left @ right or as it is.

    A three-dimensional tensor has a product for each of its matrices.
    """

    products: list[tuple[Tensor, Tensor]]
    whole: Tensor | None = None
    is_stack: bool = False

    def dense(self) -> Tensor:
        """C_i in the shape of the tensor."""
        if self.whole is not None:
            return self.whole
        matrices = [left @ right for left, right in self.products]
        return torch.stack(matrices) if self.is_stack else matrices[0]


@torch.no_grad()
def tensor_components(
    name: str, base: Tensor, experts: Mapping[str, Tensor], options: TSVMOptions, *, base_label: str = "the base model"
) -> dict[str, Component]:
    """The shares of every expert in the tensor ``name``: ``merge_tensor`` is linear in the weights, and these are its
    coefficients, in float64, up to its rounding."""
    require_mergeable(name, {base_label: base, **experts})
    tensors = list(experts.values())
    if base.numel() == 0 or not merges_as_matrices(name, base, options):
        shares = [Component([], whole=options.lambda_ * mean_share(tensor, base, len(tensors))) for tensor in tensors]
        return dict(zip(experts, shares, strict=True))
    settings = options.settings()
    layers = [components(tasks, settings) for _, tasks in _layers(name, base, tensors)]
    return {
        label: Component([(options.lambda_ * layer[i][0], layer[i][1]) for layer in layers], is_stack=base.ndim == 3)
        for i, label in enumerate(experts)
    }


def _layers(name: str, base: Tensor, experts: list[Tensor]) -> Iterator[tuple[str, TaskMatrices]]:
    """The matrices of a tensor, each with the name that logs use."""
    if base.ndim == 2:
        yield name, TaskMatrices(experts, base)
        return
    for i in range(base.shape[0]):
        yield f"{name}[{i}]", TaskMatrices([expert[i] for expert in experts], base[i])


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
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise TensorError(
                f"tensor {name!r} of {label} holds {tensor.dtype}, expected floating-point numbers of 16 bits or more"
            )
        if not is_finite(tensor):
            raise TensorError(
                f"tensor {name!r} of {label} holds NaN or infinity. Check that this checkpoint loads and was saved "
                "whole; a merge with it would be NaN too."
            )


def _log(name: str, report: Report) -> None:
    LOG.debug("%s: %s", name, report)
    if report.omega is not None and report.omega > 0.99:
        LOG.warning(
            "%s: sparsity Omega = %.3f, so the rank is %d whatever the layer holds; epsilon_mode: relative adapts it",
            name,
            report.omega,
            report.budget,
        )
