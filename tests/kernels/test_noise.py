"""Rounding of 16-bit checkpoints: the edge is found, what is above it is kept, and no expert vanishes."""

from __future__ import annotations

import pytest
import torch
from kernels.oracle import merge_truncated, random_delta, relative, settings
from torch.utils._python_dispatch import TorchDispatchMode

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.noise import rounding_edge
from mergekit_3h.kernels.rounding import significand_bits
from mergekit_3h.kernels.tasks import TaskMatrices

SIDE = 256


def weights(seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def uneven_weights(rows: int, columns: int) -> torch.Tensor:
    """Rows and columns that differ in size about fivefold, as those of trained models do."""
    generator = torch.Generator().manual_seed(0)
    sizes = [torch.exp(0.5 * torch.randn(side, generator=generator)) for side in (rows, columns)]
    return 0.02 * torch.outer(*sizes) * torch.randn(rows, columns, generator=generator)


def lora_update(rms: float, seed: int, rank: int = 16, shape: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    update = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    return update * (rms / update.square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_edge_is_where_pure_rounding_ends(dtype: torch.dtype) -> None:
    """A dense update many ulps large is rounded to independent, uniform errors: the case the theory is exact for."""
    base = weights().to(dtype)
    trained = base.double() + 20 * 0.02 * torch.finfo(dtype).eps * torch.randn(SIDE, SIDE, dtype=torch.float64)
    rounded = trained.to(dtype)
    top = float(torch.linalg.matrix_norm(rounded.double() - trained, 2))
    # The edge is that of an infinite matrix; at this size the largest value fluctuates by about SIDE^(-2/3) = 2.5 %.
    assert top == pytest.approx(rounding_edge(rounded, base), rel=0.05)


@pytest.mark.parametrize("rms", [1e-3, 1e-4, 3e-5])
def test_merged_lora_experts_keep_their_lora_rank(rms: float) -> None:
    """From many ulps down to a quarter of one (the rms ulp is 1.2e-4 here)."""
    base = weights().bfloat16()
    experts = [(base.float() + lora_update(rms, seed)).bfloat16() for seed in range(3)]
    _, report = merge(TaskMatrices(experts, base), [1.0] * 3, settings())
    assert report.ranks == [16, 16, 16]


@pytest.mark.parametrize("shape", [(256, 256), (600, 200), (200, 600)])
@pytest.mark.parametrize("rms", [6e-4, 2.4e-3])
def test_rows_and_columns_of_other_sizes_have_noise_of_other_sizes(shape: tuple[int, int], rms: float) -> None:
    """With one variance for all entries, the edge was up to twice too low here and 18 to 50 directions were kept."""
    base = uneven_weights(*shape).bfloat16()
    update = lora_update(rms, 1, shape=shape)
    expert = (base.float() + update).bfloat16()
    values = torch.linalg.svdvals(expert.double() - base.double())
    assert int((values > rounding_edge(expert, base)).sum()) == 16


def test_float16_has_one_ulp_for_all_numbers_under_its_smallest_normal_one() -> None:
    """6e-5; the spacing below it stays 6e-8, however small the number."""
    base = (1e-3 * uneven_weights(SIDE, SIDE)).half()
    assert float((base.abs() < 6e-5).float().mean()) > 0.8
    update = lora_update(1e-6, 1)
    expert = (base.float() + update).half()
    edge = rounding_edge(expert, base)
    values = torch.linalg.svdvals(expert.double() - base.double())
    assert int((values > edge).sum()) == 16
    noise = float(torch.linalg.matrix_norm(expert.double() - base.double() - update.double(), 2))
    assert edge == pytest.approx(noise, rel=0.1)
    assert rounding_edge(expert.float(), base.float()) == edge


def test_the_floor_brings_the_merge_back_to_that_of_the_unrounded_updates() -> None:
    base = weights().bfloat16()
    updates = [lora_update(3e-4, seed) for seed in range(3)]
    experts = [(base.float() + update).bfloat16() for update in updates]
    unrounded = merge_truncated(updates, [16] * 3, [1.0] * 3)
    with_floor, _ = merge(TaskMatrices(experts, base), [1.0] * 3, settings())
    without, _ = merge(TaskMatrices(experts, base), [1.0] * 3, settings(noise_floor="off"))
    assert relative(with_floor, unrounded) < 0.15
    assert relative(without, unrounded) > 0.5


def test_16_bit_files_loaded_as_float32_are_recognised_by_their_bits() -> None:
    base = weights().bfloat16()
    expert = (base.float() + lora_update(1e-3, 1)).bfloat16()
    assert rounding_edge(expert.float(), base.float()) == rounding_edge(expert, base) > 0
    assert significand_bits(expert.double()) == 8
    assert significand_bits(weights().half().float()) == 11


def test_float32_checkpoints_have_no_floor() -> None:
    base = weights()
    experts = [base + random_delta((SIDE, SIDE), "flat", seed) for seed in range(2)]
    on, report = merge(TaskMatrices(experts, base), [1.0] * 2, settings(noise_floor="auto"))
    off, _ = merge(TaskMatrices(experts, base), [1.0] * 2, settings(noise_floor="off"))
    assert report.noise_edges == [0.0, 0.0]
    assert torch.equal(on, off)


def test_an_expert_that_is_all_noise_is_kept_whole() -> None:
    """An update of a fortieth of an ulp changes few weights, by a whole one each: nothing stands out of that."""
    base = weights().bfloat16()
    experts = [(base.float() + lora_update(3e-6, seed)).bfloat16() for seed in range(2)]
    on, report = merge(TaskMatrices(experts, base), [1.0] * 2, settings())
    off, _ = merge(TaskMatrices(experts, base), [1.0] * 2, settings(noise_floor="off"))
    assert report.noise_edges[0] > 0
    assert report.ranks == [SIDE // 2] * 2
    assert torch.equal(on, off)


def test_an_unchanged_expert_and_exact_zeros_have_no_noise() -> None:
    base = weights().bfloat16()
    assert rounding_edge(base.clone(), base) == 0.0
    assert rounding_edge(torch.zeros(8, 8, dtype=torch.bfloat16), torch.zeros(8, 8, dtype=torch.bfloat16)) == 0.0


class LargestAllocation(TorchDispatchMode):
    """Records the most elements that an operation made, beyond views of what there was."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, made.numel())
        return result


def test_the_edge_of_a_large_tensor_is_found_without_a_copy_of_it() -> None:
    base = torch.randn(4096, 1024).bfloat16()
    expert = (base.float() + 0.1).bfloat16()
    expert32, base32 = expert.float(), base.float()
    with LargestAllocation() as largest:
        assert rounding_edge(expert, base) > 0
        assert rounding_edge(expert32, base32) > 0
    assert largest.elements < expert.numel() / 4


def test_a_few_updated_rows_of_a_large_matrix_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning moves few rows of an embedding: the sample must not be a few whole rows."""
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(256, 8192, generator=generator)).bfloat16()
    update = 1e-3 * torch.randn(256, 8192, generator=generator) * (torch.rand(256, 1, generator=generator) < 0.05)
    expert = (base.float() + update).bfloat16()
    sampled = rounding_edge(expert, base)
    monkeypatch.setattr("mergekit_3h.kernels.rounding.SAMPLE", expert.numel())
    assert sampled == pytest.approx(rounding_edge(expert, base), rel=0.05)
    assert sampled > 0
