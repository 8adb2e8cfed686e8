"""Where the textbook formula is ill-defined: what these kernels do instead, and that it is stable."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import merge_truncated, random_delta, relative, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPES = [(40, 40), (80, 30), (30, 80)]


def truncation(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-3 * torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_identical_experts_give_their_own_truncation(shape: tuple[int, int], n: int) -> None:
    delta = random_delta(shape, "decaying", 1)
    merged, report = merge(TaskMatrices([delta] * n), [1.0] * n, settings())
    assert relative(merged, truncation(delta, report.ranks[0])) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_zero_update_adds_nothing_and_disturbs_nobody(shape: tuple[int, int]) -> None:
    deltas = [random_delta(shape, "decaying", seed) for seed in range(2)]
    ranks = [min(shape) // 3] * 2
    merged, report = merge(TaskMatrices([*deltas, torch.zeros(shape)]), [1.0] * 3, settings())
    assert report.ranks == [*ranks, 0]
    assert relative(merged, merge_truncated(deltas, ranks, [1.0, 1.0])) < 1e-6


@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_all_updates_zero_give_zero(method: str) -> None:
    merged, report = merge(TaskMatrices([torch.zeros(20, 10)] * 3), [1.0] * 3, settings(method))
    assert report.ranks == [0, 0, 0]
    assert torch.equal(merged, torch.zeros(20, 10))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_is_returned_whole(shape: tuple[int, int]) -> None:
    delta = random_delta(shape, "decaying", 1)
    merged, report = merge(TaskMatrices([delta]), [1.0], settings())
    assert report.decompositions == ["none"]
    assert torch.equal(merged, delta)


def test_one_expert_of_limited_rank_is_its_truncation() -> None:
    delta = random_delta((40, 30), "decaying", 1)
    merged, report = merge(TaskMatrices([delta]), [1.0], settings("rtsvm", gamma=0.5, epsilon=1.0))
    assert 0 < report.ranks[0] < 30
    assert relative(merged, truncation(delta, report.ranks[0])) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_one_unit_in_the_last_place_moves_low_rank_merges_by_no_more(shape: tuple[int, int]) -> None:
    """With rank 4 and a budget of 10, null-space vectors would be taken in and move the result by tens of percent."""
    deltas = [low_rank(shape, 4, seed) for seed in range(3)]
    nudged = [torch.nextafter(delta, torch.full_like(delta, torch.inf)) for delta in deltas]
    merged, report = merge(TaskMatrices(deltas), [1.0] * 3, settings())
    moved, _ = merge(TaskMatrices(nudged), [1.0] * 3, settings())
    assert report.ranks == [4, 4, 4]
    assert relative(moved, merged) < 1e-6


def test_rank_one_of_small_matrices_is_never_rounded_to_nothing() -> None:
    """Five tasks share the rank of a 3 x 3 matrix: floor(3 / 5) is 0, and every task keeps 1."""
    deltas = [random_delta((3, 3), "flat", seed) for seed in range(5)]
    _, report = merge(TaskMatrices(deltas), [1.0] * 5, settings())
    assert report.ranks == [1] * 5


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_matrices_of_one_row_or_column(shape: tuple[int, int]) -> None:
    deltas = [random_delta(shape, "flat", seed) for seed in range(3)]
    merged, _ = merge(TaskMatrices(deltas), [1.0] * 3, settings())
    assert relative(merged, merge_truncated(deltas, [1, 1, 1], [1.0] * 3)) < 1e-6


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-8])
def test_nearly_parallel_experts_do_not_blow_up(gap: float) -> None:
    """A polar factor has norm-one columns at most; noise divided by a vanishing overlap would not."""
    one = random_delta((40, 40), "decaying", 1)
    other = one + gap * random_delta((40, 40), "decaying", 2)
    merged, _ = merge(TaskMatrices([one, other]), [1.0, 1.0], settings())
    assert torch.isfinite(merged).all()
    assert float(torch.linalg.matrix_norm(merged, 2)) <= 2.0 * float(torch.linalg.matrix_norm(one, 2))
