"""Checkpoints on disk as open models: tensors out of the files one at a time, under the names that the module has."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from fusion_bench.utils.lazy_state_dict import LazyStateDict
from safetensors import safe_open
from torch import Tensor

from fusion_bench_ext.models import OpenModel, TensorFacts, missing_from_checkpoint, tie_again
from mergekit_3h.checkpoints.loading import LoadedNames
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
        # What the module does not know is left out, as transformers does (old checkpoints store rotary frequencies).
        self._recipes = LoadedNames(module).recipes(self._reader.names())
        super().__init__(name, module, {})
        self.facts = self._all_facts()
        unmade = [key for key, _ in module.named_parameters() if self.stored_name(key) is None]
        if unmade:
            raise missing_from_checkpoint(name, unmade)

    def _all_facts(self) -> dict[str, TensorFacts]:
        """What each tensor will be like: those that are made of others are made once without their contents."""
        stored = {name: (seen.shape, seen.dtype) for name, seen in self._reader.facts().items()}
        outlines = {key: recipe.outline(key, stored, self.module) for key, recipe in self._recipes.items()}
        return {
            key: TensorFacts(tuple(made.shape), self._loaded_as(made.dtype))
            for key, made in outlines.items()
            if made is not None
        }

    def _loaded_as(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and dtype.is_floating_point else dtype

    def _read(self, stored_name: str) -> Tensor:
        tensor = self._recipes[stored_name].make(stored_name, self._reader.read, self.module)
        return tensor.to(self.facts[stored_name].dtype)


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
