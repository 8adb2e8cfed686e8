"""One tensor of the merged model, as both hosts compute it: base and experts in, merged tensor out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch

from mergekit_3h.errors import TensorError
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.jobs import Job, run_jobs
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.whole_tensors import is_finite, mean_share, mean_update
from mergekit_3h.spectral.gate import Gate, GateReport, Roles
from mergekit_3h.spectral.name_patterns import is_kept, matches

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_3h.spectral.method import SpectralMethod
    from mergekit_3h.spectral.rounding_log import RoundingLog

log = logging.getLogger(__name__)

SMALLEST_FUSED_SIDE = 8
"""A three-dimensional tensor whose matrices are smaller than this is a convolution, not fused experts. A heuristic: the
fused experts of Mixtral, Qwen-MoE, Llama-4 and gpt-oss are hundreds wide, convolution kernels 1 to 7."""


MOST_EXTRA = 0.7
"""Of its inputs, that merging fused experts side by side may take beyond them, the result included."""


@torch.no_grad()
def merge_tensor(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    method: SpectralMethod,
    *,
    base_label: str = "the base model",
    roles: Roles | None = None,
    watch: Watcher | None = None,
    rounding: RoundingLog | None = None,
) -> Tensor:
    """Merge the tensor ``name`` of the base and of each expert; ``experts`` are keyed by the labels that errors use.
    ``roles`` say which of them are merged, if not all.

    Matrices, and the matrices of a three-dimensional tensor one by one, take the method's way; everything else, and
    what ``exclude`` names, gets the weighted mean of the updates; what ``keep_base`` names stays the base's. The result
    has the promoted dtype of the inputs and is rounded once, after the base was added. ``watch`` is called with every
    merged tensor, or matrix of one; ``rounding`` is told what rounding had done to the experts.
    """
    require_mergeable(name, {base_label: base, **experts})
    roles = Roles(list(experts)) if roles is None else roles
    roles.require_used(method)
    tensors, factors = [experts[label] for label in roles.experts], [weights[label] for label in roles.experts]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in experts.values()), base.dtype)
    if base.numel() == 0:
        return base.to(dtype, copy=True)
    step = MergingStep(
        method, factors, dtype, watch, None if rounding is None else partial(rounding.add, roles.experts)
    )
    if is_kept(name, method.keep_base):
        return step.keep(name, base, tensors)
    if not merges_as_matrices(name, base, method):
        return step.merge(name, base, tensors, is_matrix=False)
    step = replace(step, gate=_gate(roles, experts))
    if base.ndim == 2:
        return step.merge(name, base, tensors, is_matrix=True)
    result = torch.empty(base.shape, dtype=dtype, device=base.device)

    def begin(i: int) -> Callable[[], None]:
        layer = [tensor[i] for tensor in tensors]
        own = step if step.gate is None else replace(step, gate=step.gate.of_matrix(i))

        def merge_layer() -> None:
            result[i] = own.merge(f"{name}[{i}]", base[i], layer, is_matrix=True)

        return merge_layer

    need = matrix_bytes(base.shape, dtype, len(tensors), method)
    room = int(MOST_EXTRA * sum(tensor.nbytes for tensor in [base, *tensors])) - result.nbytes
    run_jobs(computing_device(base.device), [Job(need, partial(begin, i)) for i in range(base.shape[0])], room)
    return result


def _gate(roles: Roles, tensors: Mapping[str, Tensor]) -> Gate | None:
    if roles.unaligned is None:
        return None
    safety = None if roles.safety is None else tensors[roles.safety]
    return Gate(roles.experts, tensors[roles.unaligned], safety)


def matrix_bytes(shape: Sequence[int], dtype: torch.dtype, experts: int, method: SpectralMethod) -> int:
    """What merging one matrix takes at most beyond its inputs, its result included."""
    rows, columns = shape[-2:]
    return method.working_bytes(rows, columns, experts, result_itemsize=max(4, dtype.itemsize))


def bytes_to_merge(name: str, tensors: Sequence[Tensor], method: SpectralMethod) -> int:
    """What merging these tensors of base and experts takes at most beyond them, the result and its rounding included.

    Nothing but names, shapes and dtypes is looked at.
    """
    first, dtype = tensors[0], reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    result = 2 * max(4, dtype.itemsize) * first.numel()
    if not merges_as_matrices(name, first, method):
        return result
    matrix = matrix_bytes(first.shape, dtype, len(tensors) - 1, method)
    if first.ndim == 2:
        return matrix + result
    return max(matrix + result, int(MOST_EXTRA * len(tensors) * first.numel() * dtype.itemsize))


@dataclass(frozen=True)
class MergedTensor:
    """One tensor, or one matrix of it, for whoever watches a merge."""

    name: str
    base: Tensor
    experts: list[Tensor]
    weights: list[float]
    exact: Tensor
    """Base and update before they are rounded to the result."""
    result: Tensor
    report: Any
    """The method's; None for a tensor that is averaged."""
    seconds: float
    gate: GateReport | None = None
    """Of a matrix that went through the layer gate."""


Watcher = Callable[[MergedTensor], None]


