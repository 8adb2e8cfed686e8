"""What must hold for any input: symmetry, scale, bounds, determinism."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kernels.oracle import random_delta, relative, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import BLAS_THREADS

shapes = st.tuples(st.integers(2, 40), st.integers(2, 40))
seeds = st.integers(0, 10_000)
methods = st.sampled_from(["tsvm", "rtsvm"])


def deltas_of(shape: tuple[int, int], n: int, seed: int) -> list[torch.Tensor]:
    return [random_delta(shape, "decaying", seed * 10 + i) for i in range(n)]


@hypothesis_settings(deadline=None, max_examples=40)
@given(shapes, seeds, methods, st.permutations(range(3)))
def test_the_order_of_the_tasks_does_not_matter(
    shape: tuple[int, int], seed: int, method: str, order: list[int]
) -> None:
    deltas = deltas_of(shape, 3, seed)
    weights = [1.0, 0.5, 2.0]
    merged, _ = merge(TaskMatrices(deltas), weights, settings(method))
    shuffled, _ = merge(TaskMatrices([deltas[i] for i in order]), [weights[i] for i in order], settings(method))
    assert relative(shuffled, merged) < 1e-6


@hypothesis_settings(deadline=None, max_examples=40)
@given(shapes, seeds, methods, st.sampled_from([2.0**-20, 2.0**-3, 2.0**10]))
def test_scaling_the_updates_scales_the_merge(shape: tuple[int, int], seed: int, method: str, scale: float) -> None:
    """Powers of two round nothing, so only the order of float64 operations is between the two."""
    deltas = deltas_of(shape, 2, seed)
    merged, _ = merge(TaskMatrices(deltas), [1.0, 1.0], settings(method))
    scaled, _ = merge(TaskMatrices([scale * delta for delta in deltas]), [1.0, 1.0], settings(method))
    assert relative(scaled, scale * merged) < 1e-6


@hypothesis_settings(deadline=None, max_examples=40)
@given(shapes, seeds, methods)
def test_the_transpose_is_merged_alike(shape: tuple[int, int], seed: int, method: str) -> None:
    """Outlier weights are per row, so they are left out."""
    options = {"outlier_weighting": "none"} if method == "rtsvm" else {}
    deltas = deltas_of(shape, 3, seed)
    merged, _ = merge(TaskMatrices(deltas), [1.0] * 3, settings(method, **options))
    turned, _ = merge(TaskMatrices([delta.T for delta in deltas]), [1.0] * 3, settings(method, **options))
    assert relative(turned.T, merged) < 1e-6


@hypothesis_settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 5), seeds)
def test_the_rank_stays_within_the_budget(shape: tuple[int, int], n: int, seed: int) -> None:
    merged, report = merge(TaskMatrices(deltas_of(shape, n, seed)), [1.0] * n, settings())
    assert sum(report.ranks) <= max(n, min(shape))
    values = torch.linalg.svdvals(merged.double())
    assert int((values > 1e-6 * values[0]).sum()) <= sum(report.ranks)


def test_inputs_are_not_modified() -> None:
    base = torch.randn(30, 20)
    experts = [base + delta for delta in deltas_of((30, 20), 3, 0)]
    before = [base.clone(), *(expert.clone() for expert in experts)]
    for options in ({}, {"preset": "paper"}, {"rank_budget": "per_task"}):
        merge(TaskMatrices(experts, base), [1.0] * 3, settings("rtsvm", **options))
    assert all(torch.equal(a, b) for a, b in zip(before, [base, *experts], strict=True))


def test_strided_inputs_are_read_in_their_own_order() -> None:
    deltas = deltas_of((30, 20), 2, 0)
    strided = [torch.stack([delta, delta], dim=2)[:, :, 0] for delta in deltas]
    assert not strided[0].is_contiguous()
    expected, _ = merge(TaskMatrices(deltas), [1.0, 1.0], settings())
    merged, _ = merge(TaskMatrices(strided), [1.0, 1.0], settings())
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("shape", [(40, 40), (300, 24), (24, 60)])
def test_rtsvm_without_its_reweightings_is_tsvm_bit_for_bit(shape: tuple[int, int]) -> None:
    deltas = deltas_of(shape, 3, 1)
    tsvm, _ = merge(TaskMatrices(deltas), [1.0, 0.7, 1.3], settings("tsvm"))
    rtsvm, _ = merge(TaskMatrices(deltas), [1.0, 0.7, 1.3], settings("rtsvm", gamma=0.0, outlier_weighting="none"))
    assert torch.equal(tsvm, rtsvm)


@pytest.mark.parametrize(("blas_threads", "threads"), [("1", "13"), ("2", "25")])
def test_the_bits_do_not_depend_on_the_number_of_workers(blas_threads: str, threads: str) -> None:
    """Every process merges matrices with several blocks and tiles, with its own number of threads."""
    program = (
        "import sys, torch, hashlib\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "from mergekit_3h.kernels.assembly import merge\n"
        "from mergekit_3h.kernels.tasks import TaskMatrices\n"
        "from mergekit_3h.spectral.registry import parse_options\n"
        "torch.manual_seed(0)\n"
        "wide = {'rank_budget': 'per_task'}\n"
        "for shape, options in (((600, 600), {}), ((2100, 520), {}), ((520, 700), {}), ((420, 300), wide)):\n"
        "    deltas = [torch.randn(shape) * 1e-3 for _ in range(3)]\n"
        "    merged, _ = merge(TaskMatrices(deltas), [1.0] * 3, parse_options('rtsvm', options).settings())\n"
        "    print(hashlib.sha256(merged.numpy().tobytes()).hexdigest())\n"
        "base = torch.randn(600, 300).bfloat16()\n"
        "experts = [(base.float() + 0.02 * torch.randn(600, 300)).bfloat16() for _ in range(3)]\n"
        "merged, report = merge(TaskMatrices(experts, base), [1.0] * 3, parse_options('rtsvm', {}).settings())\n"
        "print(hashlib.sha256(merged.numpy().tobytes()).hexdigest(), report.noise_edges, report.tolls)\n"
    )
    environment = {**os.environ, BLAS_THREADS: blas_threads}
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, number], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for number in threads
    ]
    assert runs[0].count("\n") == 5
    assert runs[0] == runs[1]


def test_the_workers_leave_the_callers_threads_alone() -> None:
    before = torch.get_num_threads()
    merge(TaskMatrices(deltas_of((40, 30), 3, 1)), [1.0] * 3, settings())
    assert torch.get_num_threads() == before
