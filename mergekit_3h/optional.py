"""Optional dependencies, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mergekit_3h.errors import ThreeHError


class MissingExtraError(ThreeHError):
    """A package of one of this package's extras is not installed."""


def optional(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an extra; the error says what needs it and how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}, which cannot be imported ({error}); "
            f"install it with: pip install 'mergekit-3h[{extra}]'"
        ) from None
