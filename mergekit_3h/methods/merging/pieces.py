"""Tensors of a merge on their way to the disk: looked at, collected up to a shard's size, written and settled."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergekit_3h.errors import TensorError, ThreeHError
from mergekit_3h.kernels.whole_tensors import is_finite
from mergekit_3h.methods.merging.journal import FinishedPiece, settled_file

_BLOCK = 1 << 24
_SCANNED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_IN_RUST = tuple(f"os error {number}" for number in _NO_SPACE)


class FullDiskError(ThreeHError):
    """There is no room for a file of the merge."""


Flush = Callable[[dict[str, Tensor], str | None], None]
"""Takes the tensors of a piece, and the name of the one that was too many for it."""


class PieceWriter:
    """What mergekit's graph takes for its writer: hands tensors on when they are as many as a shard holds.

    The rule is mergekit's own, so that its shards are these pieces.
    """

    def __init__(self, limit: int, flush: Flush, saved: Callable[[str, Tensor], object]) -> None:
        """No ``limit`` if it is not positive. ``saved`` hears of every tensor before it is kept."""
        self._limit, self._flush, self._saved = limit, flush, saved
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0

    def save_tensor(self, name: str, tensor: Tensor, clone: bool = False) -> None:
        self._saved(name, tensor)
        size = tensor.numel() * tensor.element_size()
        if self._tensors and 0 < self._limit < self._bytes + size:
            self.flush(name)
        kept = tensor.contiguous()
        self._tensors[name] = kept.clone() if clone else kept
        self._bytes += size

    def flush(self, following: str | None = None) -> None:
        """Hand on what there is."""
        if self._tensors:
            tensors, self._tensors, self._bytes = self._tensors, {}, 0
            self._flush(tensors, following)


def require_finite(name: str, tensor: Tensor) -> None:
    if tensor.dtype in _SCANNED and not is_finite(tensor):
        wrong = int((~torch.isfinite(tensor)).sum())
        raise TensorError(
            f"tensor {name!r} of the merged model has {wrong} of {tensor.numel()} numbers that are not finite: look at "
            "the models with mergekit-3h check --deep, or write it all the same with --allow-non-finite"
        )


def write_piece(tensors: dict[str, Tensor], folder: Path, file: str, *, is_safe: bool) -> FinishedPiece:
    """Write the tensors as mergekit does, and return when they are on the disk."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    try:
        _write(tensors, path, is_safe)
        settled_file(path)
    except Exception as error:
        if not is_full(error) and not _lacks_room(path, sum(sizes.values())):
            raise
        free = shutil.disk_usage(folder).free
        path.unlink(missing_ok=True)
        raise FullDiskError(
            f"no room for {file} of {gigabytes(sum(sizes.values()))} on the disk of {folder} ({gigabytes(free)} "
            "free); make space and run the same command again: it goes on from the files that are finished"
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FinishedPiece(file, sizes, path.stat().st_size, digest(path))


def _write(tensors: dict[str, Tensor], path: Path, is_safe: bool) -> None:
    if not is_safe:
        torch.save(tensors, path)
        return
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except RuntimeError as error:
        if "share memory" not in str(error):
            raise
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that a disk or a quota is full."""
    while error is not None:
        if getattr(error, "errno", None) in _NO_SPACE or any(sign in str(error) for sign in _IN_RUST):
            return True
        error = error.__cause__ or error.__context__
    return False


def _lacks_room(path: Path, size: int) -> bool:
    """torch says that its own format has another position than expected, whatever the reason; so the disk is asked."""
    written = path.stat().st_size if path.exists() else 0
    return path.suffix != ".safetensors" and shutil.disk_usage(path.parent).free + written < size


def digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
