"""Options of a config against what its merge method declares: names, places, values, required ones.

Nothing here touches the disk, so merge methods call it themselves when a merge is planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.lint.expert_counts import wrong_counts
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.places import InputGroup, Place, parameter_groups, parameter_places
from mergekit_3h.lint.ranges import meaningless
from mergekit_3h.lint.roles import role_findings
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import without_expert_options
from mergekit_3h.suggestions import did_you_mean

if TYPE_CHECKING:
    from mergekit_3h.lint.host_plan import Config, MergeMethodSpec, ParameterSpec
    from mergekit_3h.spectral.method import SpectralMethod


def parameter_findings(config: Config, spec: MergeMethodSpec) -> list[Finding]:
    """Everything that can be said about a config's options without reading a model."""
    found = [
        *unknown_parameters(config, spec),
        *misplaced_parameters(config, spec),
        *value_problems(config, spec),
        *missing_parameters(config, spec),
        *role_findings(config),
    ]
    return found if any(finding.severity == "error" for finding in found) else [*found, *contradictions(config)]


def unknown_parameters(config: Config, spec: MergeMethodSpec) -> list[Finding]:
    """Options the method does not have. mergekit drops them without a word."""
    known = [parameter.name for parameter in spec.parameters]
    return [
        Finding(
            "error",
            "unknown-option",
            f"{spec.name} has no option {name!r}, mergekit would ignore it",
            where=f"{place.where}.{name}",
            advice=did_you_mean(name, known, "") or _who_has_it(name, spec.name, known),
            model=place.model,
        )
        for place in parameter_places(config)
        for name in place.parameters
        if name not in known
    ]


def _who_has_it(name: str, method: str, known: list[str]) -> str:
    from mergekit_3h.lint.host_plan import methods_by_name

    methods = methods_by_name().items()
    owners = [other for other, method in methods if name in {parameter.name for parameter in method.spec.parameters}]
    own = f"{method} has: {', '.join(known)}" if known else f"{method} has no options at all"
    return f"{own} ({name!r} belongs to {', '.join(owners)})" if owners else own


def misplaced_parameters(config: Config, spec: MergeMethodSpec) -> list[Finding]:
    """Options where mergekit never looks for them."""
    return [
        Finding(
            "warning",
            "no-effect",
            message,
            where=f"{place.where}.{name}",
            advice=advice,
            model=place.model,
        )
        for place, name, parameter in _known_settings(config, spec)
        for message, advice in _reasons_without_effect(place, name, parameter)
    ]


def _reasons_without_effect(place: Place, name: str, parameter: ParameterSpec) -> Iterator[tuple[str, str]]:
    scope = parameter.scope.value
    if place.kind == "input" and scope == "shared":
        yield (
            f"{name!r} is one value for all models, under the model {place.model} it has no effect",
            "move it to the parameters of the whole config, of the module or of the slice",
        )
    elif place.is_base and scope == "non_base":
        yield (f"{name!r} does not apply to the base model {place.model}", "remove it here")


@dataclass(frozen=True)
class _Option:
    """An option of one method, and what it says to a value."""

    method: str
    declared: ParameterSpec

    @property
    def name(self) -> str:
        return self.declared.name

    def rejection(self, value: Any) -> str:
        """Why the option cannot have this value; empty if it can."""
        try:
            return meaningless(self.method, self.name, self.declared.validate(value))
        except ThreeHError as error:
            return str(error)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            return f"{self.name}: got {value!r}, {reason[0].lower()}{reason[1:]}"
        except (ValueError, TypeError) as error:
            return f"{self.name}: got {value!r}, {error}"


def value_problems(config: Config, spec: MergeMethodSpec) -> list[Finding]:
    """Every literal, value under a filter and end of a gradient that its option cannot have."""
    return [
        finding
        for place, name, parameter in _known_settings(config, spec)
        for finding in _setting_problems(
            place.parameters[name], _Option(spec.name, parameter), f"{place.where}.{name}", place.model
        )
    ]


def _setting_problems(setting: Any, option: _Option, where: str, model: str | None) -> Iterator[Finding]:
    if _is_conditional(setting):
        yield from _setting_problems(setting.value, option, f"{where}.value", model)
    elif not isinstance(setting, list):
        reason = option.rejection(setting)
        if reason:
            yield Finding("error", "bad-value", reason, where=where, model=model)
    elif not setting:
        message = f"an empty list sets nothing, {option.name!r} keeps its outer value or default"
        yield Finding("warning", "empty-list", message, where=where, model=model)
    elif all(_is_conditional(entry) for entry in setting):
        yield from _conditional_problems(setting, option, where, model)
    else:
        yield from _gradient_problems(setting, option, where, model)


