"""OUT/.unfinished: where a merge lies until it is whole, so that nothing takes OUT for a model before."""

from __future__ import annotations

import logging
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.methods.merging.journal import FinishedPiece, MergeJournal, settled_file
from mergekit_3h.methods.merging.layout import Shard, by_tensor
from mergekit_3h.methods.merging.pieces import digest
from mergekit_3h.writing import write_text_whole

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
_SHARED = "shared.pickle"
_READERS = 4
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


class UnfinishedMerge:
    """The folder of one output, held against other processes until it is closed."""

    def __init__(
        self, out: Path, request: Mapping[str, Any], environment: Mapping[str, Any], *, start_over: bool = False
    ) -> None:
        self.out = out
        self._folder, self._is_open, self._lock = out / UNFINISHED, False, threading.Lock()
        self.pieces_folder = self._folder / "pieces"
        self.model_folder = self._folder / "model" / out.name
        """Where mergekit writes everything but the weights. Its last part is the name on the model card."""
        self.trace = self._folder / "search.jsonl"
        """Of the search that a merge may begin with."""
        try:
            self.pieces_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"{out}: nothing can be written there ({error.strerror}); name another folder") from error
        self._journal = MergeJournal(self._folder / "journal.jsonl", request, environment, start_over=start_over)
        self._is_open = True
        self.pieces = by_tensor(self._journal.pieces)
        """The piece that each finished tensor is in."""
        shutil.rmtree(self.model_folder, ignore_errors=True)
        if start_over:
            self._forget_search()
            self.sweep()
            for path in [path for pattern in _WEIGHTS for path in out.glob(pattern)]:
                path.unlink()  # of a merge that was ended while it moved them there: OUT was empty before it

    @property
    def environment(self) -> dict[str, Any]:
        """Of the process that began the merge."""
        return self._journal.environment

    def add(self, piece: FinishedPiece) -> None:
        """From any thread. What it was made of is removed."""
        with self._lock:
            self._journal.add(piece)
            before = {self.pieces[name].file for name in piece.tensors if name in self.pieces}
            self.pieces.update(dict.fromkeys(piece.tensors, piece))
            for file in before - {other.file for other in self.pieces.values()}:
                (self.pieces_folder / file).unlink(missing_ok=True)

    def path(self, piece: FinishedPiece, shard: Shard | None = None) -> Path:
        """Where a piece is: a kill may have come when some of them had their final names already."""
        path = self.pieces_folder / piece.file
        final = self.out / shard.name if shard else path
        return final if not path.exists() and final.exists() else path

    def shared(self, make: Callable[[], list[Any]]) -> list[Any]:
        """Values that every run of this merge has to take from the first one."""
        file = self.pieces_folder.parent / _SHARED
        known = self._journal.shared
        if known is None:
            values = make()
            if not values:
                return values
            file.write_bytes(pickle.dumps(values))
            settled_file(file)
            self._journal.add_shared(digest(file))
            return values
        if not file.is_file() or digest(file) != known:
            raise ModelError(
                f"{file} is damaged; what is finished was merged with it, so begin again with --start-over"
            )
        return read_shared(self.pieces_folder)

    def verify(self, final: Mapping[str, Shard]) -> None:
        """Keep the pieces whose files are as they were written; what is in others is told, and to be merged again.

        ``final``: the shard that a piece is, by the piece's file, where the merge had come that far.
        """
        pieces = list({piece.file: piece for piece in self.pieces.values()}.values())
        paths = [self.path(piece, final.get(piece.file)) for piece in pieces]
        with ThreadPoolExecutor(_READERS) as readers:
            damage = list(readers.map(_damage, pieces, paths))
        for piece, path, problem in zip(pieces, paths, damage, strict=True):
            if problem is not None:
                log.warning("%s is %s; what is in it is merged again", path, problem)
                self.pieces = {name: other for name, other in self.pieces.items() if other is not piece}
        self.sweep()

    def sweep(self) -> None:
        """Remove what a kill left half-written. Nobody may be writing."""
        files = {self.pieces_folder / piece.file for piece in self.pieces.values()}
        for path in self.pieces_folder.rglob("*"):
            if path.is_file() and path not in files:
                path.unlink()

    def publish(self, weights: Sequence[tuple[Path, str]], index: tuple[str, str] | None) -> None:
        """Give everything its place in OUT. What makes a folder a model comes last: the index, or the only file."""
        for path in sorted(path for path in self.model_folder.rglob("*") if path.is_file()):
            _move(path, self.out / path.relative_to(self.model_folder))
        for path, name in weights:
            _move(path, self.out / name)
        if index is not None:
            name, text = index
            write_text_whole(self._folder / name, text)
            _move(self._folder / name, self.out / name)
        self.pieces = {}
        self._forget_search()
        self.close()

    def forget(self) -> None:
        """Begin anew."""
        self._journal.restart()
        self.pieces = {}
        self._forget_search()
        self.sweep()

    def _forget_search(self) -> None:
        self.trace.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder; one in which nothing is worth keeping is removed, and OUT too if it was made for it."""
        if not self._is_open:
            return
        self._is_open = False
        if sys.platform == "win32":  # where an open file cannot be removed
            self._journal.close()
        if not self.pieces and not self.trace.exists():
            shutil.rmtree(self._folder)
            if not any(self.out.iterdir()):
                self.out.rmdir()
        if sys.platform != "win32":
            self._journal.close()


def read_shared(pieces_folder: Path) -> list[Any]:
    """The values that all pieces are made with."""
    file = pieces_folder.parent / _SHARED
    return pickle.loads(file.read_bytes()) if file.exists() else []


def has_unfinished(out: Path) -> bool:
    return (out / UNFINISHED).is_dir()


def require_usable(out: Path) -> None:
    """Raise unless OUT is new, empty, or the beginning of a merge."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not has_unfinished(out))):
        raise OptionError(f"{out}: is there already and not empty; name another folder, or remove it")


def _damage(piece: FinishedPiece, path: Path) -> str | None:
    if not path.is_file():
        return "gone"
    if path.stat().st_size != piece.bytes:
        return f"of {path.stat().st_size} bytes instead of {piece.bytes}"
    if digest(path) != piece.sha256:
        return "not as it was written"
    if path.suffix == ".safetensors" and set(read_checkpoint(path).tensors) != set(piece.tensors):
        return "of other tensors than the journal says"
    return None


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path != target:
        path.replace(target)
