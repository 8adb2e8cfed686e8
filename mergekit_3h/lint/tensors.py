"""The planned tensors against each other: shapes, dtypes, and filters that match none of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mergekit_3h.lint.coverage import coverage_findings
from mergekit_3h.lint.findings import Finding, shortened
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.places import Place, parameter_places
from mergekit_3h.lint.planned import PlannedInput, PlannedTensor, source_tensors
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.name_patterns import PRESETS, is_kept, listed, matches
from mergekit_3h.suggestions import did_you_mean


def tensor_findings(config: Any, plan: list[PlannedTensor], models: list[NamedModel]) -> list[Finding]:
    places = {model.name: model.where for model in models}
    bases = {model.name for model in models if model.is_base}
    realigned = bool(getattr(config, "tokenizer_source", None) or getattr(config, "tokenizer", None))
    return [
        *coverage_findings(config, plan, models),
        *(
            finding
            for tensor in [*plan, *source_tensors(plan, models)]
            for finding in _shapes(tensor, places, bases, realigned)
        ),
        *_mixed_dtypes(plan),
        *filter_findings(config, plan),
    ]


def _shapes(tensor: PlannedTensor, places: dict[str, str], bases: set[str], realigned: bool) -> Iterator[Finding]:
    stored = [given for given in tensor.inputs if given.stored is not None]
    if not stored:
        return
    first = next((given for given in stored if given.model in bases), stored[0])
    for given in stored:
        if _comparable(given, tensor, realigned) != _comparable(first, tensor, realigned):
            message = f"{given.name} has the shape {_shape(given)} in {given.model}, {_shape(first)} in {first.model}"
            vocabulary = tensor.vocabulary_axis is not None
            advice = "set tokenizer_source: union (or base), which aligns the rows by token" if vocabulary else ""
            yield Finding(
                "error",
                "shape",
                message,
                where=places[given.model],
                advice=advice,
                model=given.model,
                tensor=given.name,
            )


def _comparable(given: PlannedInput, tensor: PlannedTensor, realigned: bool) -> tuple[int, ...]:
    shape = _shape(given)
    axis = tensor.vocabulary_axis
    return shape[:axis] + shape[axis + 1 :] if realigned and axis is not None else shape


def _shape(given: PlannedInput) -> tuple[int, ...]:
    assert given.stored is not None
    return given.stored.shape


def _mixed_dtypes(plan: list[PlannedTensor]) -> Iterator[Finding]:
    used: dict[str, set[str]] = defaultdict(set)
    for tensor in plan:
        for given in tensor.inputs:
            if given.stored is not None and given.stored.dtype in ("BF16", "F16", "F32", "F64"):
                used[given.model].add(given.stored.dtype)
    if len({frozenset(dtypes) for dtypes in used.values()}) > 1:
        listing = ", ".join(f"{model}: {'/'.join(sorted(dtypes))}" for model, dtypes in used.items())
        message = f"the models are stored in different dtypes ({listing}); the result takes the widest of them"
        yield Finding("note", "mixed-dtypes", message, advice="set out_dtype: to choose the result's")


def filter_findings(config: Any, plan: list[PlannedTensor]) -> list[Finding]:
    """Filters are substrings of tensor names; one that is in none never applies."""
    names = {given.name for tensor in plan for given in tensor.inputs} | {tensor.name for tensor in plan}
    if not names:
        return []
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    return [*_dead_patterns(config, names, parts)] + [
        Finding(
            "warning",
            "dead-filter",
            f"the filter {text!r} matches none of the {len(plan)} tensors",
            where=where,
            advice=_filter_advice(text, parts),
            model=place.model,
        )
        for place, where, text in _filters(config)
        if not any(text in name for name in names)
    ]


def _dead_patterns(config: Any, names: set[str], parts: list[str]) -> Iterator[Finding]:
    """Patterns of our own options ``exclude`` and ``keep_base``, which follow their rules and not those of filters."""
    if config.merge_method not in registry.names():
        return
    for place in parameter_places(config):
        for option, hits, presets in (("exclude", matches, ()), ("keep_base", is_kept, PRESETS)):
            for pattern in _patterns(place.parameters.get(option)):
                if not any(hits(name, pattern) for name in names):
                    yield _dead_pattern(pattern, f"{place.where}.{option}", option, [*parts, *presets])


def _dead_pattern(pattern: str, where: str, option: str, known: list[str]) -> Finding:
    whole = "a pattern with * or ? must match the whole tensor name"
    if option == "keep_base" and pattern in PRESETS:
        advice = f"it stands for {', '.join(PRESETS[pattern])}; name the tensors themselves"
    else:
        advice = whole if set(pattern) & set("*?") else did_you_mean(pattern, known, "")
    message = f"the pattern {pattern!r} of {option} matches none of the tensors"
    return Finding("warning", "dead-filter", message, where=where, advice=advice)


def _patterns(setting: Any) -> Iterator[str]:
    if isinstance(setting, str):
        yield from listed(setting)
    elif isinstance(setting, list):
        for entry in setting:
            yield from _patterns(entry)
    elif hasattr(setting, "value"):
        yield from _patterns(setting.value)


def _filters(config: Any) -> Iterator[tuple[Place, str, str]]:
    for place in parameter_places(config):
        for option, setting in place.parameters.items():
            entries = setting if isinstance(setting, list) else [setting]
            for index, entry in enumerate(entries):
                text = getattr(entry, "filter", None)
                if text not in (None, "*"):
                    number = f"[{index}]" if isinstance(setting, list) else ""
                    yield place, f"{place.where}.{option}{number}.filter", text


def _filter_advice(text: str, parts: list[str]) -> str:
    if re.search(r"[*?^$|\[\]\\]", text):
        return "a filter is a plain part of the name; patterns have no meaning in it"
    return did_you_mean(text, parts, f"names have parts such as {shortened(parts, 6)}")
