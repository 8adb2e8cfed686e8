"""The models of a pool as a search problem: what is wrong shows before their weights are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from torch import Tensor, nn

from fusion_bench_ext.agreement import names_to_merge
from fusion_bench_ext.assembly import build_module
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pools import model_path
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.errors import ModelError
from mergekit_3h.losses.answers import shared_tokenizer
from mergekit_3h.losses.records import located_records
from mergekit_3h.search.components import Combine
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.problem import Problem

_SAMPLED_TENSORS = 16
_SAMPLED_NUMBERS = 64


class PoolSource:
    """One model of a pool as the search reads it: by tensor, under the names of the module."""

    def __init__(self, label: str, model: OpenModel, names: Sequence[str]) -> None:
        self.label = label
        self._model, self._names = model, list(names)

    def names(self) -> Iterable[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._model.describe(name).shape

    def tensor(self, name: str) -> Tensor:
        return self._model.load(name)

    def digest(self) -> str:
        """Of the names and shapes of all tensors, and of some numbers of some of them."""
        content = hashlib.sha256()
        step = max(1, len(self._names) // _SAMPLED_TENSORS)
        for index, name in enumerate(self._names):
            content.update(repr((name, self.shape(name))).encode())
            if index % step == 0:
                flat = self.tensor(name).flatten()
                content.update(repr(flat[:: max(1, flat.numel() // _SAMPLED_NUMBERS)].float().tolist()).encode())
        return content.hexdigest()[:20]


def checked_problem(
    pool: BaseModelPool,
    base: OpenModel,
    experts: Sequence[OpenModel],
    data: Sequence[Path],
    options: SearchOptions,
    *,
    method: Any,
    combine: Combine | None,
) -> Problem:
    """The problem with the base's own module, which must not be searched: it is the pool's, or has no weights."""
    names = names_to_merge(base, experts)
    labels = {"base": base, **{expert.name: expert for expert in experts}}
    sources = [PoolSource(label, model, names) for label, model in labels.items()]
    tokenizer = shared_tokenizer(_tokenizers(pool, {label: model.name for label, model in labels.items()}), options)
    records = located_records(data)
    return Problem(sources[0], tuple(sources[1:]), base.module, tokenizer, records, options, method, combine)


def searched_module(base: OpenModel, names: Iterable[str], options: SearchOptions, device: torch.device) -> nn.Module:
    """A module of its own that candidates are written into."""
    kept = {name: base.load(name).clone() for name in {*names, *base.facts}}
    module = build_module(base, kept)
    dtypes: set[torch.dtype] = {parameter.dtype for parameter in module.parameters()}
    dtype = (
        getattr(torch, options.dtype) if options.dtype != "auto" else next(iter(dtypes)) if len(dtypes) == 1 else None
    )
    return module.to(device) if dtype is None else module.to(device=device, dtype=dtype)


def _tokenizers(pool: BaseModelPool, names: dict[str, str]) -> dict[str, Any]:
    """Those beside the models' checkpoints, and the pool's own."""
    if not isinstance(pool, CausalLMPool):
        raise ModelError(
            f"safety_merge evaluates language models on text; expected a CausalLMPool, got a {type(pool).__name__}"
        )
    folders = {label: model_path(pool, name) for label, name in names.items()}
    found = {label: load_tokenizer(Path(folder)) if folder else None for label, folder in folders.items()}
    if getattr(pool, "tokenizer", None) is not None:
        found["(the pool's tokenizer)"] = pool.load_tokenizer()
    return found
