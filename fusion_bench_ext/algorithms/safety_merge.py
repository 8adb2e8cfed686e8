"""The FusionBench algorithm ``SafetyMerge``: weights chosen by losses on safety and domain data, arXiv 2406.14563."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.instantiate_utils import instantiate
from mergekit.merge_methods import registered_methods
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from fusion_bench_ext.algorithms.streaming import StreamingAlgorithm
from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.hydra_values import plain_value
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pools import BASE_NAME, PoolModels
from fusion_bench_ext.safety_host import PoolFixedMerge, PoolHost
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.options import require_known
from mergekit_3h.safety.combination import Combination, require_free_weights
from mergekit_3h.safety.merge import SearchedMerge
from mergekit_3h.safety.options import (
    SafetyMergeOptions,
    parse_safety_merge_options,
    safety_merge_option_names,
)
from mergekit_3h.search.combinations import require_searchable
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.tuning import WEIGHT, searched_names
from mergekit_3h.suggestions import did_you_mean


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
                finds_weights = WEIGHT in searched_names(str(options.get("over", WEIGHT)))
                specs = [method.spec for method in registered_methods()]
                require_searchable(options["combine"], specs, with_weights=finds_weights)
            parsed = parse_safety_merge_options(options)
        for name, value in parsed.by_name().items():
            setattr(self, name, value)
        self.parameters = dict(plain_value(parameters) or {})
        self.model_parameters = dict(plain_value(model_parameters) or {})
        self.random_seed = random_seed
        self.solution: Solution | None = None
        """What the last run found."""

    @property
    def options(self) -> SafetyMergeOptions:
        """The options as they are now, checked again: attributes may have been set since."""
        return parse_safety_merge_options({name: getattr(self, name) for name in safety_merge_option_names()})

    @property
    def combination(self) -> Combination:
        return Combination(self.options, self.parameters, self.model_parameters)

    def base_name(self, modelpool: BaseModelPool) -> str:
        self._pool = modelpool
        if not modelpool.has_pretrained:
            raise ModelError(
                f"safety_merge needs the model that the experts were trained from: add it to the pool's models as "
                f"{BASE_NAME!r}. The pool has: {modelpool.all_model_names}"
            )
        return BASE_NAME

    def check_pool(self, base: str | None, experts: Sequence[str]) -> None:
        combination = self.combination
        for name in self.model_parameters:
            if name not in experts:
                raise OptionError(
                    f"option 'model_parameters': no model to merge is called {name!r}; {did_you_mean(name, experts)}"
                )
        for where, given in {"parameters": self.parameters, **self.model_parameters}.items():
            require_free_weights(combination.given.search, where, given)
        combination.records()
        combination.spectral()
        weights = dict.fromkeys(experts, 1.0) if combination.finds_weights else {}
        fixed = PoolFixedMerge(combination, weights, base or BASE_NAME, experts, self.random_seed, [])
        combination.require_startable(fixed.spec, experts)
        combination.axes(fixed.spec, len(experts))
        fixed.check_pool(base, experts)

    def arrange(self, names: list[str]) -> list[str]:
        return self._merger.arrange(names)

    def bytes_needed(self, name: str, reference: OpenModel, experts: Sequence[OpenModel]) -> int | None:
        need = self._merger.bytes_needed(name, reference, experts)
        self.memory_gb = self._merger.memory_gb
        return need

    def merge(self, name: str, base: tuple[str, Tensor] | None, experts: Mapping[str, Tensor]) -> Tensor:
        return self._merger.merge(name, base, experts)

    def _merge_all(self, base: OpenModel | None, experts: list[OpenModel]) -> nn.Module:
        assert base is not None  # base_name names one
        silent = None if self.fabric.is_global_zero else True  # None: shown on a terminal only
        host = self.host([base, *experts], self.fabric.device, silent=silent, report=self._report_folder())
        self.solution, self._merger = SearchedMerge(host).found()
        return super()._merge_all(base, experts)

    def host(self, models: Sequence[OpenModel], device: torch.device, **others: Any) -> PoolHost:
        """The pool's opened models, the base first, as a host of the search."""
        reopen = self._reopening()
        return PoolHost(
            self.combination, self._pool, models, device=device, seed=self.random_seed, reopen=reopen, **others
        )

    def _reopening(self) -> Callable[[], PoolHost] | None:
        """Other processes open the same pool from its config; one that was made of modules stays in this process."""
        try:
            pool: Any = OmegaConf.to_container(self._pool.config, resolve=True)
            own: Any = OmegaConf.to_container(self.config, resolve=True)
        except (OmegaConfBaseException, ValueError):
            return None
        return partial(_opened_from_config, pool, own)

    def _report_folder(self) -> Path | None:
        """Where the report goes: only the first of several processes writes one."""
        if not self.fabric.is_global_zero:
            return None
        if self.options.run.report:
            return self.options.run.folder()
        return Path(self.log_dir) if self.log_dir else None


def _opened_from_config(pool_config: dict[str, Any], config: dict[str, Any]) -> PoolHost:
    """The host in a process of a Ray cluster."""
    pool = instantiate(OmegaConf.create(pool_config))
    algorithm = SafetyMerge(**{key: value for key, value in config.items() if not key.startswith("_")})
    names = [algorithm.base_name(pool), *algorithm.expert_names(pool)]
    algorithm.check_pool(names[0], names[1:])
    models = PoolModels(pool)
    return algorithm.host([models.open(name) for name in names], torch.device("cpu"))
