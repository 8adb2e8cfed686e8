"""FusionBench algorithms, each imported only when it is asked for; those of spectral methods by their class names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_bench_ext.algorithms.mergekit_method import MergeKitAlgorithm as MergeKitAlgorithm
    from fusion_bench_ext.algorithms.safety_merge import SafetyMerge as SafetyMerge
    from fusion_bench_ext.algorithms.streaming import StreamingAlgorithm as StreamingAlgorithm

_MODULE_OF = {"MergeKitAlgorithm": "mergekit_method", "SafetyMerge": "safety_merge", "StreamingAlgorithm": "streaming"}

__all__ = ["MergeKitAlgorithm", "SafetyMerge", "StreamingAlgorithm"]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'spectral')}"), name)
