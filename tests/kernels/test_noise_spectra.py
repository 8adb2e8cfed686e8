"""Triplets that are as exact as the rounding of a checkpoint is worth, against full SVDs in float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernels.oracle import merge_truncated, random_delta, relative, settings
from kernels.test_noise import lora_update, uneven_weights

from mergekit_3h.kernels import noise_spectra
from mergekit_3h.kernels.assembly import Report, merge
from mergekit_3h.kernels.noise import rounding_edge
from mergekit_3h.kernels.noise_spectra import SHARE, enough_precision, is_narrow, noise_spectrum
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.spectra import Spectrum, gram_of, likely_values, total_square
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPE = (480, 400)
UPDATE_RMS = 2.8e-4


def weights(shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """Ten times the size of a fresh model's, as those of small trained ones are: 2.8e-4 is about an ulp of theirs."""
    return (10 * uneven_weights(*shape)).bfloat16()


def updates(shape: tuple[int, int] = SHAPE, count: int = 3) -> list[torch.Tensor]:
    return [random_delta(shape, "decaying", seed, scale=UPDATE_RMS) for seed in range(count)]


def rounded(base: torch.Tensor, made: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(base.float() + update).to(base.dtype) for update in made]


def merged(experts: list[torch.Tensor], base: torch.Tensor, **options: object) -> tuple[torch.Tensor, Report]:
    return merge(TaskMatrices(experts, base), [1.0] * len(experts), settings(**options))


def one_expert(shape: tuple[int, int] = SHAPE) -> tuple[TaskMatrices, float]:
    base = weights(shape)
    expert = rounded(base, updates(shape, 1))[0]
    return TaskMatrices([expert], base), rounding_edge(expert, base)


def found_in(tasks: TaskMatrices, rule: RankRule, share: float = SHARE) -> Spectrum:
    found = noise_spectrum(gram_of(tasks, 0), rule, share)
    assert found is not None
    return found


