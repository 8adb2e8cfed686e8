"""FusionBench as the host of a safety merge: models are those of a pool, and ``method=mergekit`` merges them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from mergekit import merge_methods
from mergekit.merge_methods.base import MergeMethodSpec
from torch import Tensor, nn

from fusion_bench_ext.agreement import names_to_merge
from fusion_bench_ext.algorithms.mergekit_method import MergeKitAlgorithm
from fusion_bench_ext.assembly import build_module
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pools import model_path
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.errors import ModelError
from mergekit_3h.safety.candidates import NO_OPTIONS, candidate_parameters
from mergekit_3h.safety.combination import Combination
from mergekit_3h.safety.port import BASE_LABEL, OpenedModels

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


class PoolFixedMerge(MergeKitAlgorithm):
    """The method that combines the models, which can also merge a tensor with other weights."""

    def __init__(
        self,
        combination: Combination,
        weights: Mapping[str, Any],
        base: str,
        experts: Sequence[str],
        seed: int | None,
        names: Sequence[str],
    ) -> None:
        own = {expert: dict(combination.own.get(expert, {})) for expert in experts}
        for expert, weight in weights.items():
            own[expert]["weight"] = weight
        super().__init__(combination.method, combination.shared, own, seed=seed)
        self._ids, self._base, self._names = list(experts), base, list(names)
        self.arrange(self._names)  # layer gradients have to know the last layer

    @property
    def spec(self) -> MergeMethodSpec:
        return self._method.spec

    def not_merged(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._names]

    def samples(self) -> Iterator[str]:
        seen: list[dict[str, Any]] = []
        for name in self._names:
            parameters = self._resolve(name, self._depth(name), [*self._ids, self._base], self._base)
            if parameters not in seen:
                seen.append(parameters)
                yield name

    def combine(
        self,
        name: str,
        base: Tensor,
        experts: Sequence[Tensor],
        weights: Sequence[float] | None,
        options: Mapping[str, float] = NO_OPTIONS,
    ) -> Tensor:
        ids: list[Any] = [*self._ids, self._base]
        planned = self._resolve(name, self._depth(name), ids, self._base)
        parameters = candidate_parameters(self.spec, planned, self._ids, weights, options)
        return merge_methods.merge_tensors(
            [*experts, base],
            self._method,
            parameters=parameters,
            ids=ids,
            base_index=len(experts),
            name=name,
        )


class PoolHost:
    """Opened models of a pool. ``reopen`` makes the same host in another process, if that can be."""

    def __init__(
        self,
        combination: Combination,
        pool: BaseModelPool,
        models: Sequence[OpenModel],
        *,
        device: torch.device,
        silent: bool | None = True,
        seed: int | None = None,
        report: Path | None = None,
        reopen: Callable[[], PoolHost] | None = None,
    ) -> None:
        self.combination, self.device, self.silent = combination, device, silent
        self._pool, self._seed, self._report, self._reopen = pool, seed, report, reopen
        self._base, self._experts = models[0], list(models[1:])

    @property
    def _models(self) -> dict[str, OpenModel]:
        return {BASE_LABEL: self._base, **{expert.name: expert for expert in self._experts}}

    @property
    def _paths(self) -> dict[str, str | None]:
        return {label: model_path(self._pool, model.name) for label, model in self._models.items()}

    @property
    def names(self) -> dict[str, str]:
        return {label: path or self._models[label].name for label, path in self._paths.items()}

    @cached_property
    def _tensors(self) -> list[str]:
        return names_to_merge(self._base, self._experts)

    def opened(self) -> OpenedModels:
        base, *experts = [PoolSource(label, model, self._tensors) for label, model in self._models.items()]
        return OpenedModels(base, tuple(experts), self._tokenizers(), self._base.module, self._stored)

    @property
    def _stored(self) -> torch.dtype | None:
        dtypes = {self._base.describe(name).dtype for name in self._tensors}
        return dtypes.pop() if len(dtypes) == 1 else None

    def searched_module(self, device: Any, dtype: str) -> nn.Module:
        names = {*self._tensors, *self._base.facts}
        module = build_module(self._base, {name: self._base.load(name).clone() for name in names})
        return module.to(device) if dtype == "auto" else module.to(device=device, dtype=getattr(torch, dtype))

    def fixed(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> PoolFixedMerge:
        combination, experts = self.combination.with_options(options), [expert.name for expert in self._experts]
        return PoolFixedMerge(combination, weights, self._base.name, experts, self._seed, self._tensors)

    def static(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any] | None:
        base, *experts = self._paths.items()
        if None in self._paths.values():
            return None
        return self.combination.with_options(options).static(base[1], dict(experts), weights, kept={})

    def report_folder(self) -> Path | None:
        return self._report

    def reopening(self) -> Callable[[], PoolHost] | None:
        return self._reopen

    def _tokenizers(self) -> dict[str, Any]:
        """Those beside the models' checkpoints, and the pool's own."""
        if not isinstance(self._pool, CausalLMPool):
            raise ModelError(
                "safety_merge evaluates language models on text; expected a CausalLMPool, got a "
                f"{type(self._pool).__name__}"
            )
        folders = {label: Path(path) if path else None for label, path in self._paths.items()}
        found = {label: load_tokenizer(folder) if folder else None for label, folder in folders.items()}
        if getattr(self._pool, "tokenizer", None) is not None:
            found["(the pool's tokenizer)"] = self._pool.load_tokenizer()
        return found
