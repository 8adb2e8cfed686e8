"""The kernels against float64 full SVDs, over shape, conditioning, dtype and number of tasks."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import (
    merge_literally,
    merge_truncated,
    outlier_alphas,
    random_delta,
    relative,
    settings,
)

from mergekit_3h.kernels.assembly import components, merge
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPES = [(48, 48), (90, 40), (40, 90), (256, 24), (7, 5)]
SPECTRA = [("flat", 0.0), ("decaying", 0.0), ("decaying", 1.0), ("steep", 0.0)]

# The kernel's promise. Rounding the result to float32 alone costs 3e-8.
TOLERANCE = 1e-6


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("spectrum", "shared"), SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_tsvm_agrees_with_the_oracle(shape: tuple[int, int], spectrum: str, shared: float, n: int) -> None:
    deltas = [random_delta(shape, spectrum, seed, shared=shared) for seed in range(n)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * n, settings())
    rank = max(1, min(shape) // n)
    assert report.ranks == [rank] * n
    assert merged.dtype == torch.float32
    assert relative(merged, merge_truncated(deltas, [rank] * n, [1.0] * n)) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_scale_singular_values(shape: tuple[int, int]) -> None:
    deltas = [random_delta(shape, "decaying", seed) for seed in range(3)]
    weights = [0.3, -1.0, 2.0]
    merged, report = merge(TaskMatrices(deltas), weights, settings())
    assert relative(merged, merge_truncated(deltas, report.ranks, weights)) < TOLERANCE


@pytest.mark.parametrize("budget", ["shared", "per_task"])
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("shape", [(48, 48), (60, 40), (40, 60), (200, 24)])
def test_rtsvm_agrees_with_the_oracle(shape: tuple[int, int], n: int, budget: str) -> None:
    """``per_task`` concatenates more columns than the matrix has, on one side or on both."""
    deltas = [random_delta(shape, "decaying", seed, shared=0.5) for seed in range(n)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * n, settings("rtsvm", rank_budget=budget))
    weights = [n * alpha for alpha in outlier_alphas(deltas)]
    assert report.outlier_weights == pytest.approx(weights, rel=1e-9)
    assert relative(merged, merge_truncated(deltas, report.ranks, weights)) < TOLERANCE


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 60), (200, 24), (24, 200)])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_literal_order_agrees_with_algorithm_1(shape: tuple[int, int], n: int, gamma: float) -> None:
    deltas = [random_delta(shape, "decaying", seed) for seed in range(n)]
    chosen = settings("rtsvm", preset="paper", epsilon_mode="relative", epsilon=1.0, gamma=gamma)
    merged, report = merge(TaskMatrices(deltas), [1.0] * n, chosen)
    expected = merge_literally(deltas, report.budget, outlier_alphas(deltas))
    assert (report.budget < min(shape)) == (gamma > 0)
    assert relative(merged, expected) < TOLERANCE


def test_the_literal_order_on_square_matrices_is_a_scaled_sum() -> None:
    """Nothing is decorrelated: the merge is the weighted sum of the updates over n."""
    deltas = [random_delta((32, 32), "flat", seed) for seed in range(3)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * 3, settings("rtsvm", preset="paper", gamma=0.0))
    expected = sum(alpha * delta.double() for alpha, delta in zip(report.outlier_weights, deltas, strict=True)) / 3
    assert report.decompositions == ["none"] * 3
    assert relative(merged, expected) < 1e-7  # one rounding to float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_is_merged_from_its_exact_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(40, 30, generator=generator).to(dtype)
    experts = [
        (base.double() + random_delta((40, 30), "flat", seed, scale=0.1).double()).to(dtype) for seed in range(2)
    ]
    merged, report = merge(TaskMatrices(experts, base), [1.0, 1.0], settings(noise_floor="off"))
    deltas = [expert.double() - base.double() for expert in experts]
    limit = 1e-10 if dtype == torch.float64 else TOLERANCE
    assert merged.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative(merged, merge_truncated(deltas, report.ranks, [1.0, 1.0])) < limit


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_small_and_large_updates_lose_nothing(scale: float) -> None:
    """Squares of updates of 1e-12 would underflow in float16 and cancel in float32."""
    deltas = [random_delta((40, 30), "decaying", seed, scale=scale) for seed in range(3)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * 3, settings())
    assert relative(merged, merge_truncated(deltas, report.ranks, [1.0] * 3)) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"rank_budget": "per_task"}, {"preset": "paper"}])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (32, 32), (120, 20), (300, 300)])
def test_the_merge_is_the_weighted_sum_of_its_components(shape: tuple[int, int], options: dict[str, str]) -> None:
    """For 300 rows the matrices are read in two blocks."""
    deltas = [random_delta(shape, "decaying", seed).double() for seed in range(3)]
    weights = [0.7, 0.0, -1.5]
    merged, _ = merge(TaskMatrices(deltas), weights, settings("rtsvm", **options))
    shares = components(TaskMatrices(deltas), settings("rtsvm", **options))
    total = sum(weight * left @ right for weight, (left, right) in zip(weights, shares, strict=True))
    assert relative(total, merged) < 1e-11  # both in float64


def test_very_tall_updates_keep_the_small_end_of_their_spectrum() -> None:
    """An embedding's rows are many, its rounding noise is not: no value within the budget is taken for zero."""
    deltas = [random_delta((60_000, 12), "steep", seed) for seed in range(2)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * 2, settings("rtsvm", gamma=0.0, rank_budget="per_task"))
    assert report.ranks == [12, 12]
    assert relative(merged, merge_truncated(deltas, report.ranks, report.outlier_weights)) < TOLERANCE


def test_dependent_columns_of_a_very_tall_update_count_as_zero() -> None:
    delta = random_delta((60_000, 4), "flat", 1)
    delta[:, 3] = 2 * delta[:, 0]
    _, report = merge(TaskMatrices([delta, delta]), [1.0] * 2, settings("rtsvm", gamma=0.0, rank_budget="per_task"))
    assert report.ranks == [3, 3]
