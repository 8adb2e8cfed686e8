"""The shape tables of the model families, and what shapes a user may ask for."""

from __future__ import annotations

import pytest

from mergekit_3h.benchmarks.families import FAMILIES, family_named, parse_shape
from mergekit_3h.errors import OptionError


# All parameters as published, without what is no matrix: two norms a layer and the last one, Qwen's q, k and v biases.
@pytest.mark.parametrize(
    ("name", "parameters", "others"),
    [
        ("llama-3-8b", 8_030_261_248, (2 * 32 + 1) * 4096),
        ("mistral-7b", 7_241_732_096, (2 * 32 + 1) * 4096),
        ("qwen2.5-1.5b", 1_543_714_304, (2 * 28 + 1) * 1536 + 28 * (1536 + 256 + 256)),
        ("tiny", 8 * (4 * 512**2 + 3 * 512 * 1408) + 2 * 4096 * 512, 0),
    ],
)
def test_matrices_add_up_to_the_model(name: str, parameters: int, others: int) -> None:
    assert sum(shape.count * shape.elements for shape in FAMILIES[name].shapes()) == parameters - others


def test_every_matrix_of_a_layer_is_counted() -> None:
    shapes = family_named("llama-3-8b").shapes()
    layers = [shape for shape in shapes if shape.rows < 100_000]
    assert sum(shape.count for shape in layers) == 224  # seven a layer
    assert {(shape.rows, shape.columns): shape.count for shape in shapes} == {
        (1024, 4096): 64,
        (4096, 4096): 64,
        (14336, 4096): 64,
        (4096, 14336): 32,
        (128256, 4096): 2,
    }
    assert {role for shape in shapes for role in shape.roles} >= {"q_proj", "down_proj", "embed_tokens", "lm_head"}
    assert "lm_head" not in {role for shape in family_named("qwen2.5-1.5b").shapes() for role in shape.roles}


def test_shape_of_ones_own() -> None:
    shape = parse_shape("1024x4096*64")
    assert (shape.rows, shape.columns, shape.count) == (1024, 4096, 64)
    assert parse_shape(" 8X16 ").name == "8x16" and parse_shape("8x16").count == 1
    for wrong in ("1024", "0x5", "1x1", "8x16*0", "8x16x32", "-8x16", ""):
        with pytest.raises(OptionError, match="expected ROWSxCOLUMNS"):
            parse_shape(wrong)


def test_unknown_family_gets_a_suggestion() -> None:
    with pytest.raises(OptionError, match=r"did you mean 'llama-3-8b'\?.*any matrix"):
        family_named("lama-3-8b")
