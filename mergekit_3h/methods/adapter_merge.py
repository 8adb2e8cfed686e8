"""Adapters of a mergekit config merged into one: mergekit plans, and nothing but the adapted tensors is merged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_3h.checkpoints.merged_adapters import MergedAdapter, write_merged_updates
from mergekit_3h.kernels.core_space import Truncation
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.lint.host_plan import save_tasks
from mergekit_3h.methods.adapter_experts import LoraRoute, adapters_on_their_base, require_adapters
from mergekit_3h.methods.memory_merge import explained, parsed_config
from mergekit_3h.spectral.low_rank import LowRankUpdates, Route, merged_update, truncated_update
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.writing import write_text_whole


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
            found: dict[str, Truncation] = {}
            experts.take = partial(_take, found, experts.route, rank)
            tasks: list[Any] = [
                task.tensor_task
                for task in save_tasks(parsed, options)
                if experts.parameter(task.tensor_name) in experts.adapted
            ]
            for _ in Executor(tasks, torch.device(options.device or "cpu"), torch.device("cpu")).run(quiet=True):
                pass
            base = experts.reference.model
            placed = list(experts.adapters.values())
            written = write_merged_updates(folder, found, placed, (base.path, base.revision))
    if source:
        write_text_whole(folder / "mergekit_config.yml", source)
    return written


def _take(
    found: dict[str, Truncation],
    route: Route,
    rank: int | None,
    parameter: str,
    given: LowRankUpdates,
    method: SpectralMethod,
    device: torch.device,
) -> None:
    """Merge a parameter in place of adding it to the base."""
    update, _ = merged_update(given, method, route, computing_device(device))
    found[parameter] = truncated_update(update, given, method, rank)
