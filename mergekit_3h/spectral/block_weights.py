"""The option ``block_weights``: a factor for each block of every expert's singular components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mergekit_3h.errors import OptionError


def _are_numbers(value: Any) -> Any:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str) and text.strip():
        parse_block_weights(text)
    return text


BlockWeights = Annotated[str, BeforeValidator(_are_numbers)]


def block_weights_field(components: str) -> Any:
    """The declaration, for ``components`` of the expert that the method has."""
    return Field(
        "",
        description=f"Factors on blocks of almost one size of every expert's {components}, the largest first: for the "
        "experts in the config's order, as 1 0.5 / 0 1.2 for two blocks of two. Empty: none. A search with "
        "component_blocks finds them.",
    )


def blocks_of(text: str, experts: int) -> list[list[float]] | None:
    """The factors of every expert's blocks, if there are any; an error if they are not for so many experts."""
    if not text.strip():
        return None
    found = parse_block_weights(text)
    if len(found) != experts:
        raise OptionError(
            f"option 'block_weights': got {text!r}, which is for {len(found)} experts; there are {experts}"
        )
    return found


def parse_block_weights(text: str) -> list[list[float]]:
    """The factors of every expert's blocks, as the option has them."""
    try:
        found = [[float(number) for number in part.split()] for part in text.split("/")]
    except ValueError:
        found = [[]]
    if not all(found) or len({len(own) for own in found}) > 1 or not all(map(math.isfinite, chain(*found))):
        raise OptionError(
            f"option 'block_weights': got {text!r}; expected numbers for every expert, as many for each, experts "
            "divided by /, as 1 0.5 / 0 1.2"
        )
    return found


def block_weights_text(factors: Sequence[Sequence[float]]) -> str:
    """The same written, to the last bit."""
    return " / ".join(" ".join(repr(float(factor)) for factor in own) for own in factors)
