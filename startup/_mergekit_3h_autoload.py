"""Runs at every start of Python: arms the import hook that brings entry-point merge methods to mergekit.

It lies beside mergekit_3h, not in it: a start does not execute that package, and does not fail without it.
It imports only what the interpreter has loaded already: importlib.abc alone would cost tens of milliseconds. For
the same reason its type hints end with the built-in types.
"""

import sys
from os import environ

_HOOKED = "mergekit.merge_methods"
_SWITCH = "MERGEKIT_3H_AUTOLOAD"


def arm() -> None:
    """Put the hook before the other finders. A second call changes nothing."""
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds mergekit.merge_methods as the finders behind it do, and lets its execution end with registering.

    Looking for the module changes nothing: each spec handed out has its own loader, and the hook stays armed.
    """

    def find_spec(self, name: str, path=None, target=None):
        if name != _HOOKED or environ.get(_SWITCH) == "0":
            return None
        finders = iter(sys.meta_path)
        any(finder is self for finder in finders)  # on to those behind: two hooks must not ask each other
        for finder in finders:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """The module's own loader, followed by the registration."""

    _own = None  # what __getattr__ finds in a copy that has not run __init__

    def __init__(self, own) -> None:
        self._own = own

    def __getattr__(self, name: str):
        return getattr(self._own, name)

    def create_module(self, spec):
        return self._own.create_module(spec)

    def exec_module(self, module) -> None:
        module.__loader__ = module.__spec__.loader = self._own
        self._own.exec_module(module)
        _register()


def _register() -> None:
    try:
        from mergekit_3h.registration import register_entry_points

        register_entry_points()
    except Exception as error:
        import logging

        logging.getLogger("mergekit_3h").warning(
            "mergekit-3h is installed only in part (%s: %s), so mergekit does not see the merge methods of "
            "installed packages. Repair it with `pip install --force-reinstall --no-deps mergekit-3h`, or "
            "remove the rest of it: %s, and beside it mergekit_3h.pth and mergekit_3h.start.",
            type(error).__name__,
            error,
            __file__,
        )
