"""Measures against closed forms and against sums written out over the whole matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mergekit_3h.diagnostics.entries import sum_entries
from mergekit_3h.diagnostics.matrices import measure_tensor
from mergekit_3h.diagnostics.rows import layer_and_type, sampled_places
from mergekit_3h.diagnostics.subspaces import (
    directions_of_sum,
    effective_rank,
    energy_above,
    energy_share,
    interference,
    left_gram,
    over_counting,
    relative_interference,
    rows_in_directions,
    subspace_overlap,
)
from mergekit_3h.kernels.ranks import sparsity
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.rtsvm import RTSVM

EXACT = 1e-12
"""Sums of a few thousand float64 products."""


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


def grams(lefts: list[Tensor], values: list[Tensor], rights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    left, right = torch.cat(lefts, 1), torch.cat(rights, 1)
    return left.T @ left, torch.cat(values), right.T @ right


def test_orthogonal_tasks_do_not_interfere() -> None:
    u, v, values = orthonormal(40, 12), orthonormal(30, 12), torch.rand(6, dtype=torch.float64)
    given = grams([u[:, :6], u[:, 6:]], [values, values], [v[:, :6], v[:, 6:]])
    assert interference(*given) == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_equal_tasks_interfere_by_a_known_amount(tasks: int) -> None:
    """(J - I) (x) I on both sides: n (n - 1)^2 sum(s), so (n - 1)^2 of all singular values."""
    u, v, values = orthonormal(40, 6), orthonormal(30, 6), torch.rand(6, dtype=torch.float64)
    given = grams([u] * tasks, [values] * tasks, [v] * tasks)
    assert interference(*given) == pytest.approx(tasks * (tasks - 1) ** 2 * float(values.sum()), rel=EXACT)
    assert relative_interference(*given) == pytest.approx((tasks - 1) ** 2, rel=EXACT)


def test_tasks_that_share_one_side_only_do_not_interfere() -> None:
    u, v, values = orthonormal(40, 6), orthonormal(30, 12), torch.ones(6, dtype=torch.float64)
    given = grams([u, u], [values, values], [v[:, :6], v[:, 6:]])
    assert interference(*given) == pytest.approx(0, abs=EXACT)


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    basis = orthonormal(20, 8)
    assert subspace_overlap(basis, basis) == pytest.approx(1)
    assert subspace_overlap(basis[:, :4], basis[:, 4:]) == pytest.approx(0, abs=EXACT)
    angle = 0.3
    turned = math.cos(angle) * basis[:, :2] + math.sin(angle) * basis[:, 2:4]
    assert subspace_overlap(basis[:, :2], turned) == pytest.approx(math.cos(angle) ** 2)
    assert subspace_overlap(basis[:, :2], basis[:, :6]) == pytest.approx(1)  # one inside the other
    assert subspace_overlap(basis[:, :0], basis) == 0


def test_effective_rank_and_energy() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    values = torch.tensor([2.0, 1.0, 1.0])
    assert energy_share(values, 1) == pytest.approx(4 / 6)
    assert energy_share(values, 9) == pytest.approx(1)
    assert energy_above(values, edge=1.5) == pytest.approx(4 / 6)
    assert energy_above(values, edge=0) == pytest.approx(1)
    assert energy_share(torch.zeros(3), 1) == 0


def test_over_counting_of_known_updates() -> None:
    """Equal experts: n. Alone in its direction: 1. Opposite ones of half the size: the larger keeps a half."""
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    nothing = torch.zeros_like(first)
    assert over_counting([first, first, first]).tolist() == [[3, 3]] * 3
    assert over_counting([first, nothing]).tolist() == [[1, 1], [0, 0]]
    assert over_counting([first, -first / 2]).tolist() == [[0.5, 0.5], [-1, -1]]
    tiny = 1e-9 * first
    assert over_counting([tiny, tiny]).tolist() == [[2, 2]] * 2  # whatever the unit


@pytest.mark.parametrize("shape", [(60, 24), (24, 60)])
def test_leading_directions_of_a_sum(shape: tuple[int, int]) -> None:
    """A sum whose spectrum has a gap: the power iteration is at its singular vectors, by a full SVD."""
    experts = [torch.randn(shape, dtype=torch.float64) * 1e-3 for _ in range(3)]
    common = orthonormal(shape[0], 4) @ torch.diag(torch.tensor([9.0, 7, 5, 3], dtype=torch.float64))
    experts[0] += common @ orthonormal(shape[1], 4).T
    tasks = TaskMatrices(experts)
    left, values = directions_of_sum(tasks, 4)
    total = sum(experts[1:], experts[0])
    u, s, _ = torch.linalg.svd(total.T if tasks.is_wide else total, full_matrices=False)
    assert torch.allclose(values, s[:4], rtol=1e-9)
    assert torch.allclose((u[:, :4].T @ left).abs(), torch.eye(4, dtype=torch.float64), atol=1e-6)
    rows = rows_in_directions(tasks, left)
    assert torch.allclose(sum(rows[1:], rows[0]).square().sum(1).sqrt(), values, rtol=1e-9)


def test_left_gram_is_that_of_the_left_vectors() -> None:
    experts = [torch.randn(50, 20, dtype=torch.float64) for _ in range(2)]
    tasks = TaskMatrices(experts)
    svds = [torch.linalg.svd(expert, full_matrices=False) for expert in experts]
    left = torch.cat([u[:, :5] for u, _, _ in svds], 1)
    found = left_gram(tasks, [vh[:5].T for _, _, vh in svds])
    assert torch.allclose(found, left.T @ left, atol=1e-12)


@pytest.fixture
def three_updates() -> tuple[Tensor, list[Tensor]]:
    base = torch.randn(70, 40, dtype=torch.float64)
    experts = [base + 0.01 * torch.randn(70, 40, dtype=torch.float64) for _ in range(3)]
    experts[0][:10] = base[:10]
    experts[2] += 0.5 * (experts[1] - base) + 1e-3
    return base, experts


def test_entries_written_out(three_updates: tuple[Tensor, list[Tensor]]) -> None:
    base, experts = three_updates
    sums = sum_entries(TaskMatrices(experts, base))
    deltas = [expert - base for expert in experts]
    for i, delta in enumerate(deltas):
        assert sums.norm(i) == pytest.approx(float(delta.norm()), rel=1e-9)
        assert sums.relative_size(i) == pytest.approx(float(delta.norm() / base.norm()), rel=1e-9)
        cosine = torch.cosine_similarity(experts[i].flatten(), base.flatten(), dim=0)
        assert sums.weight_cosine(i) == pytest.approx(float(cosine), rel=1e-9)
        assert sums.unchanged(i) == pytest.approx(float((delta == 0).double().mean()), rel=EXACT)
        centred = delta - delta.mean()
        kurtosis = centred.pow(4).mean() / centred.square().mean().square()
        assert sums.kurtosis(i) == pytest.approx(float(kurtosis), rel=1e-6)
        assert float(sums.largest[i]) == pytest.approx(float(delta.abs().max()))
    for i, j in ((0, 1), (1, 2)):
        a, b = deltas[i], deltas[j]
        assert sums.cosine(i, j) == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-9)
        assert sums.distance(i, j) == pytest.approx(float((a - b).norm()), rel=1e-9)
        both = (a != 0) & (b != 0)
        assert sums.sign_conflicts(i, j) == pytest.approx(int(((a * b < 0) & both).sum()) / int(both.sum()))


def test_omega_at_many_thresholds_is_the_kernels(three_updates: tuple[Tensor, list[Tensor]]) -> None:
    base, experts = three_updates
    tasks = TaskMatrices(experts, base)
    sums = sum_entries(tasks)
    for exponent in (-30, -16, -13, -12, 0):
        options = RTSVM(epsilon_mode="absolute", epsilon=2.0 ** (exponent / 2))
        assert sums.sparsity_below(exponent) == sparsity(tasks, options.settings())


def test_a_tensor_of_one_axis_has_no_spectrum() -> None:
    base = torch.ones(32)
    row = measure_tensor("norm", base, [base + 0.1, base], RTSVM().settings(), is_matrix=False)
    assert row.matrix is None and row.experts[0].spectrum is None
    assert row.experts[1].unchanged == 1 and row.experts[1].kurtosis == 0 and row.pairs[0].cosine == 0
    assert row.experts[0].relative_size == pytest.approx(0.1, rel=1e-6)


def test_updates_of_zero_and_a_base_of_zero() -> None:
    zero = torch.zeros(24, 16)
    row = measure_tensor("w", zero, [zero, torch.randn(24, 16)], RTSVM().settings(), is_matrix=True)
    assert row.experts[0].relative_size is None
    assert row.experts[0].spectrum is not None and row.experts[0].spectrum.rank == 0
    assert row.experts[0].spectrum.values == [] and row.experts[0].spectrum.effective_rank == 0
    assert row.matrix is not None and row.matrix.relative_interference == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight", (3, "mlp.up_proj")),
        ("model.layers.11.self_attn.q_proj.bias", (11, "self_attn.q_proj.bias")),
        ("transformer.h.0.attn.c_attn.weight", (0, "attn.c_attn")),
        ("model.layers.1.block_sparse_moe.experts.7.w1.weight", (1, "block_sparse_moe.experts.*.w1")),
        ("model.layers.0.mlp.experts.gate_up_proj[5]", (0, "mlp.experts.gate_up_proj")),
        ("model.embed_tokens.weight", (None, "embed_tokens")),
        ("lm_head.weight", (None, "lm_head")),
    ],
)
def test_layer_and_type_by_name(name: str, expected: tuple[int | None, str]) -> None:
    assert layer_and_type(name) == expected


@pytest.mark.parametrize("count", [0, 1, 39, 40, 41, 576, 8192])
def test_sampled_places_hold_both_ends(count: int) -> None:
    places = sampled_places(count)
    assert places == sorted(set(places)) and len(places) <= 40
    if count:
        assert places[:8] == list(range(min(8, count))) and places[-1] == count - 1
