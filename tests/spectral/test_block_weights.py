"""Factors on blocks of singular components: against the formula by SVDs, and as what they sum up to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.blocks import block_slices
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tsvm import block_weights_text, parse_block_weights

SHAPES = [(40, 24), (24, 40), (32, 32)]
FACTORS = [[1.0, 0.5, 0.0], [0.2, 1.0, 1.3], [0.0, 0.0, 2.0]]


def updates(shape: tuple[int, int], count: int = 3) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [("tsvm", {}), ("tsvm", {"decorrelation": 0.1}), ("rtsvm", {"gamma": 0.4}), ("rtsvm", {"preset": "paper"})],
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
    blocks = plain.block_components(tasks, 3)

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
        parse_options("tsvm", {"core": "score"}).block_components(TaskMatrices(updates((8, 8))), 2)
    with pytest.raises(OptionError, match="swudi does not merge singular components"):
        parse_options("swudi", {}).block_components(TaskMatrices(updates((8, 8))), 2)
