"""Adapters of a mergekit config merged into one: mergekit plans, and nothing but the adapted tensors is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.checkpoints.adapter_files import MergedModule, write_adapter
from mergekit_3h.kernels.core_space import LowRank, Truncation, lost_share, truncated
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.lint.host_plan import save_tasks
from mergekit_3h.methods.adapter_experts import AdapterExperts, LoraRoute, adapters_on_their_base, require_adapters
from mergekit_3h.methods.memory_merge import explained, parsed_config
from mergekit_3h.spectral.low_rank import LowRankUpdates, merged_update
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.writing import write_text_whole


@dataclass(frozen=True)
class MergedAdapter:
    """What was written."""

    modules: int
    ranks: list[int]
    """The smallest and the largest rank of a module."""
    lost: float
    """How far the adapter is from the merged update, relative to that: 0 but where its rank was limited."""


def write_merged_adapter(
    config: Mapping[str, Any],
    folder: Path,
    options: MergeOptions,
    *,
    route: LoraRoute = "auto",
    rank: int | None = None,
    source: str = "",
) -> MergedAdapter:
    """One adapter on the config's base with the merged update of every module, of ``rank`` at most."""
    parsed = parsed_config(config)
    require_adapters(parsed, route, "--as-adapter")
    with explained("the merge"):
        LoaderCache().setup(options=options)
        with adapters_on_their_base(parsed, route, options) as experts:
            assert experts is not None
            found = _Truncations(experts, rank)
            experts.take = found.add
            tasks: list[Any] = [
                task.tensor_task
                for task in save_tasks(parsed, options)
                if experts.parameter(task.tensor_name) in experts.adapted
            ]
            for _ in Executor(tasks, torch.device(options.device or "cpu"), torch.device("cpu")).run(quiet=True):
                pass
            modules = found.modules()
            merged = [adapter.adapter for adapter in experts.adapters.values()]
            base = experts.reference.model
            write_adapter(folder, modules, experts.base, (base.path, base.revision), merged)
    if source:
        write_text_whole(folder / "mergekit_config.yml", source)
    ranks = [module.update.rank for module in modules if module.update.rank]
    return MergedAdapter(len(ranks), [min(ranks), max(ranks)], lost_share(list(found.of_parameter.values())))


class _Truncations:
    """The merged update of every parameter that was merged so far."""

    def __init__(self, experts: AdapterExperts, rank: int | None) -> None:
        self.of_parameter: dict[str, Truncation] = {}
        self._experts = experts
        self._rank = rank

    def add(self, parameter: str, given: LowRankUpdates, method: SpectralMethod, device: torch.device) -> None:
        update, _ = merged_update(given, method, self._experts.route, computing_device(device))
        # No merge reaches beyond the experts' own directions; what a dense one has there is rounding.
        most = sum(each.rank for each in given.updates.values())
        self.of_parameter[parameter] = truncated(_scaled(update, method.lambda_), min(most, self._rank or most))

    def modules(self) -> list[MergedModule]:
        places = [place for adapter in self._experts.adapters.values() for place in adapter.places.items()]
        return [
            MergedModule(name, place, self.of_parameter[parameter].kept)
            for parameter, (name, place) in sorted(dict(places).items())
        ]


def _scaled(update: LowRank | Tensor, factor: float) -> LowRank:
    if isinstance(update, LowRank):
        return LowRank(update.left, update.right, factor * update.scale)
    return LowRank(update, torch.eye(update.shape[1], dtype=update.dtype, device=update.device), factor)
