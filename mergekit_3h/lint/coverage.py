"""What is on disk against what mergekit's plan reads: tensors that would be lost, and tensors that are not there.

mergekit has a list of tensors for each architecture that it knows and infers one for the others. Where such a list is
too short it says nothing: it writes a checkpoint without some tensors, which transformers fills with random numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekit_3h.checkpoints.headers import StoredTensor
from mergekit_3h.checkpoints.loading import LoadedNames, ParameterRecipe, empty_module, layer_number, tied_names
from mergekit_3h.checkpoints.sources import RECOMPUTED
from mergekit_3h.lint.findings import Finding, Rule, shortened
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.planned import PlannedInput, PlannedTensor
from mergekit_3h.spectral import registry


def coverage_findings(config: Any, plan: list[PlannedTensor], models: list[NamedModel]) -> list[Finding]:
    """Stored tensors of which no output tensor comes, and planned ones that are not stored."""
    inputs: dict[str, list[PlannedInput]] = defaultdict(list)
    for tensor in plan:
        for given in tensor.inputs:
            inputs[given.model].append(given)
    seen = [_Coverage(model, inputs[model.name]) for model in models if model.checkpoint and inputs[model.name]]
    findings = [
        *_alike("listed-tensor", {each: each.not_in_module for each in seen}, config),
        *_absent({each: each.absent for each in seen}, len(plan)),
    ]
    if findings or not hasattr(config, "slices"):  # mergekit-pytorch merges every name that the files have
        return findings
    read_by_any = {name for each in seen for name in each.read}
    lost = {each: _as_meant(config, each.model, each.lost, read_by_any) for each in seen}
    left = {each: _as_meant(config, each.model, each.not_loaded, read_by_any) for each in seen}
    return [*_alike("lost-tensor", lost, config), *_alike("left-out", left, config)]


@dataclass(eq=False)
class _Coverage:
    """One model's files against its part of the plan."""

    model: NamedModel
    inputs: list[PlannedInput]

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        assert self.model.checkpoint is not None
        return self.model.checkpoint.tensors

    @cached_property
    def read(self) -> set[str]:
        return {given.stored.name for given in self.inputs if given.stored}

    @property
    def lost(self) -> list[str]:
        """Stored tensors with a parameter of the module that nothing written becomes."""
        unread = self.stored.keys() - self.read
        if not unread or self.names is None:
            return []
        made = {name for given in self.inputs if given.is_made for name in given.names}
        written = made | {parameter for name in self.read for parameter in self.names.parameters_of(name)}
        written |= {tied for name in written for tied in self.ties.get(name, ())}
        return sorted(name for name in unread if set(self.names.parameters_of(name)) - written)

    @property
    def not_loaded(self) -> list[str]:
        """Stored tensors that neither mergekit nor transformers makes use of."""
        names, unread = self.names, self.stored.keys() - self.read
        if not unread or names is None:
            return []
        return sorted(n for n in unread if not n.endswith(RECOMPUTED) and not names.parameters_of(n))

    @property
    def not_in_module(self) -> list[str]:
        """Tensors of mergekit's list that the model does not need."""
        return [given.name for given in self.inputs if given.is_missing and not self._is_needed(given)]

    @property
    def absent(self) -> list[str]:
        wanting = [given for given in self.inputs if given.is_missing and self._is_needed(given)]
        wanting += [given for given in self.inputs if given.is_made and self._is_made_in_part(given)]
        return [given.name for given in wanting]

    def _is_needed(self, given: PlannedInput) -> bool:
        if self.names is None:
            return True
        parameters = {parameter for name in given.names for parameter in self.names.parameters_of(name)}
        return not all(name in self._loadable for name in parameters)

    def _is_made_in_part(self, given: PlannedInput) -> bool:
        """Whether it comes out in another shape than the module's: an expert of the layer is not there."""
        recipe = self._recipes.get(given.name)
        if recipe is None or self.names is None:
            return False
        shapes = {name: (stored.shape, None) for name, stored in self.stored.items()}
        made = recipe.outline(given.name, shapes, self._module)
        return made is None or tuple(made.shape) != self.names.shape(given.name)

    @cached_property
    def _recipes(self) -> dict[str, ParameterRecipe]:
        return self.names.recipes(self.stored) if self.names is not None else {}

    @cached_property
    def _loadable(self) -> set[str]:
        loaded = set(self._recipes)
        return loaded | {tied for name in loaded for tied in self.ties.get(name, ())}

    @cached_property
    def names(self) -> LoadedNames | None:
        """None where transformers cannot build the model; asked for only where a name is in doubt, as it takes time."""
        return LoadedNames(self._module) if self._module is not None else None

    @cached_property
    def _module(self) -> Any:
        return empty_module(self.model.folder) if self.model.folder else None

    @cached_property
    def ties(self) -> dict[str, tuple[str, ...]]:
        return tied_names(self._module)


