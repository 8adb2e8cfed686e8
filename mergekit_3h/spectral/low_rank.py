"""One tensor whose experts are a base and updates of low rank (LoRA adapters): merged in their core space, or dense.

The updates are exact: nothing was rounded when they were added to a checkpoint, so no noise floor applies to them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mergekit_3h.errors import OptionError, TensorError
from mergekit_3h.kernels.core_space import (
    LowRank,
    Truncation,
    is_smaller,
    merged_in_core_space,
    truncated,
    weighted_low_rank_sum,
)
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.memory import MOST_PASSING_BYTES
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.whole_tensors import is_finite
from mergekit_3h.kernels.workers import run_all, spans
from mergekit_3h.spectral.name_patterns import is_kept, matches
from mergekit_3h.spectral.tensors import MergedTensor, Watcher, require_mergeable

if TYPE_CHECKING:
    from mergekit_3h.spectral.method import SpectralMethod

Route = Literal["auto", "core", "dense"]
"""auto: the core space where the method allows it, else dense; core: an error where it does not."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRankUpdates:
    """The experts' updates of one tensor by the labels that errors use, those without one of rank 0; their weights."""

    name: str
    updates: Mapping[str, LowRank]
    weights: Mapping[str, float]

    def require_mergeable(self) -> None:
        shapes = {label: update.shape for label, update in self.updates.items()}
        if len(set(shapes.values())) > 1:
            raise TensorError(f"tensor {self.name!r}: the updates have different shapes: {shapes}")
        for label, update in self.updates.items():
            if not (is_finite(update.left) and is_finite(update.right)):
                raise TensorError(
                    f"tensor {self.name!r}: {label} holds NaN or infinity; a merge with it would be NaN too"
                )

    @property
    def factors(self) -> list[float]:
        return [self.weights[label] for label in self.updates]


@dataclass(frozen=True)
class AsAdapter:
    """The merged updates are wanted as one adapter too, of this rank at most; the merged tensors have what it has."""

    rank: int | None
    take: Callable[[Truncation], None]


def require_route(method: SpectralMethod, route: Route, why: str = "lora: core") -> None:
    """Raise where the core space is asked for and the method, under its options, does not turn with its inputs."""
    if route == "core" and not method.is_equivariant:
        raise OptionError(
            f"{why}: {method.name} with these options depends on more than how the updates lie to one another, so it "
            "cannot be merged in their core space; lora: dense multiplies the updates out"
        )


@torch.no_grad()
def merge_low_rank(
    base: Tensor,
    given: LowRankUpdates,
    method: SpectralMethod,
    *,
    route: Route = "auto",
    base_label: str = "the base model",
    watch: Watcher | None = None,
    as_adapter: AsAdapter | None = None,
) -> Tensor:
    """The merged tensor, in the base's dtype and rounded once; the base itself where no expert changes it."""
    require_mergeable(given.name, {base_label: base})
    shape = next(iter(given.updates.values())).shape
    if tuple(base.shape) != shape:
        raise TensorError(f"tensor {given.name!r} is {tuple(base.shape)} in {base_label}, its updates are {shape}")
    if is_kept(given.name, method.keep_base) or not any(update.rank for update in given.updates.values()):
        return base.clone()
    began = time.perf_counter()
    update, report = merged_update(given, method, route, computing_device(base.device))
    factor = method.lambda_
    if as_adapter is not None:
        cut = truncated_update(update, given, method, as_adapter.rank)
        as_adapter.take(cut)
        if as_adapter.rank is not None:
            update, factor = cut.kept, 1.0
    add = partial(_added, base, update, factor)
    result = add(base.dtype)
    if watch is not None:
        seconds = time.perf_counter() - began
        exact = torch.promote_types(torch.float32, base.dtype)
        experts = [_added(base, each, 1.0, exact) for each in given.updates.values()]
        watch(MergedTensor(given.name, base, experts, given.factors, add(exact), result, report, seconds))
    return result


