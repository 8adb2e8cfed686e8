"""Both hosts' merges on the pretended device, in a process of their own: torch keeps the device for good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hosts import mergekit_yaml
from pretended_device import DEVICE, PretendedPassage

from mergekit_3h.kernels.passages import PASSAGES


def merged_by_mergekit(config: dict[str, Any], out: Path, *flags: str) -> str:
    """``mergekit-yaml --device`` with the pretended one; what it wrote on stderr."""
    PASSAGES[DEVICE.type] = PretendedPassage
    return mergekit_yaml(config, out, "--device", str(DEVICE), *flags).stderr


def merged_by_fusion_bench(algorithm: str, options: Mapping[str, Any], models: Mapping[str, str], out: Path) -> None:
    """A FusionBench algorithm on the pretended device, whose Fabric knows no such accelerator."""
    from fusion_bench.modelpool import CausalLMPool

    from fusion_bench_ext.algorithms import spectral

    PASSAGES[DEVICE.type] = PretendedPassage

    class Fabric:
        device, is_global_zero = DEVICE, True

    made = getattr(spectral, algorithm)(model_save_path=str(out), **options)
    type(made).fabric = property(lambda self: Fabric())
    made.run(CausalLMPool(dict(models), tokenizer=models["_pretrained_"], enable_lazy_loading=True))


def conveyed() -> bool:
    """Whether the last merges went by the conveyor, and not otherwise."""
    from mergekit_3h.kernels.conveyor import conveyor_on

    conveyor = conveyor_on(torch.device(DEVICE))
    return conveyor is not None and all(seconds > 0 for seconds in conveyor.seconds.values())
