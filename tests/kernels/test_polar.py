"""Polar factors: two ways to one inverse square root, and directions as small as float64 can tell from none."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import merge_truncated, polar_factor, random_delta, relative, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.inverse_roots import Factor, inverse_sqrt, inverse_sqrt_of_two_blocks
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor

SEEDS = 400
NEARLY_DEPENDENT = [(102, 48, 3), (751, 64, 2)]
"""Seed, side and number of tasks of random updates whose right singular vectors have a condition above 1e5."""


def factor(matrix: torch.Tensor, error: float = 1e-13) -> Factor:
    """A factor in two blocks of rows, all of whose columns have one error."""
    half = matrix.shape[0] // 2
    return Factor(lambda: iter([matrix[:half], matrix[half:]]), torch.full(matrix.shape[1:], error, dtype=matrix.dtype))


def square_updates(seed: int, side: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(side, side, generator=generator, dtype=torch.float64) for _ in range(n)]


def error_and_condition(deltas: list[torch.Tensor]) -> tuple[float, float, float]:
    """Relative error of the merge, the condition by SVDs of the concatenated singular vectors, and the reported one."""
    n, rank = len(deltas), deltas[0].shape[0] // len(deltas)
    merged, report = merge(TaskMatrices(deltas), [1.0] * n, settings())
    expected = merge_truncated(deltas, [rank] * n, [1.0] * n)
    svds = [torch.linalg.svd(delta.double()) for delta in deltas]
    sides = [torch.cat([u[:, :rank] for u, _, _ in svds], 1), torch.cat([vh[:rank] for _, _, vh in svds])]
    values = [torch.linalg.svdvals(side) for side in sides]
    assert report.dependent == (0, 0)
    return relative(merged, expected), max(float(s[0] / s[-1]) for s in values), max(report.conditions)


@pytest.mark.slow
def test_random_updates_are_merged_to_the_precision_of_their_condition() -> None:
    """Whatever the seed: 1e-13 is some hundred roundings of float64. Dropping a real direction costs about 0.1."""
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        small = float(torch.rand((), generator=generator)) ** 3  # most of them small: they take the less time
        side, n = 32 + int(96 * small), int(torch.randint(2, 6, (), generator=generator))
        error, condition, reported = error_and_condition(square_updates(seed, side, n))
        assert error < 1e-13 * condition, (seed, side, n, condition)
        assert reported == pytest.approx(condition, rel=1e-6), (seed, side, n)


@pytest.mark.parametrize(("seed", "side", "n"), NEARLY_DEPENDENT)
def test_directions_that_are_nearly_dependent_are_kept(seed: int, side: int, n: int) -> None:
    deltas = square_updates(seed, side, n)
    error, condition, reported = error_and_condition(deltas)
    assert 1e5 < condition == pytest.approx(reported, rel=1e-6)
    assert error < 1e-13 * condition
    # Also as float32, in which the result alone is rounded by 3e-8.
    assert error_and_condition([delta.float() for delta in deltas])[0] < 1e-7


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-12])
def test_a_small_direction_is_measured_on_the_factor_itself(smallest: float) -> None:
    """Its square, which is what the Gram matrix holds, is nothing beside 1e-15."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(40, 12, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(1, 2, 12, dtype=torch.float64)
    values[5] = smallest
    matrix = u @ torch.diag(values) @ v.T
    root, extent = inverse_sqrt(matrix.T @ matrix, factor(matrix))
    assert extent.dependent == 0
    assert extent.condition == pytest.approx(2 / smallest, rel=1e-14 / smallest)
    assert relative(matrix @ root, u @ v.T) < 1e-14 / smallest


@pytest.mark.parametrize("smallest", [0.0, 1e-9])
def test_a_direction_within_the_error_of_the_factor_is_dropped(smallest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(40, 3, generator=generator, dtype=torch.float64))[0]
    matrix = u @ torch.diag(torch.tensor([2.0, 1.0, smallest], dtype=torch.float64))
    root, extent = inverse_sqrt(matrix.T @ matrix, factor(matrix, error=1e-9))
    assert (extent.condition, extent.dependent) == (pytest.approx(2.0), 1)
    assert torch.allclose(matrix @ root, torch.cat([u[:, :2], torch.zeros(40, 1, dtype=torch.float64)], 1), atol=1e-9)


