"""Models of one merge against each other by their config.json: architecture, layers, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergekit_3h.checkpoints.locations import layer_count
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.models import NamedModel

# Keys that change what the weights mean although all shapes agree.
_SAME_SHAPES_OTHER_MODEL = (
    "rope_theta",
    "rope_scaling",
    "hidden_act",
    "activation_function",
    "num_attention_heads",
    "n_head",
    "rms_norm_eps",
    "layer_norm_epsilon",
)


def architecture_findings(config: Any, models: list[NamedModel]) -> list[Finding]:
    described = [model for model in models if model.settings.get("architectures")]
    if not described:
        return []
    first, others = described[0], described[1:]
    findings = [finding for model in others for finding in _differences(config, first, model)]
    return findings + list(_layer_ranges(config, {model.name: model for model in described}))


def _differences(config: Any, first: NamedModel, model: NamedModel) -> Iterator[Finding]:
    ours, theirs = first.settings["architectures"], model.settings["architectures"]
    if ours != theirs:
        message = f"{model.name} is a {', '.join(theirs)}, but {first.name} is a {', '.join(ours)}"
        advice = "merge models of one architecture (--allow-crimes only silences mergekit)"
        yield Finding("error", "architecture", message, where=model.where, advice=advice, model=model.name)
        return
    our_layers, their_layers = layer_count(first.settings), layer_count(model.settings)
    if our_layers != their_layers and not getattr(config, "slices", None):
        message = f"{model.name} has {their_layers} layers, {first.name} has {our_layers}"
        advice = "only slices: can combine models of different depth"
        yield Finding("error", "layer-count", message, where=model.where, advice=advice, model=model.name)
    for key in _SAME_SHAPES_OTHER_MODEL:
        if first.settings.get(key) != model.settings.get(key):
            message = (
                f"{key} is {model.settings.get(key)} in {model.name}, {first.settings.get(key)} in {first.name}; "
                f"the result takes the latter"
            )
            yield Finding("warning", "model-settings", message, where=model.where, model=model.name)


def _layer_ranges(config: Any, models: dict[str, NamedModel]) -> Iterator[Finding]:
    owners = [("", config), *((f"modules.{k}.", m) for k, m in (getattr(config, "modules", None) or {}).items())]
    for prefix, owner in owners:
        for index, part in enumerate(getattr(owner, "slices", None) or []):
            for number, source in enumerate(part.sources):
                model = models.get(str(source.model))
                layers = layer_count(model.settings) if model else None
                if layers is not None and source.layer_range[1] > layers:
                    message = f"layer_range {list(source.layer_range)} goes past the {layers} layers of {source.model}"
                    yield Finding(
                        "error",
                        "layer-range",
                        message,
                        where=f"{prefix}slices[{index}].sources[{number}]",
                        model=str(source.model),
                    )