@torch.no_grad()
def merged_update(
    given: LowRankUpdates, method: SpectralMethod, route: Route, device: torch.device
) -> tuple[LowRank | Tensor, Any]:
    """M before lambda, and the method's report, None for a tensor that is averaged."""
    require_route(method, route)
    given.require_mergeable()
    updates, factors = [update.to(device) for update in given.updates.values()], given.factors
    if is_kept(given.name, method.keep_base):
        return LowRank(updates[0].left[:, :0], updates[0].right[:0]), None
    if matches(given.name, method.exclude):
        return weighted_low_rank_sum(updates, [factor / len(factors) for factor in factors]), None
    reports: list[Any] = []

    def merge(tasks: TaskMatrices) -> Tensor:
        update, report = method.merge(tasks, factors)
        reports.append(report)
        return update

    in_core = route != "dense" and method.is_equivariant and is_smaller(updates)
    update = merged_in_core_space(updates, merge) if in_core else merge(dense_tasks(updates))
    log.debug("%s, %s: %s", given.name, "in the core space" if in_core else "dense", reports[0])
    for level, remark in method.remarks(reports[0]):
        log.log(level, "%s: %s", given.name, remark)
    return update, reports[0]


def truncated_update(
    update: LowRank | Tensor, given: LowRankUpdates, method: SpectralMethod, rank: int | None
) -> Truncation:
    """lambda M in as few directions as it has, ``rank`` at most."""
    # No merge reaches beyond the experts' own directions; what a dense one has there is rounding.
    most = sum(each.rank for each in given.updates.values())
    if isinstance(update, Tensor):
        # With the identity on the shorter side there is less to decompose.
        same = torch.eye(min(update.shape), dtype=update.dtype, device=update.device)
        update = LowRank(same, update) if update.shape[0] < update.shape[1] else LowRank(update, same)
    scaled = LowRank(update.left, update.right, method.lambda_ * update.scale)
    return truncated(scaled, min(most, rank or most))


def bytes_to_merge_low_rank(
    shape: tuple[int, int],
    itemsize: int,
    ranks: Sequence[int],
    method: SpectralMethod,
    route: Route,
    *,
    as_adapter: bool = False,
) -> int:
    """What merging updates of these ranks takes at most beyond the base, the result included; from shapes alone."""
    rows, columns, whole = *shape, sum(ranks)
    result = rows * columns * itemsize + MOST_PASSING_BYTES
    if route != "dense" and method.is_equivariant and whole < min(shape):
        # The factors in float64, side by side, their bases, and what the method takes of the cores; the same of the
        # adapter.
        held = (8 if as_adapter else 4) * whole * (rows + columns)
        return result + 8 * held + method.working_bytes(whole, whole, len(ranks), 8)
    merging = 4 * len(ranks) * rows * columns + method.working_bytes(rows, columns, len(ranks), 4)
    # Both factors, their bases, and a decomposition with workspace on the shorter side.
    cutting = 8 * (4 * rows * columns + 12 * min(shape) ** 2) if as_adapter else 0
    return result + max(merging, cutting)


def dense_tasks(updates: Sequence[LowRank]) -> TaskMatrices:
    """The updates multiplied out."""
    return TaskMatrices([update.dense(torch.float32) for update in updates])


def _added(base: Tensor, update: LowRank | Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """base + factor * update, rounded once; some rows at a time."""
    result = torch.empty(base.shape, dtype=dtype, device=base.device)
    rows_of: Callable[[slice], Tensor]
    if isinstance(update, LowRank):
        rows_of, row_spans = update.rows, update.row_spans()
    else:
        rows_of, row_spans = lambda rows: update[rows].double(), spans(base.shape[0], 256)

    def fill(rows: slice) -> None:
        result[rows] = rows_of(rows).mul_(factor).to(base.device).add_(base[rows]).to(dtype)

    run_all(base.device, [partial(fill, rows) for rows in row_spans])
    return result
