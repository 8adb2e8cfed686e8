"""mergekit's shards, their names and their index, from the pieces that are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_3h.inspection.packages import version_of
from mergekit_3h.methods.merging.journal import FinishedPiece


@dataclass(frozen=True)
class Shard:
    """A weight file of the finished model. ``working_name`` is what mergekit calls it until it knows their number."""

    name: str
    working_name: str
    tensors: dict[str, int]
    """Bytes of each."""


def shards(sizes: Mapping[str, int], limit: int, *, is_safe: bool) -> list[Shard]:
    """How mergekit divides tensors of these sizes, in this order."""
    parts = list(divided(sizes, limit))
    stem, ending = working_names(is_safe)

    def name(number: int) -> str:
        return f"{stem}.{ending}" if len(parts) == 1 else f"{stem}-{number:05d}-of-{len(parts):05d}.{ending}"

    return [
        Shard(name(number), f"{stem}-{number}.{ending}", {each: sizes[each] for each in part})
        for number, part in enumerate(parts, start=1)
    ]


def divided(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    part: list[str] = []
    total = 0
    for name, size in sizes.items():
        if part and 0 < limit < total + size:
            yield part
            part, total = [], 0
        part.append(name)
        total += size
    if part:
        yield part


def index_name(*, is_safe: bool) -> str:
    return "{}.{}.index.json".format(*working_names(is_safe))


def working_names(is_safe: bool) -> tuple[str, str]:
    return ("model", "safetensors") if is_safe else ("pytorch_model", "bin")


def index_text(found: Sequence[Shard]) -> str:
    """The index as mergekit writes it."""
    total = sum(sum(shard.tensors.values()) for shard in found)
    content = {
        "metadata": {"total_size": total, "mergekit_version": version_of("mergekit")},
        "weight_map": {name: shard.name for shard in found for name in shard.tensors},
    }
    return json.dumps(content, indent=2)


def by_tensor(pieces: Sequence[FinishedPiece]) -> dict[str, FinishedPiece]:
    """The piece that each tensor is in. One that was made later stands for those it was made of."""
    return {name: piece for piece in pieces for name in piece.tensors}


def is_as_it_was_written(shard: Shard, piece: FinishedPiece) -> bool:
    """Whether a piece is this shard, to the last byte: torch's own format holds the name it was first written under."""
    file = Path(piece.file)
    return list(piece.tensors) == list(shard.tensors) and (
        file.suffix == ".safetensors" or file.name == shard.working_name
    )
