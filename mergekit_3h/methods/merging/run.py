"""One run of a merge: what is planned, what is finished, and what is left to do."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.checkpoints.headers import read_checkpoint, tensor_reader
from mergekit_3h.methods.merging.folder import UnfinishedMerge
from mergekit_3h.methods.merging.journal import FinishedPiece
from mergekit_3h.methods.merging.layout import Shard, is_as_it_was_written, shards
from mergekit_3h.methods.merging.pieces import FullDiskError, gigabytes, write_piece
from mergekit_3h.methods.merging.progress import ExpectedTensor, MergeProgress
from mergekit_3h.methods.merging.tasks import MergeTasks


@dataclass
class RunningMerge:
    """``number`` tells its files from those of other runs, of which a worker may still be alive."""

    folder: UnfinishedMerge
    tasks: MergeTasks
    options: MergeOptions
    expected: Mapping[str, ExpectedTensor]
    progress: MergeProgress
    allow_non_finite: bool = False
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def is_safe(self) -> bool:
        return self.options.safe_serialization

    def finished(self) -> dict[str, FinishedPiece]:
        """The piece that each finished tensor is in, in mergekit's order."""
        found = self.folder.pieces
        return {name: found[name] for name in self.tasks.saves if name in found}

    def gaps(self) -> list[list[str]]:
        """Tensors that are not finished, those together that follow each other."""
        finished, gaps = self.finished(), [[]]
        for name in self.tasks.saves:
            if name not in finished:
                gaps[-1].append(name)
            elif gaps[-1]:
                gaps.append([])
        return [gap for gap in gaps if gap]

    def shards(self, before: str | None = None) -> list[Shard]:
        """mergekit's shards of what is finished, as far as it comes before a tensor."""
        finished, names = self.finished(), self.tasks.saves
        first = names[: names.index(before)] if before is not None else names
        sizes = {name: finished[name].tensors[name] for name in first if name in finished}
        return shards(sizes, self.options.out_shard_size, is_safe=self.is_safe)

    def random_before(self, name: str) -> dict[str, Any] | None:
        """The states that a tensor and those after it are drawn from; None where nothing was drawn before."""
        finished, names = self.finished(), self.tasks.saves
        earlier = (finished[each] for each in reversed(names[: names.index(name)]) if each in finished)
        return next((piece.random for piece in earlier if piece.random is not None), None)

    def require_room(self) -> None:
        """Raise unless the disk holds what is still to be written."""
        finished = self.finished()
        waiting = [tensor.bytes for name, tensor in self.expected.items() if name not in finished]
        needed, free = sum(waiting), shutil.disk_usage(self.folder.out).free
        if needed > free:
            raise FullDiskError(
                f"{self.folder.out}: the merge has {gigabytes(needed)} still to write, and the disk has "
                f"{gigabytes(free)} free; make space, or name a folder on another disk"
            )

    def unlike(self) -> list[tuple[Shard, str]]:
        """Shards that are no piece yet, with the name of the file that is to hold them."""
        finished = self.finished()
        return [
            (shard, f"{self.name}/whole/{shard.working_name}")
            for shard in self.shards()
            if not is_as_it_was_written(shard, finished[next(iter(shard.tensors))])
        ]

    def sources(self, shard: Shard) -> dict[str, str]:
        """The file of a piece for each tensor of a shard."""
        finished = self.finished()
        return {name: finished[name].file for name in shard.tensors}

    def weights(self) -> list[tuple[Path, str]]:
        """Where the shards are, and what they are called in the model."""
        finished = self.finished()
        return [(self.folder.path(finished[next(iter(shard.tensors))], shard), shard.name) for shard in self.shards()]

    def final(self) -> dict[str, Shard]:
        """Shards by the pieces that they are, if a run before had come to moving them into the model's folder."""
        finished = self.finished()
        if set(self.tasks.saves) - set(finished) - self.tasks.optional:
            return {}
        return {finished[next(iter(shard.tensors))].file: shard for shard in self.shards()}


def assembled(folder: Path, sources: Mapping[str, str], file: str, *, is_safe: bool) -> FinishedPiece:
    """A shard of the tensors that pieces hold."""
    readers = {piece: tensor_reader(read_checkpoint(folder / piece)) for piece in set(sources.values())}
    tensors: dict[str, Tensor] = {name: readers[piece](name) for name, piece in sources.items()}
    return write_piece(tensors, folder, file, is_safe=is_safe)