@dataclass(frozen=True)
class MergingStep:
    """What all matrices of a tensor have in common."""

    method: SpectralMethod
    factors: list[float]
    dtype: torch.dtype
    watch: Watcher | None
    tell_rounding: Callable[[Any], None] | None
    gate: Gate | None = None

    def merge(self, name: str, base: Tensor, experts: list[Tensor], *, is_matrix: bool) -> Tensor:
        began = time.perf_counter()
        gated: GateReport | None = None
        if is_matrix:
            update, report, gated = self._update(name, base, experts)
        else:
            update, report = mean_update(experts, base, self.factors), None
        exact = update.mul_(self.method.lambda_).add_(base)
        result = exact.to(self.dtype)
        if self.watch is not None:
            seconds = time.perf_counter() - began
            self.watch(MergedTensor(name, base, experts, self.factors, exact, result, report, seconds, gated))
        return result

    def keep(self, name: str, base: Tensor, experts: list[Tensor]) -> Tensor:
        """The base itself."""
        result = base.to(self.dtype, copy=True)
        if self.watch is not None:
            exact = base.to(torch.promote_types(torch.float32, self.dtype))
            self.watch(MergedTensor(name, base, experts, self.factors, exact, result, None, 0.0))
        return result

    def _update(self, name: str, base: Tensor, experts: list[Tensor]) -> tuple[Tensor, Any, GateReport | None]:
        device = computing_device(base.device)
        moved, start, gated = [expert.to(device) for expert in experts], base.to(device), None
        if self.gate is None:
            tasks = TaskMatrices(moved, start)
        else:
            tasks, gated = self.gate.tasks(name, start, moved, self.method)
        update, report = self.method.merge(tasks, self.factors)
        log.debug("%s: %s", name, report)
        for level, remark in self.method.remarks(report):
            log.log(level, "%s: %s", name, remark)
        if self.tell_rounding is not None:
            self.tell_rounding(report)
        return update.to(base.device), report, gated


@dataclass(frozen=True)
class ExpertShare:
    """One expert's share C_i of a merged tensor, W = W_0 + sum_i w_i C_i, as products left @ right or as it is.

    A three-dimensional tensor has a product for each of its matrices.
    """

    products: list[tuple[Tensor, Tensor]]
    whole: Tensor | None = None
    is_stack: bool = False

    def times(self, factor: float) -> ExpertShare:
        """factor C_i, for products."""
        return replace(self, products=[(factor * left, right) for left, right in self.products])

    def dense(self) -> Tensor:
        """C_i in the shape of the tensor."""
        if self.whole is not None:
            return self.whole
        matrices = [left @ right for left, right in self.products]
        return torch.stack(matrices) if self.is_stack else matrices[0]


@torch.no_grad()
def tensor_components(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    method: SpectralMethod,
    *,
    held_at: Sequence[float] | None = None,
    base_label: str = "the base model",
) -> dict[str, ExpertShare]:
    """The shares of every expert in the tensor ``name``: ``merge_tensor`` is linear in the weights, and these are its
    coefficients, in float64, up to its rounding. ``held_at`` are weights at which what is not linear is held."""
    require_mergeable(name, {base_label: base, **experts})
    tensors = list(experts.values())
    if base.numel() == 0 or not merges_as_matrices(name, base, method):
        factor = averaged_factor(name, method)
        shares = [ExpertShare([], whole=factor * mean_share(tensor, base, len(tensors))) for tensor in tensors]
        return dict(zip(experts, shares, strict=True))
    matrices = zip(base, *tensors, strict=True) if base.ndim == 3 else [(base, *tensors)]
    tasks = [TaskMatrices(layer, layer_base) for layer_base, *layer in matrices]
    layers = [method.components(each) if held_at is None else method.held_components(each, held_at) for each in tasks]
    return {
        label: ExpertShare([(method.lambda_ * layer[i][0], layer[i][1]) for layer in layers], is_stack=base.ndim == 3)
        for i, label in enumerate(experts)
    }


@torch.no_grad()
def tensor_blocks(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    method: SpectralMethod,
    blocks: int,
    weights: Sequence[float],
) -> list[ExpertShare]:
    """The shares of all blocks of the first expert's singular components in a matrix, then of the second's; what is not
    linear is held as it is at these weights."""
    require_mergeable(name, {"the base model": base, **experts})
    tensors, is_stack = list(experts.values()), base.ndim == 3
    matrices = zip(base, *tensors, strict=True) if is_stack else [(base, *tensors)]
    layers = [method.block_components(TaskMatrices(each, each_base), blocks, weights) for each_base, *each in matrices]
    return [
        ExpertShare([(method.lambda_ * layer[i][b][0], layer[i][b][1]) for layer in layers], is_stack=is_stack)
        for i in range(len(tensors))
        for b in range(blocks)
    ]


def merges_as_matrices(name: str, tensor: Tensor, method: SpectralMethod) -> bool:
    """Whether ``name`` takes the singular-vector way, by its shape and the options ``exclude`` and ``keep_base``."""
    fused = tensor.ndim == 3 and min(tensor.shape[1:]) >= SMALLEST_FUSED_SIDE
    return (tensor.ndim == 2 or fused) and not (matches(name, method.exclude) or is_kept(name, method.keep_base))


def averaged_factor(name: str, method: SpectralMethod) -> float:
    """On the mean of the updates of a tensor that is not merged as matrices."""
    return 0.0 if is_kept(name, method.keep_base) else method.lambda_


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
