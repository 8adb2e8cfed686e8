"""The config as a whole, without reading a model: method, base, inputs, dtypes, tokenizer and template."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.host_plan import BasePolicy, MergeMethod, builtin_templates, methods_by_name
from mergekit_3h.lint.places import InputGroup, parameter_groups
from mergekit_3h.registration import own_methods
from mergekit_3h.suggestions import did_you_mean

_OURS = {entry_point.name for entry_point in own_methods()}
DTYPES = ("bfloat16", "float16", "float32", "float64")
_OTHER_DTYPE_NAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}


def find_method(name: str) -> tuple[MergeMethod | None, list[Finding]]:
    """The merge method of that name, or why there is none."""
    methods = methods_by_name()
    if name in _OURS and os.environ.get("MERGEKIT_3H_AUTOLOAD") == "0":
        message = f"MERGEKIT_3H_AUTOLOAD=0 is set, so mergekit does not load {name}"
        advice = "unset it for the merge, or import mergekit_3h.methods in the process that merges"
        finding = Finding("warning", "autoload-off", message, where="merge_method", advice=advice)
        return methods.get(name), [finding]
    if name in methods:
        return methods[name], []
    known = sorted(methods)
    if name in _OURS:
        advice = "it could not be loaded: see the warning above, and `mergekit-3h doctor`"
    else:
        listing = f"registered are: {', '.join(known)}"
        advice = " ".join(filter(None, [did_you_mean(name, {*known, *_OURS}, ""), listing]))
        if not _OURS & set(known):
            advice += f" ({', '.join(sorted(_OURS))} are not: MERGEKIT_3H_AUTOLOAD, `mergekit-3h doctor`)"
    return None, [Finding("error", "unknown-method", f"no merge method {name!r}", where="merge_method", advice=advice)]


def structure_findings(config: Any, method: MergeMethod) -> list[Finding]:
    return [
        *_dtype_findings(config),
        *(finding for group in parameter_groups(config) for finding in _group_findings(group, method)),
        *_slice_findings(config),
        *_tokenizer_setting_findings(config),
    ]


def _dtype_findings(config: Any) -> Iterator[Finding]:
    for where in ("dtype", "out_dtype"):
        name = getattr(config, where)
        if name is None or name.removeprefix("torch.") in DTYPES:
            continue
        meant = _OTHER_DTYPE_NAMES.get(name.lower())
        advice = f"did you mean {meant!r}?" if meant else did_you_mean(name, DTYPES, "")
        message = f"got {name!r}, expected one of {', '.join(DTYPES)}"
        yield Finding("error", "dtype", message, where=where, advice=advice)


def _group_findings(group: InputGroup, method: MergeMethod) -> Iterator[Finding]:
    models = [str(place.model) for place in group.inputs]
    twice = [model for model, times in Counter(models).items() if times > 1]
    for model in twice:
        message = f"the model {model} is listed {models.count(model)} times"
        advice = "give it one entry with the sum of its weights"
        yield Finding("error", "duplicate-model", message, where=group.where, advice=advice, model=model)
    policy = method.spec.contract.base
    if policy == BasePolicy.REQUIRED and group.base is None:
        message = f"{method.spec.name} requires a base model"
        advice = "add base_model: with the model that all experts were trained from"
        yield Finding("error", "no-base", message, where="base_model", advice=advice)
    elif policy == BasePolicy.FORBIDDEN and group.base is not None:
        yield Finding("error", "base-forbidden", f"{method.spec.name} takes no base model", where="base_model")
    elif not twice:
        yield from _contract_findings(group, method, models)


def _contract_findings(group: InputGroup, method: MergeMethod, models: list[str]) -> Iterator[Finding]:
    base = group.base
    if base is not None and base not in models:
        if group.where.endswith("]"):
            message = f"the base model {base} is not among the sources of the slice"
            advice = "add it to the sources with its layer_range"
            yield Finding("error", "base-not-in-slice", message, where=group.where, advice=advice, model=base)
            return
        models = [*models, base]  # mergekit adds the base to a list of models by itself
    elif base is not None and group.where.endswith("models") and len(models) > 1:
        yield from _listed_base(group, method)
    elif base is not None and len(models) == 1 and method.spec.contract.base == BasePolicy.REQUIRED:
        message = "the base is the only model, the result would be the base itself"
        yield Finding("error", "no-experts", message, where=group.where, model=base)
    try:
        method.spec.contract.validate_ids(models, base)
    except ValueError as error:
        yield Finding("error", "inputs", str(error), where=group.where)


def _listed_base(group: InputGroup, method: MergeMethod) -> Iterator[Finding]:
    contract = method.spec.contract
    # slerp and its like take two models, and the base is one of them.
    if contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL) and contract.max_inputs != 2:
        place = next(place for place in group.inputs if place.is_base)
        message = f"{place.model} is the base model: listed here too, it still is no expert of {method.spec.name}"
        yield Finding("note", "base-as-expert", message, place.where.removesuffix(".parameters"), model=place.model)


def _slice_findings(config: Any) -> Iterator[Finding]:
    owners = [
        ("", config),
        *((f"modules.{k}.", m) for k, m in (getattr(config, "modules", None) or {}).items()),
    ]
    for prefix, owner in owners:
        for index, part in enumerate(getattr(owner, "slices", None) or []):
            where = f"{prefix}slices[{index}]"
            lengths = [source.layer_range[1] - source.layer_range[0] for source in part.sources]
            for number, length in enumerate(lengths):
                if length <= 0:
                    message = f"layer_range {list(part.sources[number].layer_range)} is empty"
                    advice = "it is [first layer, layer after the last]"
                    yield Finding("error", "layer-range", message, where=f"{where}.sources[{number}]", advice=advice)
            if len(set(lengths)) > 1:
                message = f"the sources of a slice must have equally many layers, these have {lengths}"
                yield Finding("error", "layer-range", message, where=where)


def _tokenizer_setting_findings(config: Any) -> Iterator[Finding]:
    source = getattr(config, "tokenizer_source", None)
    tokenizer = getattr(config, "tokenizer", None)
    source, where = (tokenizer.source, "tokenizer.source") if tokenizer else (source, "tokenizer_source")
    if source == "base" and config.base_model is None:
        message = "the tokenizer of the base is asked for, but there is no base_model"
        yield Finding("error", "tokenizer-base", message, where=where)
    template = getattr(config, "chat_template", None)
    if template and template != "auto" and not _is_template(template):
        advice = did_you_mean(template, builtin_templates(), f"known: auto, {', '.join(builtin_templates())}")
        message = f"{template!r} is neither a template of mergekit nor Jinja text, it would fail after the merge"
        yield Finding("error", "chat-template", message, where="chat_template", advice=advice)


def _is_template(template: str) -> bool:
    return template in builtin_templates() or (len(template) >= 20 and "{" in template)
