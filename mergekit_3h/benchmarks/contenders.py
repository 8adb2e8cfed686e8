"""The implementations that are compared, each prepared with what its own interface takes.

Whatever is open is decided for the others: they get ready-made float32 updates, while our kernel reads base and experts
in the checkpoint's dtype and subtracts them within its own time; the literal code is given the ranks and weights that
our kernel found.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.benchmarks.problems import Inputs
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.literal import merge_literally
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tsvm import TSVM

OURS = "mergekit-3h"
FUSION_BENCH = "fusion-bench"
FULL_SVD = "full-svd"
OUR_TSVM = "tsvm"
PEERS = (FUSION_BENCH, FULL_SVD)
FUSION_BENCH_MODULE = "fusion_bench.method.task_singular_vector.utils.TSVM_utils"


@dataclass(frozen=True)
class Recipe:
    """The method and the options that our kernel runs with."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def spectral(self) -> SpectralMethod:
        """The method with its options; raises if there is none, or an option that it does not have."""
        return registry.parse_options(self.method, self.options)

    @property
    def is_counted(self) -> bool:
        """Whether ``products.product_flops`` counts what the method computes."""
        method = self.spectral()
        settings = method.settings() if isinstance(method, TSVM) else None
        return settings is not None and (settings.order, settings.core) == ("truncate_first", "block_diagonal")


@dataclass(frozen=True)
class Facts:
    """What a result was made of: enough for an oracle to compute the same in float64."""

    report: Any = None
    """The method's own."""
    is_tsvm: bool = False
    """FusionBench's TSVM, whose ranks are below: whatever the method, the oracle is that of TSVM."""
    ranks: list[int] = field(default_factory=list[int])
    decompositions: list[str] = field(default_factory=list[str])
    recipe: Recipe | None = None
    """What was run, where that is not what our kernel runs with."""
    residuals: list[float] = field(default_factory=list[float])

    def oracle(self, recipe: Recipe, updates: Sequence[Tensor]) -> Tensor | None:
        """The same merge by full decompositions, in the precision of the updates."""
        ones = [1.0] * len(updates)
        if self.is_tsvm:
            return merge_literally(updates, self.ranks, ones)
        return (self.recipe or recipe).spectral().literally(updates, ones, self.report)


def _facts(report: Any) -> Facts:
    shared = {name: getattr(report, name) for name in ("ranks", "decompositions", "residuals") if hasattr(report, name)}
    return Facts(report, **shared)


Run = Callable[[], tuple[Tensor, Facts]]


def prepare(contender: str, inputs: Inputs, recipe: Recipe) -> Run:
    """The contender with its inputs in place; every call merges once."""
    return {OURS: _ours, FUSION_BENCH: _fusion_bench, FULL_SVD: _full_svd, OUR_TSVM: _our_tsvm}[contender](
        inputs, recipe
    )


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
    return_large_blocks_when_freed()  # as both hosts do
    method = recipe.spectral()
    weights = [1.0] * len(inputs.experts)

    def run() -> tuple[Tensor, Facts]:
        merged, report = method.merge(TaskMatrices(inputs.experts, inputs.base), weights)
        return merged, _facts(report)

    return run


def _our_tsvm(inputs: Inputs, recipe: Recipe) -> Run:
    """Beside another method: a yardstick of time that runs everywhere."""
    run = _ours(inputs, Recipe("tsvm"))

    def run_tsvm() -> tuple[Tensor, Facts]:
        merged, facts = run()
        return merged, replace(facts, recipe=Recipe("tsvm"))

    return run_tsvm


def _full_svd(inputs: Inputs, recipe: Recipe) -> Run:
    """The formula with the ranks that the paper gives, without what limits them further."""
    method, updates = recipe.spectral(), _updates_for_peers(inputs)
    weights = [1.0] * len(updates)
    report = method.merge(TaskMatrices(inputs.experts, inputs.base), weights)[1]
    if hasattr(report, "budget"):
        report = replace(report, ranks=[report.budget] * len(updates))

    def run() -> tuple[Tensor, Facts]:
        with torch.no_grad():
            merged = method.literally(updates, weights, report)
        if merged is None:
            raise OptionError(f"--peer {FULL_SVD}: {method.name} has no literal form; choose --peer none")
        return merged, _facts(report)

    return run


def _fusion_bench(inputs: Inputs, recipe: Recipe) -> Run:
    """Always TSVM: FusionBench has no other. For other methods it is a yardstick of time, not of the result."""
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    updates = [{"weight": update} for update in _updates_for_peers(inputs)]
    device = inputs.base.device
    n = len(updates)
    facts = Facts(is_tsvm=True, ranks=[int(min(inputs.base.shape) * (1 / n))] * n)  # its own expression for the rank

    def run() -> tuple[Tensor, Facts]:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            merged: Any = compute_and_sum_svd_mem_reduction(updates, accelerator=device)
        return merged["weight"], facts

    return run


def _updates_for_peers(inputs: Inputs) -> list[Tensor]:
    """float32, which FusionBench's function would make of 16-bit updates itself; float64 stays float64."""
    return inputs.updates(torch.promote_types(inputs.base.dtype, torch.float32))
