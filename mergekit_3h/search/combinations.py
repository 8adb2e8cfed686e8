"""Which merge methods of the host have weights that can be searched, and with what options of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from mergekit_3h.errors import OptionError

_NEUTRAL: dict[str, Any] = {"normalize": False, "lambda": 1.0}


def require_searchable(combine: Any, specs: Iterable[Any]) -> None:
    """Raise unless ``combine`` is one of these methods (by mergekit's specs) and has a base and a weight per expert."""
    names = sorted(spec.name for spec in specs if _is_searchable(spec))
    if combine not in names:
        close = get_close_matches(str(combine), names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise OptionError(
            f"option 'combine': got {combine!r}; expected a merge method with a base and a weight per expert; {hint}"
        )


def _is_searchable(spec: Any) -> bool:
    is_weighted = any(p.name == "weight" and p.scope.value == "non_base" for p in spec.parameters)
    return is_weighted and spec.contract.base.value in ("required", "optional")


def require_plain(combine: str, where: str, parameters: Mapping[str, Any]) -> None:
    """Raise if task_arithmetic has options that change its scale: the search would not know of them."""
    if combine != "task_arithmetic":
        return
    for name, value in _NEUTRAL.items():
        if parameters.get(name, value) != value:
            raise OptionError(
                f"{where}.{name}: got {parameters[name]!r}; the search sets the scale of task_arithmetic by its "
                "weights, so leave this option out"
            )
