"""Registers merge methods with mergekit: every entry point of a group, or this package's own.

Nothing here may break ``import mergekit``: what cannot be registered is left out with one warning that names
its package.

The hook loads this module in the middle of mergekit's import, perhaps while other threads import the methods. So
it lies outside ``mergekit_3h.methods`` and imports the standard library only, never mergekit, which is loaded
already when there is something to register: no circle of import locks can pass through it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from threading import Thread
from typing import Any

from mergekit_3h.spectral import registry

GROUP = "mergekit.merge_methods"  # also the name of the module that keeps the registry
PACKAGE = registry.PACKAGE

log = logging.getLogger(__name__)
_warned: set[str] = set()
_package_by_method: dict[str, str] = {}


def own_methods() -> list[EntryPoint]:
    """What this package registers by itself; its metadata declare the same entry points."""
    safety_merge = EntryPoint("safety_merge", "mergekit_3h.methods.safety_merge:METHOD", GROUP)
    return [*map(_spectral, registry.own_names()), safety_merge]


def register_own_methods() -> None:
    """Register the methods of this package, and the spectral methods that others add to it.

    Those that are registered already stay as they are.

    While mergekit's own import is under way, whoever imports this package registers its methods: the hook, or a
    mergekit that loads the group itself. So there is nothing to do before the end of that import.
    """
    mergekit = sys.modules.get(GROUP)
    if mergekit is None:  # that import has failed in the meantime
        return
    if mergekit.__spec__ is not None and getattr(mergekit.__spec__, "_initializing", False):
        _when_imported(mergekit.__spec__, register_own_methods)
        return
    for entry_point in own_methods():
        _register_entry_point(entry_point, PACKAGE)
    _register_spectral_methods()  # those of other packages


def _register_spectral_methods() -> None:
    """Those of other packages, and those whose entry points the metadata do not have (yet)."""
    for name, package in registry.packages().items():
        _register_entry_point(_spectral(name), package)


def _spectral(name: str) -> EntryPoint:
    return EntryPoint(name, f"mergekit_3h.methods.spectral:{name}", GROUP)


def register_entry_points() -> None:
    """Register what every installed package declares in the group; the order depends on names only."""
    try:
        declared = [(registry.package_of(entry_point), entry_point) for entry_point in entry_points(group=GROUP)]
    except Exception as error:
        _warn(f"mergekit-3h cannot read the installed packages' entry points: {_described(error)}")
        return
    for package, entry_point in sorted(declared, key=lambda pair: (pair[0], pair[1].name)):
        _register_entry_point(entry_point, package)
    if any(package == PACKAGE for package, _ in declared):
        _register_spectral_methods()
    else:
        _warn(
            "mergekit-3h is installed only in part: its metadata (the .dist-info folder) is missing, and "
            "with it its entry points. Repair it with "
            "`pip install --force-reinstall --no-deps mergekit-3h`."
        )


def _register_entry_point(entry_point: EntryPoint, package: str) -> None:
    try:
        method = entry_point.load()
    except (Exception, SystemExit) as error:
        unfinished = _unfinished_import(entry_point.value)
        if unfinished is not None:
            _when_imported(unfinished, lambda: _register_entry_point(entry_point, package))
        elif type(error).__name__ == "_DeadlockError":
            # another thread imports the same modules in another order; only who holds no import lock can wait for it
            Thread(target=_register_entry_point, args=(entry_point, package), daemon=True).start()
        else:
            _warn(f"{_named(entry_point, package)} is left out: loading it failed with {_described(error)}")
        return
    try:
        _register(method, entry_point, package)
    except Exception as error:
        _warn(f"{_named(entry_point, package)} is left out: registering it failed with {_described(error)}")


def _register(method: Any, entry_point: EntryPoint, package: str) -> None:
    mergekit: Any = sys.modules[GROUP]
    if not isinstance(method, mergekit.MergeMethod):
        _warn(
            f"{_named(entry_point, package)} is left out: it is of type {type(method).__name__}, but entry "
            f"points of the group {GROUP!r} name instances of mergekit.merge_methods.MergeMethod"
        )
        return
    name = method.spec.name
    known = next((other for other in mergekit.registered_methods() if other.spec.name == name), None)
    if known is method:
        return
    if known is not None:
        holder = _package_by_method.get(name, "mergekit itself, or code that ran earlier")
        _warn(
            f"{_named(entry_point, package)} is left out: the name {name!r} belongs to a method of {holder}. "
            f"Rename one of them, or uninstall the package that is not needed"
        )
        return
    mergekit.register(method)
    _package_by_method[name] = package


def _unfinished_import(value: str) -> ModuleSpec | None:
    """The first begun of the imports under way that may explain why an entry point does not load yet.

    Such a module imports mergekit, so it is itself unfinished when mergekit's import ends and the entry point
    that needs it is loaded.
    """
    families = {value.partition(":")[0].partition(".")[0].strip(), "mergekit"}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in families and name != GROUP:
            spec = getattr(module, "__spec__", None)
            if getattr(spec, "_initializing", False):
                return spec
    return None


def _when_imported(spec: ModuleSpec, action: Callable[[], None]) -> None:
    """Call ``action`` when the import of the module of ``spec``, now under way, ends.

    The import system tells nobody that an import has ended, but it then sets ``_initializing`` of the spec.
    This listens for that, once; afterwards the spec is an ordinary one again.
    """
    ordinary: type[ModuleSpec] = type(spec)

    class Watched(ordinary):
        @property
        def _initializing(self) -> bool:
            return self.__dict__["_initializing"]

        @_initializing.setter
        def _initializing(self, value: bool) -> None:
            self.__class__ = ordinary  # pyright: ignore[reportAttributeAccessIssue]
            self._initializing = value
            action()

    spec.__class__ = Watched


def _named(entry_point: EntryPoint, package: str) -> str:
    return f"merge method {entry_point.name!r} of the package {package} ({entry_point.value})"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning(message)
