"""TSVM, R-TSVM and safety-data-driven merging for MergeKit and FusionBench.

Importing this package imports neither torch nor mergekit: the public names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_3h.errors import ThreeHError as ThreeHError
    from mergekit_3h.spectral.registry import parse_options as parse_options
    from mergekit_3h.spectral.tensors import merge_tensor as merge_tensor

__version__ = "0.2.0"

_HOME_OF = {
    "ThreeHError": "mergekit_3h.errors",
    "parse_options": "mergekit_3h.spectral.registry",
    "merge_tensor": "mergekit_3h.spectral.tensors",
}

__all__ = ["ThreeHError", "__version__", "merge_tensor", "parse_options"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
