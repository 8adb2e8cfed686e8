"""Outlier weights (Eq. 6-8), sparsity and rank (Eq. 9-10), and the limits beyond the paper."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import outlier_alphas, random_delta, relative, settings

from mergekit_3h.kernels.assembly import merge, plan_layer
from mergekit_3h.kernels.outliers import outlier_mass, outlier_weights
from mergekit_3h.kernels.ranks import rank_for_energy, sparsity
from mergekit_3h.kernels.tasks import TaskMatrices


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (600, 20)])
def test_alphas_follow_eq_6_to_8(shape: tuple[int, int]) -> None:
    """Also for a wide matrix, which the kernel turns: the rows are those of the checkpoint."""
    deltas = [random_delta(shape, "decaying", seed) * (1 + seed) for seed in range(3)]
    deltas[1][:, 3] *= 20  # outliers in every row
    plan = plan_layer(TaskMatrices(deltas), settings("rtsvm", alpha_scale="sum"))
    assert plan.alphas == pytest.approx(outlier_alphas(deltas), rel=1e-9)
    assert plan.alphas[1] == max(plan.alphas)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"outlier_weighting": "paper", "alpha_scale": "sum"}, [0.1, 0.2, 0.7]),
        ({"outlier_weighting": "paper", "alpha_scale": "mean"}, [0.3, 0.6, 2.1]),
        ({"outlier_weighting": "inverse", "alpha_scale": "sum"}, [0.45, 0.4, 0.15]),
        ({"outlier_weighting": "paper", "alpha_scale": "mean", "outlier_strength": 0.5}, [0.65, 0.8, 1.55]),
        ({"outlier_weighting": "paper", "alpha_scale": "sum", "outlier_strength": 0.0}, [1 / 3] * 3),
        ({"outlier_weighting": "none", "alpha_scale": "sum"}, [1.0] * 3),
    ],
)
def test_weights_from_masses(options: dict[str, object], expected: list[float]) -> None:
    assert outlier_weights([1.0, 2.0, 7.0], settings("rtsvm", **options)) == pytest.approx(expected)


def test_no_outliers_anywhere_give_uniform_weights() -> None:
    """Rows of one size have sigma = 0, so that every entry reaches mu + 3 sigma; only zeros have no mass."""
    assert outlier_weights([0.0, 0.0], settings("rtsvm")) == [1.0, 1.0]
    assert outlier_mass(TaskMatrices([torch.zeros(4, 4)]), 0) == 0.0


@pytest.mark.parametrize("size", [0.1, 0.3, 1e-3])
@pytest.mark.parametrize("columns", [7, 64, 1000, 4096])
def test_a_row_of_one_size_counts_whole(columns: int, size: float) -> None:
    """sigma = 0 and every entry reaches mu, which float64 arithmetic misses by a unit in the last place or two."""
    signs = torch.randn(4, columns, generator=torch.Generator().manual_seed(1)).sign()
    mass = outlier_mass(TaskMatrices([size * signs]), 0)
    assert mass == pytest.approx(4 * columns * size, rel=1e-6)  # the size itself is rounded to float32


def test_inverse_weights_of_a_single_expert_are_one() -> None:
    assert outlier_weights([3.0], settings("rtsvm", outlier_weighting="inverse")) == [1.0]


def test_absolute_epsilon_counts_entries_below_it() -> None:
    deltas = [torch.tensor([[0.05, 0.2], [0.3, 0.01]]), torch.tensor([[0.0, 0.0], [0.1, 1.0]])]
    chosen = settings("rtsvm", epsilon_mode="absolute", epsilon=0.1)
    # 0.1 in float32 is a little more than 0.1 in float64 and does not count.
    assert sparsity(TaskMatrices(deltas), chosen) == 4 / 8


def test_relative_epsilon_is_a_share_of_the_rms() -> None:
    deltas = [random_delta((200, 100), "flat", seed) for seed in range(2)]
    omega = sparsity(TaskMatrices(deltas), settings("rtsvm", epsilon_mode="relative", epsilon=0.3))
    assert omega == pytest.approx(0.2358, abs=0.01)  # P(|x| < 0.3) of a normal distribution


def test_the_papers_epsilon_makes_fine_tuning_updates_fully_sparse() -> None:
    deltas = [random_delta((60, 60), "flat", seed) for seed in range(3)]
    _, report = merge(TaskMatrices(deltas), [1.0] * 3, settings("rtsvm", epsilon_mode="absolute", epsilon=0.1))
    assert report.omega == 1.0
    assert report.budget == 16  # floor(floor(60 * 0.8) / 3), whatever the layer holds


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"gamma": 0.0}, 20),
        ({"gamma": 1.0}, 1),
        ({"gamma": 0.5}, 10),
        ({"gamma": 0.5, "rank_budget": "per_task"}, 30),
        ({"gamma": 0.5, "rank_selection": "none"}, 20),
    ],
)
def test_rank_follows_eq_10(options: dict[str, object], budget: int) -> None:
    deltas = [random_delta((60, 90), "flat", seed) for seed in range(3)]
    chosen = settings("rtsvm", epsilon_mode="absolute", epsilon=10.0, **options)
    _, report = merge(TaskMatrices(deltas), [1.0] * 3, chosen)
    assert report.budget == budget


@pytest.mark.parametrize("gamma", [0.34, 0.9])
def test_the_rank_is_that_of_decimal_arithmetic(gamma: float) -> None:
    """100 (1 - 0.9) is 9.999999999999998 in float64, and its floor would be 9."""
    deltas = [random_delta((100, 100), "flat", 0)]
    plan = plan_layer(TaskMatrices(deltas), settings("rtsvm", gamma=gamma, epsilon_mode="absolute", epsilon=1.0))
    assert plan.omega == 1.0
    assert plan.rules[0].budget == round(100 - 100 * gamma)


def test_energy_keeps_the_fewest_values_that_hold_the_share() -> None:
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert [rank_for_energy(values, 14.0, share) for share in (0.5, 0.65, 0.93, 1.0)] == [1, 2, 3, 3]


def test_energy_limits_the_rank_of_a_merge() -> None:
    deltas = [random_delta((60, 60), "steep", seed) for seed in range(2)]
    free, unlimited = merge(TaskMatrices(deltas), [1.0] * 2, settings())
    limited, report = merge(TaskMatrices(deltas), [1.0] * 2, settings(energy=0.9))
    squares = torch.linalg.svdvals(deltas[0].double()).square()
    share = squares.cumsum(0) / squares.sum()
    rank = report.ranks[0]
    assert rank < unlimited.ranks[0]
    assert share[rank - 2] < 0.9 <= share[rank - 1]
    assert relative(limited, free) > 0.01
