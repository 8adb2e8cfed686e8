"""The tensor families of a model for the combination that is asked for, and where they are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from mergekit_3h.errors import OptionError
from mergekit_3h.options import TSVMOptions
from mergekit_3h.search.components import Combine, MergedFamily, TensorFamily, differences
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.sources import WeightSource

log = logging.getLogger(__name__)


def families(
    names: Sequence[str],
    base: WeightSource,
    experts: Sequence[WeightSource],
    options: SearchOptions,
    method: TSVMOptions | None,
    combine: Combine | None,
    device: torch.device,
) -> dict[str, TensorFamily]:
    """Every tensor as a function of its coefficients. tsvm and rtsvm are decomposed here, once, on ``device``."""
    log.info("%s: preparing %d tensors of %d experts", options.combine, len(names), len(experts))
    made: dict[str, TensorFamily] = {}
    for name in names:
        base_tensor = base.tensor(name)
        tensors = [expert.tensor(name) for expert in experts]
        if options.combine == "task_arithmetic":
            made[name] = differences(base_tensor, tensors)
        elif combine is not None:
            made[name] = MergedFamily(name, base_tensor, tuple(tensors), combine)
        else:
            raise OptionError(f"option 'combine': got {options.combine!r}, which cannot be searched")
    return made


def placed(made: Mapping[str, TensorFamily], device: torch.device, memory_gb: float | None) -> dict[str, TensorFamily]:
    """The families on the model's device as far as its memory allows, the others where they are.

    Smallest first: that keeps the number of transfers per candidate low.
    """
    if device.type == "cpu":
        return dict(made)
    if memory_gb is not None:
        room = memory_gb * 1e9
    else:
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else float("inf")
    kept: dict[str, TensorFamily] = {}
    moved = 0
    for name, family in sorted(made.items(), key=lambda item: item[1].size()):
        room -= family.size()
        kept[name] = family.moved(device) if room >= 0 else family
        moved += room >= 0
    log.info("components of %d of %d tensors are kept on %s", moved, len(made), device)
    return kept
