"""Factors on blocks of singular components: against the formula by SVDs, and as what they sum up to."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.blocks import block_slices
from mergekit_3h.kernels.core_space import LowRank
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.block_weights import block_weights_text, parse_block_weights
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.low_rank import LowRankUpdates, merge_low_rank
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor, tensor_blocks

SHAPES = [(40, 24), (24, 40), (32, 32)]
FACTORS = [[1.0, 0.5, 0.0], [0.2, 1.0, 1.3], [0.0, 0.0, 2.0]]


def updates(shape: tuple[int, int], count: int = 3) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsvm", {}),
        ("tsvm", {"decorrelation": 0.1}),
        ("rtsvm", {"gamma": 0.4}),
        ("rtsvm", {"preset": "paper"}),
        ("iso_c", {}),
        ("iso_c", {"power": 0.5, "scale": "mean"}),
        ("iso_c", {"power": 1.0}),
    ],
)
def test_the_formula(shape: tuple[int, int], count: int, name: str, options: dict) -> None:
    """For one expert too, where nothing has to be decomposed without blocks."""
    method = parse_options(name, {**options, "block_weights": block_weights_text(FACTORS[:count])})
    given, weights = updates(shape, count), [0.7, 1.0, -1.5][:count]
    merged, report = method.merge(TaskMatrices(given), weights)
    expected = method.literally(given, weights, report)
    assert relative_error(merged, expected) < 1e-9
    plain = parse_options(name, options).merge(TaskMatrices(given), weights)[0]
    assert relative_error(merged, plain) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_blocks_sum_up_to_the_merge(shape: tuple[int, int]) -> None:
    tasks, weights = TaskMatrices(updates(shape)), [0.7, 1.0, -1.5]
    plain = parse_options("tsvm", {})
    blocks = plain.block_components(tasks, 3, weights)

    def total(factors: list[list[float]]) -> Tensor:
        return torch.stack(
            [
                w * m * left @ right
                for w, own, parts in zip(weights, factors, blocks, strict=True)
                for m, (left, right) in zip(own, parts, strict=True)
            ]
        ).sum(0)

    assert relative_error(total([[1.0] * 3] * 3), plain.merge(tasks, weights)[0]) < 1e-9
    masked = parse_options("tsvm", {"block_weights": block_weights_text(FACTORS)})
    merged = masked.merge(tasks, weights)[0]
    assert relative_error(total(FACTORS), merged) < 1e-9
    shares = masked.components(tasks)
    again = torch.stack([w * left @ right for w, (left, right) in zip(weights, shares, strict=True)]).sum(0)
    assert relative_error(again, merged) < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_blocks_of_the_isotropic_merge_sum_up_to_it_where_it_is_held(shape: tuple[int, int], power: float) -> None:
    tasks, weights = TaskMatrices(updates(shape)), [0.7, 1.0, -1.5]
    method = parse_options("iso_c", {"power": power})
    whole = method.merge(tasks, weights)[0]
    shares = [
        w * left @ right
        for w, own in zip(weights, method.block_components(tasks, 3, weights), strict=True)
        for left, right in own
    ]
    assert relative_error(torch.stack(shares).sum(0), whole) < 1e-9
    for i, held in enumerate(method.held_components(tasks, weights)):
        parts = torch.stack(shares[3 * i : 3 * i + 3]).sum(0)
        assert relative_error(parts, weights[i] * held[0] @ held[1]) < 1e-9
    masked = parse_options("iso_c", {"power": power, "block_weights": block_weights_text(FACTORS)})
    again = [w * left @ right for w, (left, right) in zip(weights, masked.held_components(tasks, weights), strict=True)]
    assert relative_error(torch.stack(again).sum(0), masked.merge(tasks, weights)[0]) < 1e-9
    if power == 1.0:  # nothing is held: the plain sum is linear in the factors
        flat = [factor * share for factor, share in zip(chain(*FACTORS), shares, strict=True)]
        assert relative_error(torch.stack(flat).sum(0), masked.merge(tasks, weights)[0]) < 1e-9


@pytest.mark.parametrize("noise_floor", ["auto", "on", "off"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_equal_factors_are_a_factor_on_the_weight(noise_floor: str, power: float) -> None:
    """Bit by bit: nothing is decomposed for them. So 1 everywhere is the plain merge."""
    base = (0.02 * torch.randn(48, 40, generator=torch.Generator().manual_seed(9))).bfloat16()
    experts = [(base.float() + 1e-3 * each.float()).bfloat16() for each in updates((48, 40))]
    tasks, options = TaskMatrices(experts, base), {"power": power, "noise_floor": noise_floor}
    found = parse_options("iso_c", {**options, "block_weights": "1 1 / 1 1 / 1 1"}).merge(tasks, [0.7, 1.0, 0.5])
    plain = parse_options("iso_c", options).merge(tasks, [0.7, 1.0, 0.5])
    assert torch.equal(found[0], plain[0]) and found[1] == plain[1]
    doubled = parse_options("iso_c", {**options, "block_weights": "2 2 / 0.5 0.5 / 1 1"})
    scaled = parse_options("iso_c", options).merge(tasks, [1.4, 0.5, 0.5])[0]
    assert relative_error(doubled.merge(tasks, [0.7, 1.0, 0.5])[0], scaled.double()) < 1e-7


def test_blocks_in_the_core_space_are_those_of_the_dense_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    lows = [LowRank(torch.randn(60, 6, generator=generator), torch.randn(6, 40, generator=generator)) for _ in range(3)]
    given = LowRankUpdates("w", {str(i): low for i, low in enumerate(lows)}, {str(i): 1.0 for i in range(3)})
    method = parse_options("iso_c", {"power": 0.5, "block_weights": block_weights_text(FACTORS)})
    core, dense = (merge_low_rank(torch.zeros(60, 40), given, method, route=route) for route in ("core", "dense"))
    assert relative_error(core, dense.double()) < 1e-6


def test_what_is_small_belongs_to_the_last_block() -> None:
    """Of a steep update float32 has no more directions; none of it is lost, in no block."""
    base, u = torch.zeros(30, 20), torch.linalg.qr(torch.randn(30, 20, dtype=torch.float64))[0]
    steep = u @ torch.diag(torch.logspace(0, -9, 20, dtype=torch.float64))
    method = parse_options("iso_c", {"power": 1.0, "block_weights": "0 1"})
    blocks = tensor_blocks("w", base.double(), {"a": steep}, method, 2, [1.0])
    assert relative_error(sum((block.dense() for block in blocks), base.double()), steep) < 1e-12
    last = merge_tensor("w", base.double(), {"a": steep}, {"a": 1.0}, method)
    assert relative_error(last, blocks[1].dense()) < 1e-9 and float(last[:, -1].norm()) == pytest.approx(1e-9, rel=1e-3)


def test_more_blocks_than_components() -> None:
    """Merged LoRA experts have few; some blocks are empty, and nothing is lost."""
    assert [part.stop - part.start for part in block_slices(2, 3)] == [0, 1, 1]
    low = [torch.randn(24, 2, dtype=torch.float64) @ torch.randn(2, 16, dtype=torch.float64) for _ in range(2)]
    ones = parse_options("tsvm", {"block_weights": "1 1 1 / 1 1 1"}).merge(TaskMatrices(low), [1.0, 1.0])[0]
    assert relative_error(ones, parse_options("tsvm", {}).merge(TaskMatrices(low), [1.0, 1.0])[0]) < 1e-9


def test_text_and_numbers() -> None:
    factors = [[1 / 3, 0.0], [2.0, 1e-17]]
    assert parse_block_weights(block_weights_text(factors)) == factors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1 0.5 / 1", "expected numbers for every expert, as many for each"),
        ("1 x / 1 2", "expected numbers for every expert"),
        ("1 / / 2", "expected numbers for every expert"),
        ("1 nan / 1 2", "expected numbers for every expert"),
    ],
)
def test_what_is_no_list_of_factors(given: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options("tsvm", {"block_weights": given})


def test_other_conflicts() -> None:
    method = parse_options("tsvm", {"block_weights": "1 2 / 1 2"})
    with pytest.raises(OptionError, match="which is for 2 experts; there are 3"):
        method.merge(TaskMatrices(updates((8, 8))), [1.0] * 3)
    with pytest.raises(OptionError, match="core: dc has no singular components of single experts"):
        parse_options("tsvm", {"block_weights": "1 2 / 1 2", "core": "dc"})
    with pytest.raises(OptionError, match="core: score has no singular components"):
        parse_options("tsvm", {"core": "score"}).block_components(TaskMatrices(updates((8, 8))), 2, [1.0] * 3)
    with pytest.raises(OptionError, match="swudi does not merge singular components"):
        parse_options("swudi", {}).block_components(TaskMatrices(updates((8, 8))), 2, [1.0] * 3)
