"""Against FusionBench's own TSVM function, in whose float32 full SVDs the differences lie."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from kernels.oracle import merge_truncated, random_delta, relative, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.tasks import TaskMatrices

peer = pytest.importorskip("fusion_bench.method.task_singular_vector.utils.TSVM_utils")


def merge_with_peer(deltas: list[torch.Tensor]) -> torch.Tensor:
    with contextlib.redirect_stdout(io.StringIO()):
        merged = peer.compute_and_sum_svd_mem_reduction([{"w": delta} for delta in deltas], accelerator="cpu")
    return merged["w"]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 64), (128, 64), (64, 128)])
@pytest.mark.parametrize("spectrum", ["flat", "decaying"])
def test_same_result_on_full_rank_updates(shape: tuple[int, int], spectrum: str, n: int) -> None:
    deltas = [random_delta(shape, spectrum, seed) for seed in range(n)]
    rank = min(shape) // n
    oracle = merge_truncated(deltas, [rank] * n, [1.0] * n)
    theirs = merge_with_peer(deltas)
    ours, _ = merge(TaskMatrices(deltas), [1.0] * n, settings())
    their_error = relative(theirs, oracle)
    assert relative(ours, oracle) < 1e-6
    # Our distance to them is their distance to the oracle, which float32 SVDs leave at 1e-6 to 1e-3.
    assert relative(ours, theirs) <= their_error + 1e-6
    assert their_error < 1e-2