def _as_meant(config: Any, model: NamedModel, names: list[str], read_by_any: set[str]) -> list[str]:
    """Without what slices leave out on purpose: the other layers, and what another model of the merge gives."""
    chosen = _chosen_layers(config, model)
    if chosen is None:
        return names
    numbers = {name: layer_number(name) for name in names}
    return [name for name, n in numbers.items() if (name not in read_by_any if n is None else n in chosen)]


def _chosen_layers(config: Any, model: NamedModel) -> set[int] | None:
    """The layers that slices take of a model; None where nothing is cut into slices."""
    owners = [config, *(getattr(config, "modules", None) or {}).values()]
    sources = [source for owner in owners for part in owner.slices or [] for source in part.sources]
    if not sources:
        return None
    return {layer for source in sources if str(source.model) == model.name for layer in range(*source.layer_range)}


def _absent(by_model: Mapping[_Coverage, list[str]], planned: int) -> Iterator[Finding]:
    for each, names in by_model.items():
        if names:
            model = each.model
            message = f"{model.name} lacks {len(names)} of {planned} tensors: {shortened(names)}"
            advice = "download or save the model again"
            yield Finding("error", "missing-tensor", message, model.where, advice, model.name, tensor=names[0])


def _alike(rule: Rule, by_model: Mapping[_Coverage, list[str]], config: Any) -> Iterator[Finding]:
    """One finding for all models with the same names: what mergekit's list lacks it lacks for each of them."""
    alike: dict[tuple[str, ...], list[_Coverage]] = defaultdict(list)
    for each, names in by_model.items():
        if names:
            alike[tuple(names)].append(each)
    for names, having in alike.items():
        first = having[0].model
        others = len(having) - 1
        also = f" (and of {others} more model{'s' if others > 1 else ''})" if others else ""
        text, advice = _TEXTS[rule], ""
        if rule != "left-out":
            advice = f"`fusion_bench method={_in_fusion_bench(config.merge_method)}` merges this architecture"
        message = text.format(
            model=f"{first.name}{also}",
            count=len(names),
            stored=len(having[0].stored),
            names=shortened(list(names)),
            architecture=", ".join(first.settings.get("architectures") or ["this architecture"]),
            transformers=_transformers_version(),
        )
        severity = "note" if rule == "left-out" else "error"
        yield Finding(severity, rule, message, first.where, advice, first.name, tensor=names[0])


_TEXTS: dict[Rule, str] = {
    "lost-tensor": (
        "{count} of {stored} tensors of {model} come into no tensor of the result, and loading it would put random "
        "numbers there: {names}; no method of mergekit writes them for {architecture}"
    ),
    "listed-tensor": (
        "mergekit's list of tensors for {architecture} asks for {count} that transformers {transformers} neither saves "
        "nor needs, so every method of mergekit stops at {model}: {names}"
    ),
    "left-out": (
        "{count} of {stored} tensors of {model} are left out, as transformers {transformers} does not load them "
        "either: {names}"
    ),
}


def _in_fusion_bench(method: str) -> str:
    return method if method in (*registry.names(), "safety_merge") else f"mergekit method.merge_method={method}"


def _transformers_version() -> str:
    import transformers

    return transformers.__version__
