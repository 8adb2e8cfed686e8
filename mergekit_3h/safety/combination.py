"""The method whose weights are searched, with its own parameters, and what they may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergekit_3h.errors import OptionError
from mergekit_3h.losses.records import LocatedRecord, by_set, located_records
from mergekit_3h.options import checked
from mergekit_3h.safety.options import SafetyMergeOptions
from mergekit_3h.search.axes import Axis
from mergekit_3h.search.combinations import require_plain
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.tuning import (
    WEIGHT,
    host_axes,
    require_plain_starts,
    searched_options,
    spectral_axes,
)
from mergekit_3h.spectral import gate, registry
from mergekit_3h.spectral.method import RunningOptions, SpectralMethod


@dataclass(frozen=True)
class Combination:
    """``shared`` and ``own`` are parameters of the method ``given.search.combine`` itself, for all experts and by
    expert, as a config has them: with filters and layer gradients."""

    given: SafetyMergeOptions
    shared: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]

    @property
    def method(self) -> str:
        return self.given.search.combine

    @property
    def finds_weights(self) -> bool:
        return self.given.search.finds_weights

    def plain_weights(self, experts: Collection[str]) -> list[float]:
        """The experts' weights, one number each, where blocks of their components are searched."""
        found = [self.own.get(label, {}).get(WEIGHT, self.shared.get(WEIGHT, 1.0)) for label in experts]
        for weight in found:
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise OptionError(
                    f"option 'component_blocks': an expert has the weight {weight!r}; while blocks are searched, each "
                    "has one number for all tensors"
                )
        return found

    def axes(self, spec: Any, experts: int) -> tuple[Axis, ...]:
        """The options of the method that are searched; ``spec`` is mergekit's declaration of it."""
        names = searched_options(self.given.search.over)
        if not names:
            return ()
        method = self.spectral()
        return host_axes(names, spec, self.shared) if method is None else spectral_axes(names, method, experts)

    def require_startable(self, spec: Any, experts: Collection[str]) -> None:
        """Raise unless the parameters say what an option that is searched starts from, and what is merged with it."""
        names = searched_options(self.given.search.over)
        require_plain_starts(names, self.shared, self.own)
        if self.given.search.component_blocks and "block_weights" in self.shared:
            raise OptionError("parameters.block_weights: these are what component_blocks searches; remove them")
        if self.finds_weights:
            return
        needs = any(parameter.name == WEIGHT and parameter.required for parameter in spec.parameters)
        has_all = WEIGHT in self.shared or all(WEIGHT in self.own.get(label, {}) for label in experts)
        if needs and not has_all:
            raise OptionError(
                f"{self.method} needs a weight for every expert: give each one in the config, or search the weights "
                f"too, by over '{WEIGHT},{self.given.search.over}'"
            )

    def with_options(self, values: Mapping[str, Any]) -> Combination:
        """The same with these values for options of the method."""
        return replace(self, shared={**self.shared, **values})

    def spectral(self) -> SpectralMethod | None:
        """The spectral method with its options, if one combines the models."""
        if self.method not in registry.names():
            return None
        options = {name: value for name, value in self.shared.items() if name != WEIGHT}
        require_no_gate("parameters", options)
        for name, value in options.items():
            if isinstance(value, list | dict):
                raise OptionError(
                    f"option {name!r}: got {value!r}; while safety_merge searches, {self.method} takes one value for "
                    "all tensors"
                )
        return registry.parse_options(self.method, _deciding(options))

    @property
    def memory_gb(self) -> float | None:
        """What the merge at the end may take."""
        return checked(RunningOptions, "memory_gb", self.shared.get("memory_gb"))

    def records(self) -> list[LocatedRecord]:
        """The records of the data files. What can be wrong with them, or with the report's place, shows here."""
        records = located_records(self.given.run.files())
        by_set(records, self.given.search.needed_sets())
        self.given.run.folder()
        return records

    def parameters(self) -> dict[str, Any]:
        """Both kinds of parameters, for reports and traces, as far as they decide what is found."""
        own = {label: dict(parameters) for label, parameters in self.own.items() if parameters}
        return {"parameters": _deciding(self.shared), "model_parameters": own}

    def static(self, base: Any, experts: Mapping[str, Any], weights: Mapping[str, Any], kept: Mapping[str, Any]) -> Any:
        """The ordinary mergekit config that merges with fixed weights: these, or those of the config where they are
        not searched. Models are named as mergekit finds them, the experts by their labels; ``kept`` are keys of the
        config that are no business of the method."""
        models: list[dict[str, Any]] = []
        for label, model in experts.items():
            parameters = {**self.own.get(label, {}), **({WEIGHT: weights[label]} if self.finds_weights else {})}
            models.append({"model": model, **({"parameters": parameters} if parameters else {})})
        config = {"merge_method": self.method, "base_model": base, "models": models}
        return {**config, **({"parameters": dict(self.shared)} if self.shared else {}), **kept}


def _deciding(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that change how a merge runs and no bit of its result: a trace may go on with others."""
    return {name: value for name, value in parameters.items() if name not in RunningOptions.model_fields}


def require_no_gate(where: str, parameters: Mapping[str, Any]) -> None:
    """Raise if these are options of the layer gate, which needs models that take no part in a search."""
    for name in ("role", *gate.OPTIONS):
        if parameters.get(name, "expert") != "expert":
            raise OptionError(
                f"{where}.{name}: a search merges all models, without the layer gate; remove it here, and set it in "
                "the config that merges with the weights that the search finds"
            )


def require_free_weights(options: SearchOptions, where: str, parameters: Mapping[str, Any]) -> None:
    """Raise if the parameters at this place fix what the search is to find."""
    if options.combine in registry.names():
        require_no_gate(where, parameters)
    if WEIGHT in parameters and options.finds_weights:
        raise OptionError(f"{where}.weight: the weights are what safety_merge searches; remove it")
    if not searched_options(options.over):
        require_plain(options.combine, where, parameters)
