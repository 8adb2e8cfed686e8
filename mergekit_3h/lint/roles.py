"""Models of a config that the layer gate compares the others with: the option ``role``, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from mergekit_3h.errors import OptionError
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.places import InputGroup, Place, parameter_groups, parameter_places
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.gate import OPTIONS, Roles, roles_of
from mergekit_3h.spectral.method import Role

ROLE = "role"


def role_findings(config: Any) -> Iterator[Finding]:
    """Roles that do not go together, in a merge of ours."""
    if config.merge_method not in registry.names():
        return
    places = parameter_places(config)
    given = [place for place in places if ROLE in place.parameters]
    bad = [finding for place in given for finding in _misplaced(place)]
    yield from bad
    if bad or any(place.parameters[ROLE] not in get_args(Role) for place in given):
        return  # what is no role at all is found as a bad value
    groups = parameter_groups(config)
    found: list[Roles] = []
    for group in groups:
        try:
            found.append(roles_of(_given(group)))
        except OptionError as error:
            yield Finding("error", "bad-value", str(error), where=group.where)
    if len(found) == len(groups):
        yield from _of_no_gate(places, found)


def _misplaced(place: Place) -> Iterator[Finding]:
    setting, where = place.parameters[ROLE], f"{place.where}.{ROLE}"
    if place.kind != "input":
        message = "'role' says what one model is for, here it would be that of all models"
        yield Finding("error", "bad-value", message, where=where, advice="move it to the parameters of a model")
    elif not isinstance(setting, str):
        message = f"'role' is the same for all tensors of a model, got {setting!r}"
        advice = f"expected one of {', '.join(get_args(Role))}"
        yield Finding("error", "bad-value", message, where=where, advice=advice, model=place.model)


def _of_no_gate(places: list[Place], found: list[Roles]) -> Iterator[Finding]:
    """Settings that nothing looks at."""
    compared = {label for roles in found for label in roles.others}
    for place in places:
        for option in OPTIONS:
            if not compared and option in place.parameters:
                yield Finding(
                    "error" if option == "gate_threshold" else "warning",
                    "no-effect",
                    f"{option!r} is of the layer gate, and no model has role: unaligned",
                    where=f"{place.where}.{option}",
                    advice="give that role to the model that the base was aligned from, or remove the option",
                )
        if place.model in compared and "weight" in place.parameters:
            message = f"{place.model} is compared with and not merged, so its weight has no effect"
            where = f"{place.where}.weight"
            yield Finding("warning", "no-effect", message, where=where, advice="remove it", model=place.model)


def roles_by_model(config: Any) -> dict[str, Role]:
    """What the models of a merge of ours are there for, where the config says it."""
    if config.merge_method not in registry.names():
        return {}
    given = {
        place.model: place.parameters[ROLE]
        for place in parameter_places(config)
        if place.model is not None and ROLE in place.parameters and not place.is_base
    }
    return {model: role for model, role in given.items() if role in get_args(Role)}


def compared_models(config: Any) -> set[str]:
    """The models of a config that are not merged."""
    return {model for model, role in roles_by_model(config).items() if role != "expert"}


def _given(group: InputGroup) -> dict[str, str]:
    return {str(place.model): place.parameters.get(ROLE, "expert") for place in group.inputs if not place.is_base}
