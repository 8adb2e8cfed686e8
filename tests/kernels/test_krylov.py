"""The Krylov route: as exact as promised where it is certified, and out of the way where it is not."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import random_delta, relative, settings

from mergekit_3h.kernels import krylov
from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.krylov import certified_krylov, krylov_spectrum
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.tasks import TaskMatrices


def noisy_low_rank(shape: tuple[int, int], rank: int, seed: int, noise: float = 1e-5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    return 1e-3 * signal + noise * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", [(800, 800), (1200, 780), (780, 1200)])
def test_certified_results_equal_the_exact_ones(shape: tuple[int, int]) -> None:
    deltas = [noisy_low_rank(shape, 12, seed) for seed in range(3)]
    limit = {"energy": 0.99}
    auto, report = merge(TaskMatrices(deltas), [1.0] * 3, settings(decomposition="auto", **limit))
    exact, exact_report = merge(TaskMatrices(deltas), [1.0] * 3, settings(decomposition="exact", **limit))
    assert report.decompositions == ["krylov"] * 3
    assert report.ranks == exact_report.ranks
    assert max(report.residuals) <= 1e-6
    assert relative(auto, exact) < 1e-5


def test_flat_spectra_fall_back_to_the_exact_decomposition() -> None:
    deltas = [random_delta((800, 800), "flat", seed) for seed in range(2)]
    auto, report = merge(TaskMatrices(deltas), [1.0] * 2, settings(decomposition="auto", energy=0.05))
    exact, _ = merge(TaskMatrices(deltas), [1.0] * 2, settings(decomposition="exact", energy=0.05))
    assert report.decompositions == ["exact, krylov not certified"] * 2
    assert torch.equal(auto, exact)


@pytest.mark.parametrize(("budget", "energy", "blocks"), [(1280, 0.6, 2), (12, 1.0, 3)])
def test_what_cannot_be_certified_is_given_up_early(
    monkeypatch: pytest.MonkeyPatch, budget: int, energy: float, blocks: int
) -> None:
    """Of five blocks that there may be: at once where the rank is too large, else when there is no gap to be seen."""
    delta = random_delta((1280, 1280), "flat", 1)
    values = torch.linalg.svdvals(delta)
    rule = RankRule(1280, budget, noise_edge=0.0, energy=energy)
    multiplied = []
    original = krylov._gram_times
    monkeypatch.setattr(krylov, "_gram_times", lambda *given: multiplied.append(given) or original(*given))
    found, expected_rank = certified_krylov(TaskMatrices([delta]), 0, rule, 1e-6)
    assert found is None
    assert len(multiplied) == blocks
    assert expected_rank == pytest.approx(rule(values, float(values.square().sum())), rel=0.3)


def test_it_is_not_tried_where_the_rank_is_a_large_part_of_the_matrix() -> None:
    deltas = [noisy_low_rank((800, 800), 12, seed) for seed in range(2)]
    _, report = merge(TaskMatrices(deltas), [1.0] * 2, settings(decomposition="auto"))
    assert report.decompositions == ["exact"] * 2


def test_without_a_certificate_the_residual_is_reported() -> None:
    deltas = [random_delta((300, 300), "flat", seed) for seed in range(2)]
    _, report = merge(TaskMatrices(deltas), [1.0] * 2, settings(decomposition="krylov", energy=0.05))
    assert report.decompositions == ["krylov"] * 2
    assert min(report.residuals) > 1e-6


def test_without_a_certificate_the_largest_subspace_is_used() -> None:
    """Half of the columns, which is also what two tasks may have: a flat spectrum does not end the search early."""
    deltas = [random_delta((320, 320), "flat", seed) for seed in range(2)]
    _, report = merge(TaskMatrices(deltas), [1.0] * 2, settings(decomposition="krylov"))
    assert report.decompositions == ["krylov"] * 2
    assert report.ranks == [160, 160]


def test_the_bound_holds() -> None:
    """The angle between the found and the true subspace is under the reported sine, at every stage of convergence."""
    delta = noisy_low_rank((400, 300), 8, 1, noise=3e-4)
    _, _, vh = torch.linalg.svd(delta.double())
    rule = RankRule(300, budget=8, noise_edge=0.0, energy=1.0)
    for tolerance in (1.0, 1e-3, 1e-6):
        found = krylov_spectrum(TaskMatrices([delta]), 0, rule, tolerance)
        outside = found.right - vh[:8].T @ (vh[:8] @ found.right)
        # 1e-12: float64 noise of the comparison itself.
        assert float(torch.linalg.matrix_norm(outside, 2)) <= found.residual + 1e-12
        assert found.residual <= tolerance


def test_equal_leading_singular_values_are_all_found() -> None:
    """A block method finds a cluster as large as its block; here 20 equal values of 300."""
    generator = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(400, 40, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(300, 40, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.ones(20), 0.01 * torch.ones(20)]).double()
    delta = u @ torch.diag(values) @ v.T
    rule = RankRule(300, budget=20, noise_edge=0.0, energy=1.0)
    found = krylov_spectrum(TaskMatrices([delta]), 0, rule, 1e-6)
    assert found.residual <= 1e-6
    assert torch.allclose(found.values, torch.ones(20, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1e-8])
def test_more_equal_singular_values_than_a_block_has_columns_are_not_certified(spread: float) -> None:
    """Of 40 equal values a block of 32 finds 32, with tiny residuals and a wide gap below them."""
    generator = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(800, 40, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(800, 40, generator=generator, dtype=torch.float64))[0]
    delta = u @ torch.diag(1 - spread * torch.rand(40, generator=generator, dtype=torch.float64)) @ v.T
    _, report = merge(TaskMatrices([delta, delta.T]), [1.0] * 2, settings(energy=0.999999))
    assert report.ranks == [40, 40]


def test_a_zero_matrix_has_rank_zero() -> None:
    rule = RankRule(300, budget=8, noise_edge=0.0, energy=1.0)
    found, _ = certified_krylov(TaskMatrices([torch.zeros(400, 300)]), 0, rule, 1e-6)
    assert found is not None
    assert found.rank == 0
