"""Which options of a merge method a search may find besides its weights, and between which values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from mergekit_3h.errors import OptionError
from mergekit_3h.search.axes import Axis, axis_of
from mergekit_3h.suggestions import did_you_mean

if TYPE_CHECKING:  # the command line reads the options, and must not wait for torch
    from mergekit_3h.spectral.method import SpectralMethod

WEIGHT = "weight"
"""What ``over`` calls the coefficients of the experts."""
FACTOR = "lambda"
"""The option that multiplies the merged update, so that no merge is needed for another value of it."""
_TECHNICAL = ("tolerance", "eps", "memory_gb")
"""Numbers that say how exactly or in what room a method computes, not what."""
_OF_THE_GATE = ("gate_threshold", "gate_share")
"""Of models that are not there while a search merges."""


def searched_names(over: str) -> list[str]:
    """The names in the option ``over``."""
    names = [name.strip() for name in over.split(",") if name.strip()]
    if not names:
        raise OptionError(
            f"option 'over': got {over!r}; expected {WEIGHT}, options of the merge method, or both, separated by commas"
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise OptionError(f"option 'over': {twice[0]} is there {names.count(twice[0])} times; name it once")
    return names


def searched_options(over: str) -> list[str]:
    """The options of the method among them."""
    return [name for name in searched_names(over) if name != WEIGHT]


def spectral_axes(names: Sequence[str], method: SpectralMethod, experts: int) -> tuple[Axis, ...]:
    """The axes of options of a spectral method, each from the value that it has."""
    fields = {field.alias or key: field for key, field in type(method).model_fields.items()}
    numbers = [
        name
        for name, field in fields.items()
        if "float" in str(field.annotation) and name not in (*_TECHNICAL, *_OF_THE_GATE)
    ]
    _require_numbers(method.name, names, numbers, list(fields))

    def axis(name: str) -> Axis:
        start = method.in_effect(name, experts)
        if start is None:
            raise OptionError(f"option 'over': {method.name} has no {name} to start from; give it a value")
        (low, high), whole = _bounds(fields[name])
        return axis_of(name, float(start), low, high, whole=whole)

    return tuple(map(axis, names))


def host_axes(names: Sequence[str], spec: Any, given: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The same of a method that only the host declares, by mergekit's ``spec``; ``given`` are a config's values."""
    from mergekit_3h.lint.ranges import share_of

    declared = {parameter.name: parameter for parameter in spec.parameters if parameter.name != WEIGHT}
    numbers = [name for name, one in declared.items() if one.value_type is float and name not in _TECHNICAL]
    _require_numbers(spec.name, names, numbers, list(declared))

    def axis(name: str) -> Axis:
        value = given.get(name, None if declared[name].required else declared[name].default)
        if value is None:
            raise OptionError(f"option 'over': {spec.name} has no default for {name}; give it a value to start from")
        low, high = share_of(spec.name, name) or (None, None)
        return axis_of(name, float(value), low, high, whole=(True, True))

    return tuple(map(axis, names))


def require_plain_starts(names: Sequence[str], shared: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise if a config says more of an option that is searched than one value to start from."""
    for name in names:
        if isinstance(shared.get(name), list | dict):
            raise OptionError(
                f"parameters.{name}: got {shared[name]!r}; the search finds one value for all tensors, so give one "
                "number to start from, or leave it out"
            )
        for label, parameters in own.items():
            if name in parameters:
                raise OptionError(
                    f"{name} of the model {label}: the search finds one value for all models; give one number to start "
                    "from in the `parameters` of the config, or leave it out"
                )


def _require_numbers(method: str, names: Sequence[str], numbers: Sequence[str], known: Sequence[str]) -> None:
    can = f"{method} can be searched over {', '.join([WEIGHT, *numbers])}"
    for name in names:
        if name in numbers:
            continue
        if name in known:
            raise OptionError(f"option 'over': {name} of {method} is no number to be searched; {can}")
        raise OptionError(f"option 'over': {method} has no option {name!r}; {did_you_mean(name, numbers, can)}")


def _bounds(field: FieldInfo) -> tuple[tuple[float | None, float | None], tuple[bool, bool]]:
    """The bounds that a field declares, and whether they are values themselves."""
    said = {
        key: getattr(rule, key) for rule in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)
    }
    low, high = said.get("ge", said.get("gt")), said.get("le", said.get("lt"))
    return (low, high), ("ge" in said, "le" in said)
