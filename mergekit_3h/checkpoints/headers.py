"""What a checkpoint contains, by its headers alone: names, shapes, dtypes, and files that are not whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

# mergekit looks for these two, in this order.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file's header declares it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES.get(self.dtype, 4)


@dataclass
class Checkpoint:
    """Tensors and files of one model; ``problems`` are sentences that name the file."""

    path: Path
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def damage(self) -> list[str]:
        """The problems that stop every reader; with PyTorch's own files one reader copes where another does not."""
        return self.problems if all(file.suffix == ".safetensors" for file in self.files) else []


def read_checkpoint(path: Path) -> Checkpoint:
    """Headers of a model folder, or of a single weight file."""
    found = Checkpoint(path)
    if path.is_file():
        _read_file(path, found)
        return found
    for name in WEIGHT_FILES:
        index = path / f"{name}.index.json"
        if index.exists():
            _read_shards(index, found)
            return found
        if (path / name).exists():
            _read_file(path / name, found)
            return found
    others = sorted(item.name for item in path.iterdir() if item.suffix in (".safetensors", ".bin", ".pt", ".gguf"))
    seen = f"; there is {', '.join(others[:3])}, which mergekit does not look for" if others else ""
    found.problems.append(f"{path} has no weights: neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]} nor an index{seen}")
    return found


def _read_shards(index: Path, found: Checkpoint) -> None:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(f"{index} is not a shard index: {type(error).__name__}: {error}")
        return
    for shard in shards:
        if (index.parent / shard).exists():
            _read_file(index.parent / shard, found)
        else:
            found.problems.append(f"{index.parent / shard} is listed in {index.name} but is not there")
    for name, shard in weight_map.items():
        stored = found.tensors.get(name)
        if stored is None and (index.parent / shard).exists() and not any(shard in text for text in found.problems):
            found.problems.append(f"{index} says {name} is in {shard}, which has no such tensor")
        elif stored is not None and stored.file.name != shard:
            found.problems.append(f"{index} says {name} is in {shard}, but it is in {stored.file.name}")


def _read_file(file: Path, found: Checkpoint) -> None:
    found.files.append(file)
    try:
        tensors = list(_safetensors_header(file) if file.suffix == ".safetensors" else _pickle_header(file))
    except _BrokenFileError as error:
        found.problems.append(f"{file}: {error}")
        return
    found.tensors.update({tensor.name: tensor for tensor in tensors})


class _BrokenFileError(Exception):
    """The file is not whole or not of its format."""


def _safetensors_header(file: Path) -> Iterator[StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise _BrokenFileError(f"truncated: {size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(_LARGEST_HEADER, size - 8):
            pointer = " (a Git LFS pointer, the weights were not downloaded)" if start == b"version " else ""
            raise _BrokenFileError(f"not a safetensors file, or truncated inside its header{pointer}")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError:
            raise _BrokenFileError("the safetensors header is not readable") from None
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise _BrokenFileError(f"{state}: {size:,} bytes, its header promises {expected:,}")
    for name, entry in header.items():
        yield StoredTensor(name, tuple(entry["shape"]), entry["dtype"], file)


def _pickle_header(file: Path) -> Iterator[StoredTensor]:
    import torch

    try:
        content = torch.load(file, map_location="meta", weights_only=True, mmap=_is_zip(file))
    except Exception as error:
        raise _BrokenFileError(f"torch cannot read it: {str(error).splitlines()[0]}") from error
    content = content.get("state_dict", content)
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
    names |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
    for name, tensor in content.items():
        if isinstance(tensor, torch.Tensor):
            yield StoredTensor(name, tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)), file)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def stream_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, one at a time."""
    import torch
    from safetensors import safe_open

    for file in checkpoint.files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    yield name, weights.get_tensor(name)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            for name, tensor in content.get("state_dict", content).items():
                if isinstance(tensor, torch.Tensor):
                    yield name, tensor


def tensor_reader(checkpoint: Checkpoint) -> Callable[[str], Tensor]:
    """A function that reads one tensor of the checkpoint by its name; the files stay open as long as it lives."""
    import torch
    from safetensors import safe_open

    opened: dict[Path, Any] = {}

    def read(name: str) -> Tensor:
        file = checkpoint.tensors[name].file
        is_safe = file.suffix == ".safetensors"
        if file not in opened and is_safe:
            opened[file] = safe_open(file, framework="pt")
        elif file not in opened:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            opened[file] = content.get("state_dict", content)
        return opened[file].get_tensor(name) if is_safe else opened[file][name]

    return read


def fingerprint(checkpoint: Checkpoint, samples: int = 16, sample_bytes: int = 65536) -> str:
    """A digest of sizes and evenly spread samples: takes the same short time for files of any size."""
    digest = hashlib.sha256()
    for file in checkpoint.files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            for index in range(samples):
                stream.seek(max(0, size - sample_bytes) * index // max(1, samples - 1), os.SEEK_SET)
                digest.update(stream.read(sample_bytes))
    return digest.hexdigest()
