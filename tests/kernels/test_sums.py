"""The spectrum of a weighted sum of updates: whole, or no further down than an edge."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mergekit_3h.kernels.sums import SumSpectrum, UpdateSum, sum_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPES = [(60, 40), (40, 60), (50, 50), (420, 300)]


def total_of(shape: tuple[int, int], values: Sequence[float]) -> UpdateSum:
    """A sum of two float64 updates that has these singular values."""
    generator = torch.Generator().manual_seed(3)
    count = len(values)
    left, right = (torch.linalg.qr(torch.randn(side, count, generator=generator).double())[0] for side in shape)
    whole = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
    other = torch.randn(shape, generator=generator, dtype=torch.float64)
    return UpdateSum(TaskMatrices([2 * whole + other, -2 * other]), [0.5, 0.25])


def kept_part(spectrum: SumSpectrum) -> torch.Tensor:
    return spectrum.right @ torch.diag(spectrum.values) @ spectrum.right.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("least", [1e-2, 1e-5], ids=["known", "measured again"])
def test_beyond_an_edge_it_is_the_leading_part_of_the_whole(shape: tuple[int, int], least: float) -> None:
    side = min(shape)
    total = total_of(shape, [least ** (i / (side - 1)) for i in range(side)])
    whole = sum_spectrum(total)
    edge = 2 * float(whole.values[-1])
    count = int((whole.values > edge).sum())
    assert 0 < count < whole.rank == side
    beyond = sum_spectrum(total, edge)
    assert beyond.rank == count
    assert torch.allclose(beyond.values, whole.values[:count], rtol=1e-9)
    assert torch.allclose(kept_part(beyond), kept_part(SumSpectrum(whole.values[:count], whole.right[:, :count])))


def test_where_nothing_reaches_beyond_the_edge_all_is_kept() -> None:
    total = total_of((60, 40), [1.0] * 40)
    assert sum_spectrum(total, 2.0).rank == 40


@pytest.mark.parametrize("edge", [0.0, 0.5])
def test_directions_in_which_the_sum_is_nothing_are_left_out(edge: float) -> None:
    assert sum_spectrum(total_of((60, 40), [3.0, 2.0, 1.0]), edge).rank == 3