@pytest.mark.parametrize("budget", [130, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triplets_are_the_leading_ones_of_a_matrix_that_near(dtype: torch.dtype, budget: int) -> None:
    """The matrix is built from the definition: delta without what its image on the complement has along U."""
    tasks, edge = one_expert()
    delta = tasks.block(0, slice(0, tasks.rows))
    found = noise_spectrum(gram_of(tasks, 0, dtype), RankRule(tasks.columns, budget, edge, 1.0))
    assert found is not None
    assert (found.method, found.residual) == ("within rounding", math.inf)
    v = found.right
    assert torch.allclose(v.T @ v, torch.eye(found.rank, dtype=torch.float64), atol=1e-12)
    u = torch.linalg.qr(delta @ v)[0]
    change = u @ (u.T @ delta @ (torch.eye(tasks.columns, dtype=torch.float64) - v @ v.T))
    assert float(change.norm()) <= SHARE * edge
    # float32 rounds what is measured by about 1e-7 |delta|^2 / edge^2, here 1e-4.
    assert float(change.norm()) / edge == pytest.approx(found.perturbation, abs=2e-4)
    values, right = torch.linalg.svd(delta - change, full_matrices=False)[1:]
    assert torch.allclose(values[: found.rank], found.values, rtol=1e-4)
    assert float((right[: found.rank] @ v).square().sum()) == pytest.approx(found.rank, rel=1e-6)
    if budget == 130:
        assert 10 < found.rank < budget
        assert found.values[-1] > edge
        assert values[found.rank] < (1 + SHARE) * edge
    else:
        assert found.rank == budget


@pytest.mark.parametrize("shape", [(400, 400), (800, 400), (400, 800)])
def test_the_merge_moves_by_less_than_a_tenth_of_what_rounding_moves_it_by(shape: tuple[int, int]) -> None:
    base, made = weights(shape), updates(shape)
    experts = rounded(base, made)
    near, report = merged(experts, base)
    exact, exact_report = merged(experts, base, decomposition="exact")
    assert report.decompositions == ["within rounding"] * 3
    assert max(report.perturbations) <= SHARE
    assert report.residuals == [math.inf] * 3
    assert exact_report.perturbations == exact_report.residuals == [0.0] * 3
    assert report.ranks == exact_report.ranks
    unrounded = merge_truncated(made, report.ranks, [1.0] * 3)
    oracle = merge_truncated([e.double() - base.double() for e in experts], report.ranks, [1.0] * 3)
    assert relative(exact, oracle) < 1e-6
    assert relative(near, oracle) < relative(oracle, unrounded) / 10


def test_a_smaller_share_is_never_further_from_the_exact_result(monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights()
    experts = rounded(base, updates())
    exact, _ = merged(experts, base, decomposition="exact")
    distances = []
    for share in (0.3, 0.1, 0.03, 0.01, 0.003):
        monkeypatch.setattr(
            "mergekit_3h.kernels.decompositions.noise_spectrum",
            lambda gram, rule, share=share: noise_spectrum(gram, rule, share),
        )
        near, report = merged(experts, base)
        assert max(report.perturbations) <= share
        distances.append(relative(near, exact))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01


def test_a_tolerance_asks_for_the_old_bound() -> None:
    base = weights()
    experts = rounded(base, updates())
    asked, report = merged(experts, base, tolerance=1e-6)
    exact, _ = merged(experts, base, decomposition="exact")
    assert report.decompositions == ["exact"] * 3
    assert torch.equal(asked, exact)


def test_the_same_bits_with_any_number_of_threads() -> None:
    base = weights()
    experts = rounded(base, updates())
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        results.append(merged(experts, base)[0])
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_weights_so_small_that_everything_is_above_the_edge_are_decomposed_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found out by a Krylov space of a twelfth of the columns: no block is drawn into the subspace."""
    monkeypatch.delattr(noise_spectra, "_filtered")
    base = (0.1 * weights().float()).bfloat16()
    experts = rounded(base, [random_delta(SHAPE, "flat", seed, scale=1e-3) for seed in range(2)])
    near, report = merged(experts, base)
    exact, _ = merged(experts, base, decomposition="exact")
    assert min(report.noise_edges) > 0
    assert report.decompositions == ["exact"] * 2
    assert torch.equal(near, exact)


def test_where_nothing_is_above_the_edge_there_is_nothing_to_find() -> None:
    tasks, _ = one_expert()
    top = float(torch.linalg.matrix_norm(tasks.block(0, slice(0, tasks.rows)), 2))
    assert noise_spectrum(gram_of(tasks, 0), RankRule(tasks.columns, 130, 1.01 * top, 1.0)) is None
    assert found_in(tasks, RankRule(tasks.columns, 130, 0.7 * top, 1.0)).rank == 1


def test_merged_lora_updates_keep_their_rank_in_float64() -> None:
    """They reach 1000 times beyond the edge, further than float32 sees."""
    base = (0.1 * weights().float()).bfloat16()
    experts = rounded(base, [lora_update(0.02, seed, shape=SHAPE) for seed in range(3)])
    tasks = TaskMatrices(experts, base)
    edge = rounding_edge(experts[0], base)
    assert enough_precision(total_square(tasks, 0), edge, tasks.device) == torch.float64
    near, report = merged(experts, base)
    assert report.ranks == [16] * 3
    assert report.decompositions == ["within rounding"] * 3
    assert relative(near, merged(experts, base, decomposition="exact")[0]) < 1e-4


def test_an_unchanged_expert_and_one_that_was_changed_by_an_ulp_among_others() -> None:
    base = weights()
    experts = [*rounded(base, updates(count=2)), base.clone(), base.clone()]
    experts[3].view(-1)[::97] = torch.nextafter(base.view(-1)[::97], torch.tensor(torch.inf, dtype=base.dtype))
    near, report = merged(experts, base)
    exact, exact_report = merged(experts, base, decomposition="exact")
    assert report.ranks == exact_report.ranks
    assert report.ranks[2] == 0
    assert relative(near, exact) < 0.02


def test_identical_experts_give_their_own_truncation() -> None:
    base = weights()
    expert = rounded(base, updates(count=1))[0]
    near, report = merged([expert] * 3, base)
    rank = report.ranks[0]
    alone = merge_truncated([expert.double() - base.double()], [rank], [1.0])
    assert report.decompositions == ["within rounding"] * 3
    assert report.dependent == (2 * rank, 2 * rank)
    # Three times the expert's singular values on what all have in common, decorrelated: itself.
    assert relative(near, alone) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_missing_direction_is_seen_in_the_rest(dtype: torch.dtype) -> None:
    """Whichever of those beyond the edge it is; those under it are not missed."""
    tasks, edge = one_expert()
    gram = gram_of(tasks, 0)
    unit = symmetric(gram, torch.zeros_like(gram)) / edge**2
    squares, vectors = torch.linalg.eigh(unit)
    order = squares.argsort(descending=True)
    squares, rows, unit = squares[order].to(dtype), vectors.T[order].to(dtype), unit.to(dtype)
    count = int((squares > 1).sum())

    def is_accepted(chosen: list[int]) -> bool:
        kept = noise_spectra.Ritz(squares[chosen], rows[chosen], rows[chosen] @ unit)
        assert kept.perturbation < 1e-3
        return noise_spectra._has_no_other(unit, kept, 1.0)

    assert is_accepted(list(range(count)))
    assert is_accepted(list(range(count + 5)))
    for missing in range(count):
        assert not is_accepted([i for i in range(count) if i != missing])


def symmetric(upper: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    return upper.triu() + upper.triu(1).T + added


def test_forty_equal_singular_values_are_all_found() -> None:
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(n, 40, generator=generator, dtype=torch.float64))[0] for n in SHAPE)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64) / (math.sqrt(SHAPE[0]) + math.sqrt(SHAPE[1]))
    tasks = TaskMatrices([8 * u @ v.T + noise])
    found = found_in(tasks, RankRule(tasks.columns, 130, 1.05, 1.0))
    assert found.rank == 40
    assert torch.allclose(found.values, torch.full((40,), 8.0).double(), rtol=0.05)  # the noise tells them apart


def test_energy_limits_the_rank_as_it_does_elsewhere() -> None:
    tasks, edge = one_expert()
    values = torch.linalg.svdvals(tasks.block(0, slice(0, tasks.rows)))
    rule = RankRule(tasks.columns, 130, edge, 0.45)
    expected = rule(values, float(values.square().sum()))
    assert 1 < expected < int((values > edge).sum())
    found = found_in(tasks, rule)
    assert found.rank == expected
    assert torch.allclose(found.values, values[:expected], rtol=1e-3)


def test_the_spectrum_is_told_from_a_few_vectors() -> None:
    tasks, edge = one_expert()
    gram = gram_of(tasks, 0)
    unit = symmetric(gram, torch.zeros_like(gram)) / edge**2
    likely = noise_spectra._first_look(unit)[1]
    truth = torch.linalg.eigvalsh(unit)
    assert likely.numel() == pytest.approx(tasks.columns, abs=2)
    for least in (1.0, 4.0):
        assert int((likely > least).sum()) == pytest.approx(int((truth > least).sum()), rel=0.25, abs=2)


def test_likely_values_of_a_whole_krylov_space_are_the_values() -> None:
    """As many vectors as columns: nothing is left to chance."""
    values = torch.tensor([5.0, 3.0, 3.0, 1.0])
    assert torch.equal(likely_values(values, torch.eye(4), 4), values)


def test_a_wide_block_is_no_gain() -> None:
    assert is_narrow(100, 576)
    assert not is_narrow(300, 576)


def test_products_in_less_than_float32_are_not_trusted() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        assert enough_precision(1.0, 1.0, torch.device("cpu")) == torch.float32
        torch.set_float32_matmul_precision("medium")
        assert enough_precision(1.0, 1.0, torch.device("cpu")) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)
    assert enough_precision(1.0, 1.0, torch.device("cuda")) == torch.float64
