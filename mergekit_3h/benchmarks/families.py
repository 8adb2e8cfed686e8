"""The matrices of well-known models, from the numbers in their public ``config.json``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mergekit_3h.errors import OptionError
from mergekit_3h.suggestions import did_you_mean


@dataclass(frozen=True)
class MatrixShape:
    """A shape as the checkpoint stores it (out x in), and how many matrices of a model have it."""

    rows: int
    columns: int
    count: int = 1
    roles: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def elements(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Family:
    """A decoder of the Llama type: grouped-query attention, a gated MLP, an embedding and perhaps a head."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    is_tied: bool = False

    def shapes(self) -> list[MatrixShape]:
        """Every matrix, those of one shape together, small ones first."""
        key_value = self.hidden // self.heads * self.key_value_heads
        roles: list[tuple[str, int, int, int]] = [
            ("q_proj", self.hidden, self.hidden, self.layers),
            ("k_proj", key_value, self.hidden, self.layers),
            ("v_proj", key_value, self.hidden, self.layers),
            ("o_proj", self.hidden, self.hidden, self.layers),
            ("gate_proj", self.intermediate, self.hidden, self.layers),
            ("up_proj", self.intermediate, self.hidden, self.layers),
            ("down_proj", self.hidden, self.intermediate, self.layers),
            ("embed_tokens", self.vocabulary, self.hidden, 1),
            *([] if self.is_tied else [("lm_head", self.vocabulary, self.hidden, 1)]),
        ]
        found: dict[tuple[int, int], MatrixShape] = {}
        for role, rows, columns, count in roles:
            known = found.get((rows, columns), MatrixShape(rows, columns, 0))
            found[rows, columns] = MatrixShape(rows, columns, known.count + count, (*known.roles, role))
        return sorted(found.values(), key=lambda shape: shape.elements)


FAMILIES = {
    family.name: family
    for family in (
        Family("llama-3-8b", 4096, 14336, 32, 32, 8, 128256),
        Family("mistral-7b", 4096, 14336, 32, 32, 8, 32000),
        Family("qwen2.5-1.5b", 1536, 8960, 28, 12, 2, 151936, is_tied=True),
        Family("tiny", 512, 1408, 8, 8, 8, 4096),
    )
}


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        hint = did_you_mean(name.lower(), FAMILIES, cutoff=0.4)
        raise OptionError(f"--model: there is no family {name!r}; {hint} --shape takes any matrix")
    return FAMILIES[name]


def parse_shape(text: str) -> MatrixShape:
    """``1024x4096`` or ``1024x4096*64`` for a shape that 64 matrices have."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:\*(\d+))?", text.strip().lower())
    sizes = [int(size) for size in match.groups(default="1")] if match else []
    if not sizes or min(sizes) < 1 or min(sizes[:2]) < 2:
        raise OptionError(
            f"--shape: got {text!r}, expected ROWSxCOLUMNS such as 1024x4096, or 1024x4096*64 for 64 of it"
        )
    rows, columns, count = sizes
    return MatrixShape(rows, columns, count)