def _conditional_problems(entries: list[Any], option: _Option, where: str, model: str | None) -> Iterator[Finding]:
    for index, entry in enumerate(entries):
        yield from _setting_problems(entry, option, f"{where}[{index}]", model)
    catch_all = next((i for i, entry in enumerate(entries) if entry.filter in (None, "*")), None)
    if catch_all is not None and catch_all + 1 < len(entries):
        yield Finding(
            "warning",
            "unreachable-filter",
            f"{where}[{catch_all}] applies to every tensor, so the entries after it are never used",
            where=f"{where}[{catch_all + 1}]",
            advice="put the entry without a filter last",
            model=model,
        )


def _gradient_problems(ends: list[Any], option: _Option, where: str, model: str | None) -> Iterator[Finding]:
    problems = [
        finding
        for index, end in enumerate(ends)
        for finding in _setting_problems(end, option, f"{where}[{index}]", model)
    ]
    yield from problems
    if problems:
        return
    values = [option.declared.validate(end) for end in ends]
    if all(isinstance(value, str) for value in values):
        yield Finding(
            "warning",
            "list-of-strings",
            f"mergekit reads a list as a gradient over the layers: each layer gets one of {ends}",
            where=where,
            advice="write several values as one string if all layers should have them all",
            model=model,
        )
    elif all(type(value) is int for value in values) and len(set(values)) > 1 and option.rejection(0.5):
        yield Finding(
            "warning",
            "fractional-gradient",
            f"{option.name!r} takes whole numbers, between the ends {ends} a layer gets a fraction",
            where=where,
            advice="mergekit stops at the first such layer; set it per slice instead",
            model=model,
        )


def missing_parameters(config: Config, spec: MergeMethodSpec) -> list[Finding]:
    """Required options that no block which applies sets."""
    return [
        finding
        for parameter in spec.parameters
        if parameter.required
        for group in parameter_groups(config)
        for finding in _missing_in(group, parameter, spec.name)
    ]


def _missing_in(group: InputGroup, parameter: ParameterSpec, method: str) -> Iterator[Finding]:
    name = parameter.name
    if any(_sets_something(place, name) for place in group.enclosing):
        return
    if parameter.scope.value == "shared":
        yield _missing(f"{method} requires the option {name!r}", group.where, name)
        return
    for place in group.inputs:
        applies = parameter.scope.value == "input" or not place.is_base
        if applies and not _sets_something(place, name):
            message = f"{method} requires the option {name!r} for the model {place.model}"
            yield _missing(message, place.where, name, place.model)
    implicit_base = group.base is not None and not any(place.is_base for place in group.inputs)
    if parameter.scope.value == "input" and implicit_base:
        message = f"{method} requires the option {name!r} for the base model {group.base} too"
        yield _missing(message, group.where, name, group.base)


def _missing(message: str, where: str, name: str, model: str | None = None) -> Finding:
    advice = f"set {name!r} {'there, or ' if model else ''}in the parameters of the whole config"
    return Finding("error", "missing-option", message, where=where, advice=advice, model=model)


def _sets_something(place: Place, name: str) -> bool:
    return name in place.parameters and place.parameters[name] != []


def contradictions(config: Config) -> Iterator[Finding]:
    """Options of a method of ours that are sound one by one and not together, where they are one for all tensors; and
    those that are for another number of experts."""
    try:
        plain_options(config)
    except OptionError as error:
        yield Finding("error", "bad-value", str(error), where="parameters")
        return
    yield from wrong_counts(config)


def plain_options(config: Any) -> SpectralMethod | None:
    """Options of one of our own methods, as far as they are the same for all tensors."""
    if config.merge_method not in registry.names():
        return None
    names = registry.option_names(config.merge_method)
    given = (config.parameters or {}).items()
    plain = {name: value for name, value in given if name in names and not isinstance(value, list | dict)}
    return registry.parse_options(config.merge_method, without_expert_options(plain))


def _known_settings(config: Config, spec: MergeMethodSpec) -> Iterator[tuple[Place, str, ParameterSpec]]:
    declared = {parameter.name: parameter for parameter in spec.parameters}
    for place in parameter_places(config):
        for name in place.parameters:
            if name in declared:
                yield place, name, declared[name]


def _is_conditional(setting: Any) -> bool:
    return hasattr(setting, "filter") and hasattr(setting, "value")
