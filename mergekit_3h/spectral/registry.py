"""The one list of spectral methods: the files of this folder, and the entry points of other packages.

mergekit, FusionBench, search, benchmarks, lint, doctor, docs and tests read it. It imports the standard library only,
so that the start-up hook can ask for the names; a method's module is imported when the method is asked for.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_3h.errors import OptionError
from mergekit_3h.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mergekit_3h.spectral.method import SpectralMethod

GROUP = "mergekit_3h.spectral"
"""Entry points of this group name classes that derive from ``SpectralMethod``, each under its method's name."""

PACKAGE = "mergekit-3h"
_NO_METHODS = (
    "__init__",
    "block_weights",
    "combining",
    "elementwise",
    "gate",
    "literal",
    "low_rank",
    "method",
    "name_patterns",
    "registry",
    "rounding_log",
    "tensors",
)

log = logging.getLogger(__name__)


def own_names() -> list[str]:
    """The methods of this package: one a file."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in _NO_METHODS)


@cache
def packages() -> dict[str, str]:
    """Every method's name, with the package that brings it."""
    return dict.fromkeys(own_names(), PACKAGE) | {name: package_of(point) for name, point in _foreign().items()}


def names() -> list[str]:
    return list(packages())


def methods() -> dict[str, type[SpectralMethod]]:
    """Every method by its name; one that cannot be loaded is left out with a warning that names its package."""
    found: dict[str, type[SpectralMethod]] = {}
    for name in names():
        try:
            found[name] = method(name)
        except Exception as error:
            _warn_once(f"spectral method {name!r} of the package {packages()[name]} is left out: {error}")
    return found


@cache
def method(name: str) -> type[SpectralMethod]:
    """The class of the method ``name``."""
    if name in own_names():
        return import_module(f"mergekit_3h.spectral.{name}").METHOD
    if name not in packages():
        raise OptionError(f"there is no spectral method {name!r}; {did_you_mean(name, names())}")
    from mergekit_3h.spectral.method import SpectralMethod

    loaded: Any = _foreign()[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, SpectralMethod) and loaded.name == name):
        raise OptionError(
            f"entry point {name!r} of the group {GROUP} ({_foreign()[name].value}) is no class that derives from "
            f"mergekit_3h.spectral.method.SpectralMethod with the name {name!r}"
        )
    return loaded


def option_names(name: str) -> list[str]:
    """Every option of a method under the name that users write, those of single experts last."""
    from mergekit_3h.options import option_names as declared
    from mergekit_3h.spectral.method import ExpertOptions

    return declared(method(name)) + declared(ExpertOptions)


def parse_options(name: str, given: Mapping[str, Any]) -> SpectralMethod:
    """The method ``name`` with options from plain values; the error names the option, its value and what it may be."""
    from mergekit_3h.options import parsed, require_known

    for option in given:
        require_known(name, option, option_names(name))
    return parsed(method(name), given, name)


@cache
def _foreign() -> dict[str, EntryPoint]:
    """Methods of other packages by name, which depend on names only, not on the order of installation."""
    try:
        declared = sorted(entry_points(group=GROUP), key=lambda point: (package_of(point), point.name))
    except Exception as error:
        _warn_once(f"the installed packages' entry points cannot be read: {type(error).__name__}: {error}")
        return {}
    found: dict[str, EntryPoint] = {}
    for point in declared:
        if point.name in own_names() or point.name in found:
            holder = PACKAGE if point.name in own_names() else package_of(found[point.name])
            _warn_once(
                f"spectral method {point.name!r} of the package {package_of(point)} is left out: the name belongs to "
                f"{holder}. Rename one of them, or uninstall the package that is not needed"
            )
            continue
        found[point.name] = point
    return found


def package_of(point: EntryPoint) -> str:
    """The distribution's name; where its metadata are damaged, the module's."""
    try:
        name = point.dist.name if point.dist else None
    except Exception:
        name = None
    return name or point.value.partition(".")[0]


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
