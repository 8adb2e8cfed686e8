"""Checkpoints on disk as open models: tensors out of the files one at a time, under the names that the module has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from fusion_bench.utils.lazy_state_dict import LazyStateDict
from safetensors import safe_open
from torch import Tensor

from fusion_bench_ext.models import OpenModel, TensorFacts, missing_from_checkpoint, tie_again
from mergekit_3h.errors import ModelError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class LazyModel(OpenModel):
    """A checkpoint on disk. Its files are read directly: their headers give shapes and dtypes without the tensors."""

    def __init__(self, name: str, lazy: LazyStateDict) -> None:
        if lazy.meta_module is None:
            raise ModelError(f"model {name!r} is lazy but has no module class, so no model can be built from it")
        self._dtype: torch.dtype | None = lazy._torch_dtype
        self._reader = _FileReader(lazy._checkpoint_files or [])
        module = deepcopy(lazy.meta_module)
        tie_again(module)
        stored = {key: replace(seen, dtype=self._loaded_as(seen.dtype)) for key, seen in self._reader.facts().items()}
        super().__init__(name, module, stored)
        # What the module does not know is left out, as transformers does (old checkpoints store rotary frequencies).
        self.facts = {key: seen for key, seen in stored.items() if key in module.state_dict()} | self._converted(stored)

    def _converted(self, stored: Mapping[str, TensorFacts]) -> dict[str, TensorFacts]:
        """The parameters that transformers makes out of tensors of other names, as it fuses Mixtral's experts."""
        from mergekit.architecture.conversion import can_convert_checkpoint_keys

        lacking = {key: value for key, value in self.module.named_parameters() if self.stored_name(key) is None}
        unmade = [
            key
            for key in lacking
            if not any(can_convert_checkpoint_keys(self._model_type, some, key) for some in self._candidates(key))
        ]
        if unmade:
            raise missing_from_checkpoint(self.name, unmade)
        return {key: TensorFacts(tuple(value.shape), self._loaded_as(value.dtype)) for key, value in lacking.items()}

    @property
    def _model_type(self) -> str | None:
        return getattr(getattr(self.module, "config", None), "model_type", None)

    def _loaded_as(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and dtype.is_floating_point else dtype

    def _read(self, stored_name: str) -> Tensor:
        tensor = self._reader.read(stored_name) if stored_name in self._reader else self._convert(stored_name)
        return tensor.to(self.facts[stored_name].dtype)

    def _convert(self, name: str) -> Tensor:
        from mergekit.architecture.conversion import convert_checkpoint_tensors

        for some in self._candidates(name):
            sources = {key: partial(self._reader.read, key) for key in some}
            tensor = convert_checkpoint_tensors(self._model_type, sources, name)
            if tensor is not None:
                return tensor
        raise missing_from_checkpoint(self.name, [name])

    def _candidates(self, name: str) -> list[set[str]]:
        """Stored names that ``name`` may be made of: those of its layer, or any.

        transformers matches every stored name with every pattern; with 128 experts in a layer that takes minutes.
        """
        names = self._reader.names()
        return [{key for key in names if _first_number(key) == _first_number(name)}, names]


class _FileReader:
    """Tensors out of safetensors files, which stay open, or out of PyTorch's own, memory-mapped."""

    def __init__(self, files: Iterable[str]) -> None:
        self._sources: dict[str, Any] = {}
        for file in files:
            if file.endswith(".safetensors"):
                handle = safe_open(file, framework="pt", device="cpu")
                self._sources.update(dict.fromkeys(handle.keys(), handle))
            else:
                self._sources.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))

    def __contains__(self, key: str) -> bool:
        return key in self._sources

    def names(self) -> set[str]:
        return set(self._sources)

    def facts(self) -> dict[str, TensorFacts]:
        return {key: self._facts(key, source) for key, source in self._sources.items()}

    def read(self, key: str) -> Tensor:
        source = self._sources[key]
        return source if isinstance(source, Tensor) else source.get_tensor(key)

    def _facts(self, key: str, source: Any) -> TensorFacts:
        if isinstance(source, Tensor):
            return TensorFacts(tuple(source.shape), source.dtype)
        header = source.get_slice(key)
        kind = header.get_dtype()
        dtype = _DTYPES[kind] if kind in _DTYPES else source.get_tensor(key).dtype
        return TensorFacts(tuple(header.get_shape()), dtype)


@cache
def _first_number(name: str) -> str | None:
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else None
