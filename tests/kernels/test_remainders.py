"""What lies under the edge: rounding alone for merged LoRA updates, a part of the update for full ones."""

from __future__ import annotations

import math

import pytest
import torch
from kernels.oracle import random_delta

from mergekit_3h.kernels.noise import rounding_edge
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.remainders import Remainder, remainder
from mergekit_3h.kernels.spectra import exact_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPES = [(160, 160), (320, 160), (160, 320)]


def base_weights(shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def lora_update(shape: tuple[int, int], rms: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    update = torch.randn(shape[0], 8, generator=generator) @ torch.randn(8, shape[1], generator=generator)
    return update * (rms / update.square().mean().sqrt())


def remainder_of(update: torch.Tensor, base: torch.Tensor) -> Remainder:
    expert = (base.double() + update.double()).to(base.dtype)
    tasks = TaskMatrices([expert], base)
    rule = RankRule(tasks.columns, tasks.columns, rounding_edge(expert, base), 1.0)
    return remainder(tasks, 0, exact_spectrum(tasks, 0, rule).right)


@pytest.mark.parametrize("rms", [6e-4, 1e-3, 4e-3])
def test_a_merged_lora_leaves_rounding_alone(rms: float) -> None:
    found = sum((remainder_of(lora_update(shape, rms), base_weights(shape)) for shape in SHAPES), Remainder())
    assert 1.0 <= found.ratio < 1.25
    assert found.is_rounding_alone


@pytest.mark.parametrize("rms", [1.5e-4, 3e-4, 6e-4])
def test_of_a_full_update_a_part_is_left(rms: float) -> None:
    updates = [random_delta(shape, "decaying", 1, scale=rms) for shape in SHAPES]
    found = sum((remainder_of(update, base_weights(tuple(update.shape))) for update in updates), Remainder())
    assert found.ratio > 1.6
    assert not found.is_rounding_alone


def test_float16_is_rounded_as_float16() -> None:
    base = base_weights((160, 160), torch.float16)
    assert remainder_of(lora_update((160, 160), 3e-4), base).ratio < 1.2
    assert remainder_of(random_delta((160, 160), "decaying", 1, scale=1e-4), base).ratio > 1.4


def test_a_wide_matrix_has_the_remainder_of_its_transpose() -> None:
    base, update = base_weights((60, 90)), lora_update((60, 90), 1e-3)
    wide, tall = remainder_of(update, base), remainder_of(update.T.contiguous(), base.T.contiguous())
    assert wide.ratio == pytest.approx(tall.ratio, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_is_enough_for_it(dtype: torch.dtype) -> None:
    base, update = base_weights((320, 160), dtype), random_delta((320, 160), "decaying", 1, scale=3e-4)
    expert = (base.double() + update.double()).to(dtype)
    left, values, right = torch.linalg.svd(expert.double() - base.double(), full_matrices=False)
    k = int((values > rounding_edge(expert, base)).sum())
    above = left[:, :k] @ torch.diag(values[:k]) @ right[:k]
    without_rounding = base.double() + above
    found = remainder_of(update, base)
    left_square, lost = values[k:].square().sum(), without_rounding.to(dtype).double() - without_rounding
    assert found.left_square == pytest.approx(float(left_square), rel=1e-5)
    assert found.rounding_square == pytest.approx(float(lost.square().sum()), rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.0**-40, 2.0**-74])
def test_it_does_not_depend_on_the_scale(scale: float) -> None:
    base, update = base_weights((320, 160)).float(), random_delta((320, 160), "decaying", 1, scale=3e-4)
    expert = ((base + update.float()).bfloat16().float() * scale).bfloat16()
    right = torch.linalg.qr(torch.randn(160, 20, generator=torch.Generator().manual_seed(2)).double())[0]
    ratios = [
        remainder(TaskMatrices([expert / by], (base * scale).bfloat16() / by), 0, right).ratio for by in (1.0, scale)
    ]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)
    assert math.isfinite(ratios[0]) and ratios[0] > 1


def test_numbers_that_are_finer_or_products_that_are_coarser_than_float32_are_computed_in_float64() -> None:
    base = base_weights((60, 90))
    expert = (base.float() + lora_update((60, 90), 1e-3)).bfloat16()
    right = torch.linalg.qr(torch.randn(60, 20, generator=torch.Generator().manual_seed(2)).double())[0]
    single = remainder(TaskMatrices([expert], base), 0, right)
    double = remainder(TaskMatrices([expert.double()], base.double()), 0, right)
    assert double.left_square == pytest.approx(single.left_square, rel=1e-5)
    assert double.left_square != single.left_square
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert remainder(TaskMatrices([expert], base), 0, right).left_square == double.left_square
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_is_left_is_compared_with_what_rounding_would_leave() -> None:
    """With nothing above the edge, rounding W_0 + 0 leaves nothing: all that is left is update."""
    base = base_weights((30, 20))
    expert = (base.float() + 1e-3 * torch.randn(30, 20)).bfloat16()
    nothing = remainder(TaskMatrices([expert], base), 0, torch.zeros(20, 0, dtype=torch.float64))
    assert nothing.rounding_square == 0.0
    assert nothing.left_square == pytest.approx(float((expert.double() - base.double()).square().sum()))
    assert nothing.ratio == float("inf")
    assert remainder(TaskMatrices([expert], base), 0, torch.eye(20, dtype=torch.float64)).ratio == 0.0


def test_updates_without_a_base_are_refused() -> None:
    with pytest.raises(ValueError, match="need a base"):
        remainder(TaskMatrices([torch.zeros(3, 2)]), 0, torch.zeros(2, 0))
