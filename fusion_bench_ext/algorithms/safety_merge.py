"""The FusionBench algorithm ``SafetyMerge``: weights chosen by losses on safety and domain data, arXiv 2406.14563."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.instantiate_utils import instantiate
from mergekit import merge_methods
from mergekit.merge_methods import registered_methods
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from fusion_bench_ext.algorithms.mergekit_method import MergeKitAlgorithm
from fusion_bench_ext.algorithms.streaming import StreamingAlgorithm
from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pool_problem import checked_problem, model_path, searched_module
from fusion_bench_ext.pools import open_model
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.losses.records import by_set, located_records
from mergekit_3h.options import require_known
from mergekit_3h.safety.options import (
    SafetyMergeOptions,
    parse_safety_merge_options,
    safety_merge_option_names,
)
from mergekit_3h.safety.progress import search_progress
from mergekit_3h.safety.report import TRACE, write_report
from mergekit_3h.safety.running import search
from mergekit_3h.search.combinations import is_linear, require_plain, require_searchable
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.solution import Solution
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.suggestions import did_you_mean

LOG = logging.getLogger(__name__)

_BASE = "_pretrained_"


class SafetyMerge(StreamingAlgorithm):
    """Searches the weights of a merge method, then merges with them; every option is an attribute of its name.

    Args:
        parameters: parameters of the method ``combine`` for all models, as in a mergekit config.
        model_parameters: model name -> its parameters of that method.
        random_seed: seeds torch right before merging, for methods that draw at random.
        model_save_path: where to save the merged model, with tokenizer and model card.
        options: those of ``mergekit_3h.safety.options``.
    """

    title = "Safety-data-driven merging"
    _own = ("parameters", "model_parameters", "random_seed")
    _config_mapping = StreamingAlgorithm._config_mapping | {n: n for n in (*safety_merge_option_names(), *_own)}

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any] | None = None,
        model_parameters: Mapping[str, Mapping[str, Any]] | None = None,
        random_seed: int | None = None,
        model_save_path: str | None = None,
        **options: Any,
    ) -> None:
        host_keys = {name: options.pop(name) for name in list(options) if name.startswith("_")}
        super().__init__(model_save_path=model_save_path, **host_keys)
        with shown_by_hydra():
            known = [*safety_merge_option_names(), *self._own, "model_save_path"]
            for name in options:
                require_known("safety_merge", name, known)
            if "combine" in options:
                require_searchable(options["combine"], [method.spec for method in registered_methods()])
            parsed = parse_safety_merge_options(options)
        for name, value in parsed.by_name().items():
            setattr(self, name, value)
        self.parameters, self.model_parameters = _plain(parameters), _plain(model_parameters)
        self.random_seed = random_seed
        self.solution: Solution | None = None
        """What the last run found."""

    @property
    def options(self) -> SafetyMergeOptions:
        """The options as they are now, checked again: attributes may have been set since."""
        return parse_safety_merge_options({name: getattr(self, name) for name in safety_merge_option_names()})

    def base_name(self, modelpool: BaseModelPool) -> str:
        self._pool = modelpool
        if not modelpool.has_pretrained:
            raise ModelError(
                f"safety_merge needs the model that the experts were trained from: add it to the pool's models as "
                f"{_BASE!r}. The pool has: {modelpool.all_model_names}"
            )
        return _BASE

    def check_pool(self, base: str | None, experts: Sequence[str]) -> None:
        options = self.options
        by_set(located_records(options.run.files()), options.search.needed_sets())
        options.run.folder()
        self._method_options = self._options_of_combine(options.search.combine)
        self._merger = self._merger_with(dict.fromkeys(experts, 1.0))
        self._merger.check_pool(base, experts)

    def _options_of_combine(self, combine: str) -> SpectralMethod | None:
        for where, given in {"parameters": self.parameters, **self.model_parameters}.items():
            if "weight" in given:
                raise OptionError(f"{where}.weight: the weights are what safety_merge searches; remove it")
            require_plain(combine, where, given)
        if combine not in registry.names():
            return None
        for name, value in self.parameters.items():
            if isinstance(value, list | dict):
                raise OptionError(f"parameters.{name}: got {value!r}; {combine} takes one value for all tensors here")
        return registry.parse_options(combine, self.parameters)

    def _merger_with(self, weights: Mapping[str, Any]) -> FixedWeights:
        """The method with fixed weights, as ``method=mergekit`` runs it."""
        own = {name: {**self.model_parameters.get(name, {}), "weight": weight} for name, weight in weights.items()}
        for name in self.model_parameters:
            if name not in weights:
                raise OptionError(
                    f"option 'model_parameters': no model to merge is called {name!r}; {did_you_mean(name, weights)}"
                )
        return FixedWeights(self.options.search.combine, self.parameters, own, seed=self.random_seed)

    def arrange(self, names: list[str]) -> list[str]:
        return self._merger.arrange(names)

    def merge(self, name: str, base: tuple[str, Tensor] | None, experts: Mapping[str, Tensor]) -> Tensor:
        return self._merger.merge(name, base, experts)

    def _merge_all(self, base: OpenModel | None, experts: list[OpenModel]) -> nn.Module:
        assert base is not None  # base_name names one
        self.solution = self._searched(base, experts)
        self._merger = self._merger_with(self.solution.mergekit_weights())
        self._report(self.solution, base.name, [expert.name for expert in experts])
        return super()._merge_all(base, experts)

    def _searched(self, base: OpenModel, experts: Sequence[OpenModel]) -> Solution:
        options = self.options
        problem = self.problem(base, experts)
        folder = self._folder()
        with search_progress(options.search, disable=self._silent) as on_point:
            return search(
                problem,
                partial(self._opened, problem, base, self.fabric.device),
                options,
                opened_by_worker=self._opened_by_worker(),
                trace_path=folder / TRACE if folder else None,
                resume=True,
                identity={"parameters": self.parameters, "model_parameters": self.model_parameters},
                on_point=on_point,
            )

    def problem(self, base: OpenModel, experts: Sequence[OpenModel]) -> Problem:
        """What is searched, checked without using weights."""
        options = self.options
        self._merger.arrange(list(base.facts))  # layer gradients have to know the last layer
        combine = partial(_combined, self._merger, [expert.name for expert in experts])
        return checked_problem(
            self._pool,
            base,
            experts,
            options.run.files(),
            options.search,
            method=self._method_options,
            combine=None if is_linear(options.search.combine) else combine,
        )

    def _opened(self, problem: Problem, base: OpenModel, device: torch.device) -> Problem:
        """With a module for the candidates."""
        module = searched_module(base, problem.base.names(), self.options.search, device)
        return replace(problem, model=module)

    def _opened_by_worker(self) -> Callable[[], Problem] | None:
        """Other processes open the same pool from its config; one that was made of modules stays in this process."""
        try:
            pool: Any = OmegaConf.to_container(self._pool.config, resolve=True)
            own: Any = OmegaConf.to_container(self.config, resolve=True)
        except (OmegaConfBaseException, ValueError):
            return None
        return partial(_opened_from_config, pool, own)

    def _report(self, solution: Solution, base: str, experts: Sequence[str]) -> None:
        folder = self._folder()
        if folder is None:
            LOG.warning(
                "safety_merge found the weights %s. Nothing else of the search is kept: there is no log directory, and "
                "the option report is not set",
                solution.mergekit_weights(),
            )
            return
        paths = {name: model_path(self._pool, name) for name in (base, *experts)}
        problem = {
            "models": {name: path or name for name, path in paths.items()},
            "data": [str(path) for path in self.options.run.files()],
            "combine": solution.options.combine,
            "parameters": self.parameters,
            "model_parameters": self.model_parameters,
        }
        write_report(folder, solution, problem, self._static(solution, paths))

    def _static(self, solution: Solution, paths: Mapping[str, str | None]) -> dict[str, Any] | None:
        """The mergekit config of the same merge, if mergekit could find the models."""
        if None in paths.values():
            return None
        weights = solution.mergekit_weights()
        models = [
            {"model": paths[name], "parameters": {**self.model_parameters.get(name, {}), "weight": weight}}
            for name, weight in weights.items()
        ]
        config = {"merge_method": solution.options.combine, "base_model": paths[_BASE], "models": models}
        return {**config, **({"parameters": self.parameters} if self.parameters else {})}

    def _folder(self) -> Path | None:
        """Where the report goes: only the first of several processes writes one."""
        if not self.fabric.is_global_zero:
            return None
        if self.options.run.report:
            return self.options.run.folder()
        return Path(self.log_dir) if self.log_dir else None

    @property
    def _silent(self) -> bool | None:
        return None if self.fabric.is_global_zero else True  # None: shown on a terminal only


class FixedWeights(MergeKitAlgorithm):
    """The method that combines the models, which can also merge a tensor with other weights."""

    def with_weights(self, name: str, base: Tensor, experts: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
        ids: list[Any] = [*experts, _BASE]
        parameters = self._resolve(name, self._depth(name), ids, _BASE)
        return merge_methods.merge_tensors(
            [*experts.values(), base],
            self._method,
            parameters={**parameters, "weight": dict(zip(experts, weights, strict=True))},
            ids=ids,
            base_index=len(experts),
            name=name,
        )


def _combined(
    merger: FixedWeights, models: Sequence[str], name: str, base: Tensor, experts: Sequence[Tensor], weights: Any
) -> Tensor:
    return merger.with_weights(name, base, dict(zip(models, experts, strict=True)), weights)


def _opened_from_config(pool_config: dict[str, Any], config: dict[str, Any]) -> Problem:
    """The problem in a process of a Ray cluster, on the device that Ray gives it."""
    pool = instantiate(OmegaConf.create(pool_config))
    algorithm = SafetyMerge(**{key: value for key, value in config.items() if not key.startswith("_")})
    base, experts = algorithm.base_name(pool), algorithm.expert_names(pool)
    algorithm.check_pool(base, experts)
    opened = open_model(pool, base)
    problem = algorithm.problem(opened, [open_model(pool, name) for name in experts])
    return algorithm._opened(problem, opened, torch.device(algorithm.options.worker_device))


def _plain(value: Any) -> dict[str, Any]:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig) else dict(value or {})  # type: ignore[return-value]
