"""The method whose weights are searched, with its own parameters, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_3h.errors import OptionError
from mergekit_3h.losses.records import LocatedRecord, by_set, located_records
from mergekit_3h.safety.options import SafetyMergeOptions
from mergekit_3h.search.combinations import require_plain
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import SpectralMethod


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

    def spectral(self) -> SpectralMethod | None:
        """The spectral method with its options, if one combines the models."""
        if self.method not in registry.names():
            return None
        for name, value in self.shared.items():
            if isinstance(value, list | dict):
                raise OptionError(
                    f"option {name!r}: got {value!r}; while safety_merge searches, {self.method} takes one value for "
                    "all tensors"
                )
        return registry.parse_options(self.method, self.shared)

    def records(self) -> list[LocatedRecord]:
        """The records of the data files. What can be wrong with them, or with the report's place, shows here."""
        records = located_records(self.given.run.files())
        by_set(records, self.given.search.needed_sets())
        self.given.run.folder()
        return records

    def parameters(self) -> dict[str, Any]:
        """Both kinds of parameters, for reports and traces."""
        own = {label: dict(parameters) for label, parameters in self.own.items() if parameters}
        return {"parameters": dict(self.shared), "model_parameters": own}

    def static(self, base: Any, experts: Mapping[str, Any], weights: Mapping[str, Any], kept: Mapping[str, Any]) -> Any:
        """The ordinary mergekit config that merges with fixed weights. Models are named as mergekit finds them, the
        experts by their labels; ``kept`` are keys of the config that are no business of the method."""
        models = [
            {"model": model, "parameters": {**self.own.get(label, {}), "weight": weights[label]}}
            for label, model in experts.items()
        ]
        config = {"merge_method": self.method, "base_model": base, "models": models}
        return {**config, **({"parameters": dict(self.shared)} if self.shared else {}), **kept}


def require_free_weights(combine: str, where: str, parameters: Mapping[str, Any]) -> None:
    """Raise if the parameters at this place fix what the search is to find."""
    if "weight" in parameters:
        raise OptionError(f"{where}.weight: the weights are what safety_merge searches; remove it")
    require_plain(combine, where, parameters)