def test_experts_of_one_row_space_are_not_told_apart_by_their_rounding() -> None:
    """LoRA experts that share A: in float32 checkpoints their row spaces differ by roundings of the weights alone."""
    generator = torch.Generator().manual_seed(1)
    base = 0.02 * torch.randn(120, 120, generator=generator)
    shared = torch.randn(8, 120, generator=generator)
    updates = [1e-4 * torch.randn(120, 8, generator=generator) @ shared for _ in range(3)]
    merged, report = merge(TaskMatrices([base + update for update in updates], base), [1.0] * 3, settings())
    assert report.ranks == [8, 8, 8]
    assert report.dependent == (0, 16)
    rows = torch.linalg.qr(shared.T.double())[0]
    assert relative(merged.double() @ rows @ rows.T, merged) < 1e-4


def test_dependent_directions_are_counted_on_the_side_of_the_checkpoint() -> None:
    """A wide matrix is merged as its transpose; its rows are its output side all the same."""
    one, other = random_delta((30, 20), "decaying", 1), random_delta((30, 20), "decaying", 2)
    tall = merge(TaskMatrices([one, one, other]), [1.0] * 3, settings())[1]
    wide = merge(TaskMatrices([one.T, one.T, other.T]), [1.0] * 3, settings())[1]
    assert tall.dependent == wide.dependent == (6, 6)
    assert wide.conditions == pytest.approx(tall.conditions[::-1])


def test_a_factor_wider_than_high_is_measured_too() -> None:
    """Three experts of full rank in one plane less than the columns have."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(11, 12, generator=generator, dtype=torch.float64)
    deltas = [torch.randn(30, 11, generator=generator, dtype=torch.float64) @ rows for _ in range(3)]
    merged, report = merge(TaskMatrices(deltas), [1.0] * 3, settings("rtsvm", rank_budget="per_task", gamma=0.0))
    assert report.ranks == [11] * 3
    assert report.dependent == (0, 1)
    svds = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = polar_factor(torch.cat([u[:, :11] for u, _, _ in svds], 1))
    right = polar_factor(torch.cat([vh[:11] for _, _, vh in svds]))
    core = torch.cat([alpha * s[:11] for alpha, (_, s, _) in zip(report.outlier_weights, svds, strict=True)])
    assert relative(merged, left @ torch.diag(core) @ right) < 1e-10


@pytest.mark.parametrize("sizes", [(5, 5), (7, 3), (3, 7), (4, 0), (0, 4)])
def test_the_closed_form_for_two_blocks_is_the_inverse_square_root(sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (
        torch.linalg.qr(torch.randn(9, size, generator=generator, dtype=torch.float64))[0] for size in sizes
    )
    both = torch.cat([first, second], dim=1)
    closed, _ = inverse_sqrt_of_two_blocks(first.T @ second, factor(both))
    # 1 - sigma is known to 1e-16 / (1 - sigma), and some sigma come near 1 where 7 + 3 columns fill 9 dimensions.
    assert torch.allclose(closed, inverse_sqrt(both.T @ both, factor(both))[0], atol=1e-7)


def test_the_closed_form_near_orthogonality_uses_its_series() -> None:
    cross = torch.diag(torch.tensor([0.0, 1e-9, 1e-5, 9e-4, 1.1e-3], dtype=torch.float64))
    gram = torch.eye(10, dtype=torch.float64)
    gram[:5, 5:] = cross
    gram[5:, :5] = cross.T
    both = torch.linalg.cholesky(gram).T
    closed, _ = inverse_sqrt_of_two_blocks(cross, factor(both))
    assert torch.allclose(closed, inverse_sqrt(gram, factor(both))[0], atol=1e-14, rtol=0)


def test_parallel_directions_are_dropped_by_the_closed_form() -> None:
    cross = torch.eye(3, dtype=torch.float64)
    half = torch.full((3,), 0.5**1.5, dtype=torch.float64)
    expected = torch.diag(half).repeat(2, 2)
    closed, extent = inverse_sqrt_of_two_blocks(cross, factor(torch.eye(3, dtype=torch.float64).repeat(1, 2)))
    assert torch.allclose(closed, expected, atol=1e-12)
    assert (extent.condition, extent.dependent) == (1.0, 3)


def test_directions_in_common_are_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    base = torch.zeros(24, 24)
    expert = random_delta((24, 24), "decaying", 1)
    experts, weights = {"a": expert, "b": expert}, {"a": 1.0, "b": 1.0}
    with caplog.at_level("INFO", "mergekit_3h"):
        merge_tensor("layer.weight", base, experts, weights, parse_options("tsvm", {}))
    assert "layer.weight: 12 directions of the output side and 12 of the input side are the same" in caplog.text
