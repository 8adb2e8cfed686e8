"""The file of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.records import derived_id
from mergekit_3h.data.sections import Section, parsed
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.sweep.named_methods import PAPER_METHODS, merge_config, preferences
from mergekit_3h.suggestions import did_you_mean


class MethodEntry(Section):
    """One method of a sweep. A name of the paper brings its parameters along, each of which can be set."""

    method: str = Field(description="A name of the paper, or any merge method that mergekit knows.")
    name: str = Field("", description="In the table; unset: the method's.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="As in a mergekit config.")
    model_parameters: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Parameters of one model, by its name in the sweep."
    )
    preference: dict[str, float] | Literal["sweep"] | None = Field(
        None, description="Weight of each model; sweep: as many weightings as there are scales, in their place."
    )


class SweepSettings(Section):
    """What ``mergekit-3h sweep`` does."""

    output: str = Field(description="Folder for everything the sweep makes.")
    base_model: str = Field(description="The model that the experts were trained from.")
    models: dict[str, str] = Field(
        min_length=1, description="The experts by name: a dimension's, where it is its expert."
    )
    suite: str = Field(description="What is reported: a suite's file or the name of a shipped one.")
    validation: str | None = Field(None, description="A suite to choose the scale by; unset: a part of `suite`.")
    validation_share: float = Field(
        0.5, gt=0.0, lt=1.0, description="The part of `suite` that the scale is chosen by; the rest is reported."
    )
    methods: list[MethodEntry] = Field(min_length=1, description="Methods; `paper` stands for all of the 3H paper.")
    scales: list[float] = Field(
        [0.25, 0.5, 0.75, 1.0, 1.25], min_length=1, description="Factors on a merge's update, tried for every method."
    )
    seeds: list[int] = Field([0], min_length=1, description="Of methods that draw random numbers; a row for each.")
    objective: Literal["auto", "likelihood", "score"] = Field(
        "auto",
        description="likelihood: the mean share of the experts' gains in answer likelihood. score: the same of the "
        "dimensions' averages. auto: likelihood where the suite has some.",
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_entries(cls, given: Any) -> Any:
        """A name alone is an entry; ``paper`` is all of them."""
        listed = [given] if isinstance(given, (str, dict)) else given
        if not isinstance(listed, list):
            return listed
        found: list[Any] = []
        for one in cast("list[Any]", listed):
            names = list(PAPER_METHODS) if one == "paper" else [one]
            found += [{"method": name} if isinstance(name, str) else name for name in names]
        return found

    @field_validator("scales")
    @classmethod
    def _finite(cls, scales: list[float]) -> list[float]:
        if not all(abs(scale) < 1e6 for scale in scales):
            raise PydanticCustomError("scales", "expected finite numbers")
        return scales

    @model_validator(mode="after")
    def _models_that_are_there(self) -> SweepSettings:
        for entry in self.methods:
            named = [*entry.model_parameters, *(entry.preference if isinstance(entry.preference, dict) else ())]
            for name in named:
                if name not in self.models:
                    hint = did_you_mean(name, self.models)
                    message = "method {method}: no model {name}; {hint}"
                    raise PydanticCustomError(
                        "model", message, {"method": entry.method, "name": repr(name), "hint": hint}
                    )
        return self


@dataclass(frozen=True)
class SweptMethod:
    """One row of the table: a method, its seed, and the configs that are tried."""

    label: str
    seed: int
    trials: Sequence[SweepTrial]

    @property
    def id(self) -> str:
        return derived_id(self.label, self.seed, [trial.key for trial in self.trials])[:16]


@dataclass(frozen=True)
class SweepTrial:
    """A config of mergekit, and the factor on its update."""

    config: Mapping[str, Any]
    scale: float
    preference: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return derived_id(dict(self.config), self.scale)[:16]

    def __str__(self) -> str:
        if not self.preference:
            return f"scale {self.scale:g}"
        return ", ".join(f"{name} {weight:.2g}" for name, weight in self.preference.items())


def read_sweep(path: Path) -> SweepSettings:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise OptionError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML") from None
    if not isinstance(content, dict):
        raise OptionError(f"{path}: got {type(content).__name__}, expected a mapping with base_model, models, suite")
    return parsed(SweepSettings, content, str(path))


def swept_methods(settings: SweepSettings) -> list[SweptMethod]:
    """The rows. Every one has as many trials as any other."""
    found: list[SweptMethod] = []
    for entry in settings.methods:
        known = PAPER_METHODS.get(entry.method, {})
        label = entry.name or entry.method
        for seed in settings.seeds:
            shown = label if len(settings.seeds) == 1 else f"{label} (seed {seed})"
            if any(other.label == shown for other in found):
                raise OptionError(f"two methods are called {shown!r}; give one of them another name")
            found.append(SweptMethod(shown, seed, _trials(settings, entry, known)))
    return found


def _trials(settings: SweepSettings, entry: MethodEntry, known: Mapping[str, Any]) -> list[SweepTrial]:
    method = known.get("method", entry.method)
    parameters = {**known.get("parameters", {}), **entry.parameters}
    preference = entry.preference if entry.preference is not None else known.get("preference")

    def config(weights: Mapping[str, float] | None) -> dict[str, Any]:
        return merge_config(method, settings.base_model, settings.models, parameters, entry.model_parameters, weights)

    if preference == "sweep":
        weightings = preferences(list(settings.models), len(settings.scales))
        return [SweepTrial(config(weights), 1.0, weights) for weights in weightings]
    fixed = {**dict.fromkeys(settings.models, 0.0), **preference} if isinstance(preference, dict) else None
    return [SweepTrial(config(fixed), scale) for scale in settings.scales]
