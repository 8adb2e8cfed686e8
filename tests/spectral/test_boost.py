"""Subspace Boosting: which singular values of a merge are raised, and how far."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.updates import SHAPES, low_rank, update


def values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


def three(shape: tuple[int, int]) -> list[Tensor]:
    return [update(shape, seed) for seed in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_small_singular_values_are_raised_and_large_ones_stay(shape: tuple[int, int]) -> None:
    updates = three(shape)
    result, report = parse_options("boost", {"beta": 0.5}).merge(TaskMatrices(updates), [1.0] * 3)
    before, after = values(torch.stack(updates).sum(0)), values(result)
    kept = report.kept
    assert before[: kept - 1].sum() < 0.5 * before.sum() <= before[:kept].sum()
    assert torch.allclose(after[:kept], before[:kept], rtol=1e-5)
    assert torch.allclose(after[kept:], before[kept - 1].expand_as(after[kept:]), rtol=1e-5)
    assert report.growth == pytest.approx(float(after.norm() / before.norm()), rel=1e-5)


@pytest.mark.parametrize("combine", ["task_arithmetic", "tsvm", "star"])
def test_beta_1_raises_none(combine: str) -> None:
    updates = three((24, 24))
    result, _ = parse_options("boost", {"combine": combine, "beta": 1.0}).merge(TaskMatrices(updates), [1.0] * 3)
    plain = torch.stack(updates).sum(0)
    if combine != "task_arithmetic":
        plain, _ = parse_options(combine, {}).merge(TaskMatrices(updates), [1.0] * 3)
    assert relative_error(result, plain) < 1e-6


def test_directions_that_are_not_there_are_not_raised() -> None:
    """The textbook formula would raise vectors that nothing defines to the size of the largest."""
    updates = [low_rank((40, 24), 2, seed) for seed in range(3)]
    result, report = parse_options("boost", {"beta": 0.0}).merge(TaskMatrices(updates), [1.0] * 3)
    after = values(result)
    assert report.ranks == [6] and report.kept == 1
    assert torch.allclose(after[:6], after[0].expand(6), rtol=1e-5)
    assert float(after[6]) < 1e-6 * float(after[0])


@pytest.mark.parametrize(("floor", "rank"), [("auto", 12), ("off", 128)])
def test_rounding_of_the_checkpoints_is_not_raised(floor: str, rank: int) -> None:
    generator = torch.Generator().manual_seed(3)
    base = (0.02 * torch.randn(160, 128, generator=generator)).bfloat16()
    updates = [
        1e-3 * torch.randn(160, 4, generator=generator) @ torch.randn(4, 128, generator=generator) for _ in "abc"
    ]
    tasks = TaskMatrices([(base.float() + each).bfloat16() for each in updates], base)
    result, report = parse_options("boost", {"beta": 0.0, "noise_floor": floor}).merge(tasks, [1.0] * 3)
    assert report.ranks == [rank]
    after = values(result)
    assert torch.allclose(after[:rank], after[0].expand(rank), rtol=1e-5)


@pytest.mark.parametrize("method", ["boost", "svc"])
@pytest.mark.parametrize("combine", ["iso_c", "boost", "svc", "della"])
def test_merges_without_directions_of_their_own_are_refused(method: str, combine: str) -> None:
    with pytest.raises(
        OptionError, match=rf"'combine': got '{combine}'; {method} takes task_arithmetic, ties, .*cart, .*tsvm"
    ):
        parse_options(method, {"combine": combine})
