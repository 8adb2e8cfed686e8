"""What rounding took from an update, estimated from the checkpoint, against the update itself."""

from __future__ import annotations

import math

import pytest
import torch
from kernels.oracle import random_delta, settings

from mergekit_3h.kernels.assembly import plan_layer
from mergekit_3h.kernels.rounding import RoundingToll, rounding_toll
from mergekit_3h.kernels.tasks import TaskMatrices

SHAPE = (300, 200)


def base_weights(dtype: torch.dtype) -> torch.Tensor:
    return (0.03 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("spectrum", ["flat", "decaying", "steep"])
@pytest.mark.parametrize("rms", [1e-4, 3e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_distance_to_the_update_before_rounding_is_estimated(dtype: torch.dtype, rms: float, spectrum: str) -> None:
    base, update = base_weights(dtype), random_delta(SHAPE, spectrum, 1, scale=rms).double()
    expert = (base.double() + update).to(dtype)
    distance = float((expert.double() - base.double() - update).norm() / update.norm())
    toll = rounding_toll(expert, base)
    assert toll.changed_share == pytest.approx(float((expert != base).float().mean()), abs=1e-6)
    # The estimate takes the entries of the update for Gaussian and of one size everywhere, which these are in the main.
    assert toll.distance == pytest.approx(distance, rel=0.06)


def test_files_of_16_bits_loaded_as_float32_are_the_same_to_it() -> None:
    base = base_weights(torch.bfloat16)
    expert = (base.float() + random_delta(SHAPE, "flat", 1)).bfloat16()
    assert rounding_toll(expert.float(), base.float()) == rounding_toll(expert, base)


def test_float32_checkpoints_lose_nothing() -> None:
    base = base_weights(torch.float32)
    toll = rounding_toll(base + random_delta(SHAPE, "flat", 1), base)
    assert toll.changed_share > 0.999
    assert toll.distance == 0.0


def test_tensors_add_up() -> None:
    base = base_weights(torch.bfloat16)
    tolls = [
        rounding_toll((base.float() + random_delta(SHAPE, "flat", 1, scale=s)).bfloat16(), base) for s in (1e-4, 1e-3)
    ]
    total = sum(tolls, RoundingToll())
    lost = sum(toll.distance**2 * toll.update_square for toll in tolls)
    assert total.weights == 2 * base.numel()
    assert total.changed_share == pytest.approx(sum(toll.changed_share for toll in tolls) / 2)
    assert total.distance == pytest.approx(math.sqrt(lost / sum(toll.update_square for toll in tolls)))
    assert tolls[1].distance < total.distance < tolls[0].distance


def test_an_unchanged_expert_and_no_weights_at_all() -> None:
    base = base_weights(torch.bfloat16)
    toll = rounding_toll(base.clone(), base)
    assert (toll.changed_share, toll.distance) == (0.0, 0.0)
    assert (RoundingToll().changed_share, RoundingToll().distance) == (0.0, 0.0)
    assert rounding_toll(torch.zeros(3, 4).bfloat16(), torch.zeros(3, 4).bfloat16()).distance == 0.0


def test_a_merge_reports_it_for_each_expert() -> None:
    base = base_weights(torch.bfloat16)
    experts = [(base.float() + random_delta(SHAPE, "flat", 1, scale=s)).bfloat16() for s in (1e-4, 1e-3)]
    plan = plan_layer(TaskMatrices(experts, base), settings(noise_floor="off"))
    assert plan.tolls == [rounding_toll(expert, base) for expert in experts]
    assert plan_layer(TaskMatrices(experts), settings()).tolls == [RoundingToll()] * 2
