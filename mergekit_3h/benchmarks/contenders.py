"""The implementations that are compared, each prepared with what its own interface takes.

Whatever is open is decided for the others: they get ready-made float32 updates, while our kernel reads base and experts
in the checkpoint's dtype and subtracts them within its own time; the plan of ``rtsvm`` is given to the literal code.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.benchmarks.literal import merge_literally
from mergekit_3h.benchmarks.problems import Inputs
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.assembly import merge, plan_layer
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.options import parse_options

OURS = "mergekit-3h"
FUSION_BENCH = "fusion-bench"
FULL_SVD = "full-svd"
PEERS = (FUSION_BENCH, FULL_SVD)
FUSION_BENCH_MODULE = "fusion_bench.method.task_singular_vector.utils.TSVM_utils"


@dataclass(frozen=True)
class Recipe:
    """The method and the options that our kernel runs with."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def settings(self) -> Settings:
        return parse_options(self.method, self.options).settings()


@dataclass(frozen=True)
class Facts:
    """What a result was made of: enough for the oracle to compute the same in float64."""

    ranks: list[int]
    scales: list[float]
    orthogonalize_first: bool = False
    decompositions: list[str] = field(default_factory=list[str])
    residuals: list[float] = field(default_factory=list[float])


Run = Callable[[], tuple[Tensor, Facts]]


def prepare(contender: str, inputs: Inputs, recipe: Recipe) -> Run:
    """The contender with its inputs in place; every call merges once."""
    return {OURS: _ours, FUSION_BENCH: _fusion_bench, FULL_SVD: _full_svd}[contender](inputs, recipe)


def chosen_peers(peer: str) -> list[str]:
    """``auto`` takes FusionBench where it is installed, the literal code elsewhere; ``both``, ``none`` or a name."""
    # An imported fusion_bench has replaced its module by one without a spec, for which find_spec raises.
    has_fusion_bench = "fusion_bench" in sys.modules or find_spec("fusion_bench") is not None
    if peer == "auto":
        return [FUSION_BENCH if has_fusion_bench else FULL_SVD]
    peers = {"both": list(PEERS), "none": []}.get(peer, [peer])
    if FUSION_BENCH in peers and not has_fusion_bench:
        raise OptionError(
            f"--peer {peer}: FusionBench is not installed; pip install 'mergekit-3h[fusion-bench]' "
            f"or choose --peer {FULL_SVD}"
        )
    return peers


def _ours(inputs: Inputs, recipe: Recipe) -> Run:
    settings = recipe.settings()
    weights = [1.0] * len(inputs.experts)

    def run() -> tuple[Tensor, Facts]:
        merged, report = merge(TaskMatrices(inputs.experts, inputs.base), weights, settings)
        is_literal = settings.order == "orthogonalize_first"
        return merged, Facts(report.ranks, report.outlier_weights, is_literal, report.decompositions, report.residuals)

    return run


def _full_svd(inputs: Inputs, recipe: Recipe) -> Run:
    settings = recipe.settings()
    plan = plan_layer(TaskMatrices(inputs.experts, inputs.base), settings)
    facts = Facts([rule.budget for rule in plan.rules], plan.alphas, settings.order == "orthogonalize_first")
    updates = _updates_for_peers(inputs)

    def run() -> tuple[Tensor, Facts]:
        with torch.no_grad():
            merged = merge_literally(updates, facts.ranks, facts.scales, orthogonalize_first=facts.orthogonalize_first)
        return merged, facts

    return run


def _fusion_bench(inputs: Inputs, recipe: Recipe) -> Run:
    """Always TSVM: FusionBench has no other. For ``rtsvm`` it is a yardstick of time, not of the result."""
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    updates = [{"weight": update} for update in _updates_for_peers(inputs)]
    device = inputs.base.device
    n = len(updates)
    facts = Facts([int(min(inputs.base.shape) * (1 / n))] * n, [1.0] * n)  # its own expression for the rank

    def run() -> tuple[Tensor, Facts]:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            merged: Any = compute_and_sum_svd_mem_reduction(updates, accelerator=device)
        return merged["weight"], facts

    return run


def _updates_for_peers(inputs: Inputs) -> list[Tensor]:
    """float32, which FusionBench's function would make of 16-bit updates itself; float64 stays float64."""
    return inputs.updates(torch.promote_types(inputs.base.dtype, torch.float32))
