"""star, resmerge and cart: what their formulas come to in cases that can be told by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.updates import SHAPES, low_rank, update


def merged(method: str, updates: list[Tensor], weights: list[float] | None = None, **options: object) -> Any:
    ones = [1.0] * len(updates)
    return parse_options(method, options).merge(TaskMatrices(updates), weights or ones)


def three(shape: tuple[int, int]) -> list[Tensor]:
    return [update(shape, seed) for seed in range(3)]


def mean(updates: list[Tensor]) -> Tensor:
    return torch.stack(updates).double().mean(0)


def head_and_residual(each: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(each.double(), full_matrices=False)
    head = s[0] * torch.outer(u[:, 0], vh[0])
    return head, each.double() - head


def apart(scales: tuple[float, float]) -> list[Tensor]:
    """Two experts without a row or a column in common."""
    updates = [torch.zeros(20, 16), torch.zeros(20, 16)]
    updates[0][:10, :8] = scales[0] * update((10, 8), 0)
    updates[1][10:, 8:] = scales[1] * update((10, 8), 1)
    return updates


def rounded_lora(seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A bfloat16 base, experts with updates of rank 4 merged in, and these updates."""
    generator = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(160, 128, generator=generator)).bfloat16()
    updates = [
        5e-4 * torch.randn(160, 4, generator=generator) @ torch.randn(4, 128, generator=generator) for _ in "abc"
    ]
    return base, [(base.float() + each).bfloat16() for each in updates], updates


@pytest.mark.parametrize("shape", SHAPES)
def test_star_that_keeps_everything_is_the_mean(shape: tuple[int, int]) -> None:
    updates = three(shape)
    result, report = merged("star", updates, eta=1.0)
    assert relative_error(result, mean(updates)) < 1e-6
    assert report.ranks == [min(shape)] * 3 and report.scales == [1.0] * 3


def test_star_keeps_the_sum_of_the_singular_values() -> None:
    each = update((40, 24), 0)
    result, report = merged("star", [each], eta=0.4)
    s = torch.linalg.svdvals(each.double())
    kept = torch.linalg.svdvals(result.double())
    [rank] = report.ranks
    assert float(s[: rank - 1].sum()) < 0.4 * float(s.sum()) <= float(s[:rank].sum())
    assert float(kept.sum()) == pytest.approx(float(s.sum()), rel=1e-5)
    assert torch.allclose(kept[rank:], torch.zeros(24 - rank, dtype=torch.float64), atol=1e-7 * float(kept[0]))


@pytest.mark.parametrize("method", ["star", "cart"])
def test_the_noise_floor_finds_the_rank_of_lora_updates(method: str) -> None:
    """Without it most of a rank that rounding made is kept."""
    base, experts, updates = rounded_lora(0)
    options: dict[str, object] = {"eta": 1.0} if method == "star" else {"rank_share": 0.5}
    wanted = merged(method, updates, **options)[0]
    found = {}
    for floor in ("auto", "off"):
        method_ = parse_options(method, {**options, "noise_floor": floor})
        found[floor] = method_.merge(TaskMatrices(experts, base), [1.0] * 3)
    # Seen from the mean, an update of rank 4 has the twelve directions of all three.
    assert found["auto"][1].ranks == [4 if method == "star" else 12] * 3
    assert min(found["off"][1].ranks) > 50
    errors = {floor: relative_error(result, wanted) for floor, (result, _) in found.items()}
    # The mean that cart begins with has the noise of every expert.
    assert errors["auto"] < (0.5 if method == "star" else 0.9) * errors["off"]


def test_resmerge_of_one_expert_makes_its_head_as_large_as_rho_says() -> None:
    each = update((24, 16), 0)
    head, residual = head_and_residual(each)
    result, report = merged("resmerge", [each])
    assert relative_error(result, residual + 0.2 * residual.norm() * head / head.norm()) < 1e-6
    assert (report.coherence, report.similarity, report.head_agreement) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_experts_are_merged_by_resmerge_as_one(shape: tuple[int, int]) -> None:
    each = update(shape, 0)
    result, report = merged("resmerge", [each] * 3)
    assert relative_error(result, merged("resmerge", [each])[0]) < 1e-6
    assert report.exponent == pytest.approx(0.7)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 7.0)])
def test_resmerge_averages_residuals_that_have_nothing_in_common(scales: tuple[float, float]) -> None:
    """There c is 1 / sqrt(n) exactly, where the formula changes: it has to stay on one side."""
    updates = apart(scales)
    result, report = merged("resmerge", updates)
    assert report.exponent == 1.0 and report.head_agreement == 0.0
    assert report.coherence == pytest.approx(1 / math.sqrt(2))
    assert relative_error(result, mean([head_and_residual(each)[1] for each in updates])) < 1e-6


def test_resmerge_averages_updates_that_are_all_head() -> None:
    updates = [low_rank((24, 16), 1, seed) for seed in range(3)]
    result, report = merged("resmerge", updates)
    assert report.ranks == [1, 1, 1]
    assert relative_error(result, mean(updates)) < 1e-6


def test_heads_that_cancel_out_leave_resmerge_the_residuals() -> None:
    each, other = update((24, 16), 0), update((24, 16), 1)
    head, residual = head_and_residual(each)
    _, other_residual = head_and_residual(other)
    updates = [head + 1e-2 * residual, -head + 1e-2 * other_residual]
    parts = [head_and_residual(each)[1] for each in updates]
    result, report = merged("resmerge", updates)
    assert report.head_agreement < 1e-6
    assert float(result.norm()) < 2 * float(parts[0].norm())


def test_a_negative_weight_turns_an_expert_around() -> None:
    updates = three((24, 16))
    turned = [updates[0], -updates[1], updates[2]]
    for method in ("resmerge", "star"):
        weighted = merged(method, updates, [1.0, -1.0, 1.0])[0]
        assert relative_error(weighted, merged(method, turned)[0]) < 1e-6, method


@pytest.mark.parametrize("shape", SHAPES)
def test_cart_of_equal_experts_is_one_of_them(shape: tuple[int, int]) -> None:
    each = update(shape, 0)
    result, report = merged("cart", [each] * 3, rank_share=1.0)
    assert relative_error(result, each) < 1e-6
    assert report.ranks == [0, 0, 0]


@pytest.mark.parametrize("options", [{"gain": 0.0}, {"rank_share": 1.0}])
def test_cart_is_the_mean_without_gain_and_where_nothing_is_cut(options: dict[str, object]) -> None:
    """Whole differences from the mean add up to nothing."""
    updates = three((40, 24))
    assert relative_error(merged("cart", updates, **options)[0], mean(updates)) < 1e-6


@pytest.mark.parametrize(
    ("method", "given", "named"),
    [
        ("star", {"eta": 0.0}, "option 'eta': got 0.0; input should be greater than 0"),
        ("star", {"eta": 1.1}, "option 'eta': got 1.1"),
        ("resmerge", {"head_rank": 0}, "option 'head_rank': got 0"),
        ("resmerge", {"head_rank": 1.5}, "option 'head_rank': got 1.5"),
        ("resmerge", {"least_exponent": 2.0}, "option 'least_exponent': got 2.0"),
        ("cart", {"rank_share": 0.0}, "option 'rank_share': got 0.0"),
        ("cart", {"gain": math.inf}, "option 'gain': got inf"),
    ],
)
def test_a_bad_option_is_named(method: str, given: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parse_options(method, given)
