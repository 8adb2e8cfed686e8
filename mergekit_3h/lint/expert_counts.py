"""Options of our methods that hold a value for every expert: are there as many as experts?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.places import parameter_groups
from mergekit_3h.lint.roles import ROLE
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import without_expert_options


def wrong_counts(config: Any) -> Iterator[Finding]:
    """Values for another number of experts than are merged, also where filters choose them."""
    method = _spectral_method(config)
    if method is None:
        return
    own = registry.option_names(method)
    seen: set[str] = set()
    for group in parameter_groups(config):
        experts = sum(not place.is_base and place.parameters.get(ROLE, "expert") == "expert" for place in group.inputs)
        for place in group.enclosing:
            for name in [name for name in place.parameters if name in own and name not in (ROLE, "weight")]:
                for where, value in _literals(place.parameters[name], f"{place.where}.{name}"):
                    reason = _count_problem(method, name, value, _plain(place.parameters, own), experts)
                    if reason and where not in seen:
                        seen.add(where)
                        yield Finding("error", "bad-value", reason, where=where)


def _count_problem(method: str, name: str, value: Any, beside: Mapping[str, Any], experts: int) -> str:
    """Why a value, which is sound by itself or with what is set beside it, is not for so many experts; empty if it is
    for them."""
    for options in ({name: value}, {**beside, name: value}):
        try:
            parsed = registry.parse_options(method, options)
        except ThreeHError:
            continue
        try:
            parsed.require_experts(experts)
        except OptionError as error:
            return str(error)
        return ""
    return ""  # sound with others that are set elsewhere


def _plain(parameters: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Options of the method, as far as they are the same for all tensors."""
    given = without_expert_options(parameters)
    return {name: value for name, value in given.items() if name in names and not isinstance(value, list | dict)}


def _spectral_method(config: Any) -> str | None:
    """The method of ours that merges, for safety_merge the one that it merges with."""
    names = (config.merge_method, (config.parameters or {}).get("combine"))
    return next((name for name in names if name in registry.names()), None)


def _literals(setting: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every value in a setting, and its place."""
    if hasattr(setting, "filter") and hasattr(setting, "value"):
        yield from _literals(setting.value, f"{where}.value")
    elif isinstance(setting, list):
        for index, entry in enumerate(setting):
            yield from _literals(entry, f"{where}[{index}]")
    else:
        yield where, setting
