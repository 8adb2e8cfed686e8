"""The edge of a random matrix against matrices drawn at random, and against the one formula that is in every book."""

from __future__ import annotations

import math

import pytest
import torch

from mergekit_3h.kernels.random_edges import random_edge


def uneven(size: int, seed: int, spread: float) -> torch.Tensor:
    """Variances that differ by a log-normal factor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(size, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (1000, 10), (1, 7), (1, 1)])
def test_even_variances_give_the_edge_of_marchenko_and_pastur(rows: int, columns: int) -> None:
    sums = torch.full((rows,), 4.0 * columns).double(), torch.full((columns,), 4.0 * rows).double()
    # The square of the edge is a minimum, found to 1e-9.
    assert random_edge(*sums) == pytest.approx(2 * (math.sqrt(rows) + math.sqrt(columns)), rel=1e-8)


@pytest.mark.parametrize("spread", [0.3, 0.6])
@pytest.mark.parametrize("shape", [(900, 900), (1600, 400), (300, 1200)])
def test_uneven_variances_end_where_drawn_matrices_end(shape: tuple[int, int], spread: float) -> None:
    rows, columns = uneven(shape[0], 1, spread), uneven(shape[1], 2, spread)
    columns *= rows.sum() / columns.sum()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise *= torch.outer(rows, columns / rows.sum()).sqrt()
    top = float(torch.linalg.matrix_norm(noise, 2))
    # A matrix of this size stays under the edge of an infinite one by size^(-2/3) and more, the fewer rows and
    # columns hold the noise.
    assert top == pytest.approx(random_edge(rows, columns), rel=0.05)
    even = math.sqrt(float(rows.sum()) / noise.numel()) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    assert spread < 0.5 or even < 0.9 * top


def test_transposing_changes_nothing_and_scaling_scales() -> None:
    rows, columns = uneven(80, 1, 1.0), uneven(50, 2, 1.0)
    columns *= rows.sum() / columns.sum()
    edge = random_edge(rows, columns)
    assert random_edge(columns, rows) == pytest.approx(edge, rel=1e-8)
    assert random_edge(9 * rows, 9 * columns) == pytest.approx(3 * edge, rel=1e-8)


def test_rows_without_noise_do_not_matter() -> None:
    rows, columns = uneven(80, 1, 1.0), uneven(50, 2, 1.0)
    columns *= rows.sum() / columns.sum()
    with_zeros = torch.cat([rows, torch.zeros(20, dtype=torch.float64)])
    assert random_edge(with_zeros, columns) == random_edge(rows, columns)
    assert random_edge(torch.zeros(3).double(), torch.zeros(2).double()) == 0.0


def test_sums_that_are_no_numbers_give_none() -> None:
    assert math.isnan(random_edge(torch.tensor([1.0, float("nan")]).double(), torch.ones(2).double()))
