"""Which merge methods of the host have weights that can be searched, and with what options of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mergekit_3h.errors import OptionError
from mergekit_3h.spectral import registry
from mergekit_3h.suggestions import did_you_mean

_NEUTRAL: dict[str, Any] = {"normalize": False, "lambda": 1.0}


def linear_combinations() -> list[str]:
    """Combinations whose merged weight is linear in the coefficients: W_0 + sum_i lambda_i C_i."""
    return ["task_arithmetic", *(name for name, method in registry.methods().items() if method.is_linear)]


def is_linear(combine: str) -> bool:
    return combine in linear_combinations()


def held_combinations() -> list[str]:
    """Combinations that are linear once a part of them is held as it is at the start."""
    return [name for name, method in registry.methods().items() if method.has_held_components]


def is_held(combine: str, solver: str) -> bool:
    """Whether candidates are sums of components that hold at the start only: the gradient has to have some."""
    return solver == "gradient" and combine in held_combinations()


def require_searchable(combine: Any, specs: Iterable[Any], *, with_weights: bool = True) -> None:
    """Raise unless ``combine`` is one of these methods (by mergekit's specs) and has a base, and a weight per expert
    if the weights are searched."""
    names = sorted(spec.name for spec in specs if _is_searchable(spec, with_weights))
    if combine not in names:
        expected = "a base and a weight per expert" if with_weights else "a base"
        raise OptionError(
            f"option 'combine': got {combine!r}; expected a merge method with {expected}; "
            f"{did_you_mean(combine, names)}"
        )


def _is_searchable(spec: Any, with_weights: bool) -> bool:
    is_weighted = any(p.name == "weight" and p.scope.value == "non_base" for p in spec.parameters)
    return (is_weighted or not with_weights) and spec.contract.base.value in ("required", "optional")


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
