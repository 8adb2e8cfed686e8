"""Where the weights of the base and the experts come from, a tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from mergekit_3h.errors import ModelError, TensorError
from mergekit_3h.kernels.values import floats

_SAMPLE = 64
RECOMPUTED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
"""Buffers that older checkpoints contain and that are made anew whenever a model is loaded."""


class WeightSource(Protocol):
    """The weights of one model under the names its checkpoint gives them."""

    @property
    def label(self) -> str:
        """What reports and error messages call the model."""
        ...

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...

    def digest(self) -> str:
        """Changes when the weights do, as far as a quick look can tell."""
        ...


class StateDictSource:
    """Weights that are in memory already, or that a mapping loads when asked."""

    def __init__(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        self.label = label
        self._tensors = tensors
        self._names = list(tensors.keys())

    def names(self) -> list[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def require_apart_from(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise if a tensor shares its memory with a parameter that the search is going to overwrite."""
        is_lazy = type(cast(object, self._tensors)) is not dict  # such a mapping loads anew each time it is asked
        for name, parameter in parameters.items():
            if is_lazy or name not in self._tensors:
                continue
            if self._tensors[name].data_ptr() == parameter.data_ptr() != 0:
                raise ModelError(
                    f"model {self.label!r}, tensor {name!r}: is the very tensor of the loaded model that candidates "
                    "are written into. Give the search a copy of either."
                )

    def digest(self) -> str:
        content = hashlib.sha256()
        for name in self._names:
            tensor = self.tensor(name)
            sample = floats(tensor.flatten()[:: max(1, tensor.numel() // _SAMPLE)].float())
            content.update(repr((name, tuple(tensor.shape), str(tensor.dtype), sample)).encode())
        return content.hexdigest()[:20]


class CheckpointSource:
    """A local folder with safetensors files, as ``save_pretrained`` and mergekit write it."""

    def __init__(self, folder: str | Path, label: str | None = None) -> None:
        self.folder = Path(folder)
        self.label = label or self.folder.name
        self._file_of = _file_of_tensor(self.folder)
        self._open_files: dict[str, Any] = {}

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        return cast(Tensor, self._file(name).get_tensor(name))

    def digest(self) -> str:
        content = hashlib.sha256()
        for file_name in sorted(set(self._file_of.values())):
            path = self.folder / file_name
            size = path.stat().st_size
            with path.open("rb") as file:
                for position in (0, size // 2, max(0, size - 4096)):
                    file.seek(position)
                    content.update(file.read(4096))
            content.update(repr((file_name, size)).encode())
        return content.hexdigest()[:20]

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._file_of:
            raise TensorError(f"model {self.label!r} has no tensor {name!r} in {self.folder}")
        file_name = self._file_of[name]
        if file_name not in self._open_files:
            self._open_files[file_name] = safe_open(str(self.folder / file_name), framework="pt")
        return self._open_files[file_name]


def _file_of_tensor(folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; expected a checkpoint with config.json and *.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return dict(json.loads(index.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{index}: not a safetensors index (no weight_map); copy the checkpoint again") from None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder}: no *.safetensors file; expected a checkpoint as save_pretrained writes it. Convert older .bin "
            "files by loading and saving the model once."
        )
    names: dict[str, str] = {}
    for path in files:
        opened: Any = safe_open(str(path), framework="pt")
        with opened as file:
            names.update(dict.fromkeys(cast("list[str]", file.keys()), path.name))
    return names


def require_same_tensors(base: WeightSource, experts: Sequence[WeightSource], names: Iterable[str]) -> None:
    """Raise unless every expert has each of these tensors in the base's shape."""
    names_of = {expert.label: set(expert.names()) for expert in experts}
    for name in names:
        expected = base.shape(name)
        for expert in experts:
            if name not in names_of[expert.label]:
                raise ModelError(
                    f"model {expert.label!r} has no tensor {name!r}, which the base {base.label!r} has: it is of "
                    "another architecture. Merge models that were fine-tuned from one base."
                )
            if expert.shape(name) != expected:
                raise ModelError(
                    f"model {expert.label!r}, tensor {name!r}: shape {expert.shape(name)}, the base {base.label!r} has "
                    f"{expected}. Models must share their base's architecture and vocabulary."
                )


def require_nothing_besides(experts: Sequence[WeightSource], known: Iterable[str]) -> None:
    """Raise if an expert has a tensor that the model has no place for: it would be lost without a word."""
    names = set(known)
    for expert in experts:
        for name in expert.names():
            if name not in names and not name.endswith(RECOMPUTED):
                raise ModelError(
                    f"model {expert.label!r} has a tensor {name!r} that the base's architecture has not. Merge models "
                    "that were fine-tuned from one base."
                )
