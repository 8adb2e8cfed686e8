"""A mergekit config as the request for a search: base, experts, options, and the parameters of the combination."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import MergeMethod, registered_methods

from mergekit_3h.checkpoints.locations import hub_is_offline, locate
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.lint.places import Place, parameter_places
from mergekit_3h.lint.source import read_documents
from mergekit_3h.safety.combination import Combination, require_free_weights
from mergekit_3h.safety.options import parse_safety_merge_options, safety_merge_option_names
from mergekit_3h.safety.port import BASE_LABEL
from mergekit_3h.search.combinations import require_searchable
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.tuning import WEIGHT, searched_names
from mergekit_3h.suggestions import did_you_mean

METHOD_NAME = "safety_merge"


@dataclass(frozen=True)
class SafetyRequest:
    """What is to be searched. ``experts`` are the models by the labels that reports use, in the config's order."""

    base: ModelReference
    experts: Mapping[str, ModelReference]
    combination: Combination
    kept: Mapping[str, Any]
    """The keys of the config that are no business of the merge method: dtype, tokenizer, chat template ..."""

    @property
    def models(self) -> dict[str, ModelReference]:
        """All models by label, the base first."""
        return {BASE_LABEL: self.base, **self.experts}

    def with_options(self, values: Mapping[str, Any]) -> SafetyRequest:
        """The same with these values for options of the method that combines the models."""
        return replace(self, combination=self.combination.with_options(values))

    def static(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The ordinary mergekit config that merges with fixed weights, given by the experts' labels."""
        experts = {label: _text(model) for label, model in self.experts.items()}
        return self.combination.static(_text(self.base), experts, weights, self.kept)


def read_config(path: Path) -> MergeConfiguration:
    """The mergekit config in a file."""
    try:
        documents = read_documents(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise OptionError(f"{path}: not a config of mergekit-yaml: it is no UTF-8 text") from None
    if len(documents) > 1:
        raise OptionError(f"{path}: holds {len(documents)} merges; expected one, so give each a file of its own")
    document = documents[0]
    if document.config is None:
        finding = document.located(next(finding for finding in document.findings if finding.severity == "error"))
        line = f":{finding.line}" if finding.line else ""
        where = f" {finding.where}:" if finding.where else ""
        raise OptionError(
            f"{path}{line}: not a config of mergekit-yaml:{where} {finding.message}; `mergekit-3h check {path}` says "
            "more"
        )
    _require_whole_models(document.config)
    return document.config


def _require_whole_models(config: Any) -> None:
    if not isinstance(config, MergeConfiguration):
        raise ModelError(
            "safety_merge evaluates whole language models, so it cannot merge single weight files; give mergekit-yaml "
            "the models' folders"
        )


def folder_of(model: ModelReference, cache: str | None, lora_cache: str | None, trust_remote_code: bool) -> Path:
    """Where a model is; an adapter is merged first, and a model of the hub is fetched."""
    for part in (model.model, *([model.lora] if model.lora else [])):
        status = locate(part.path, part.revision).status
        if status == "missing":
            raise ModelError(f"there is no model at {part.path} (looked for in {Path.cwd()})")
        if status == "hub" and hub_is_offline():
            raise ModelError(
                f"{_no_folder(part.path)}, and the environment forbids to ask the hub (HF_HUB_OFFLINE); correct the "
                "path, or fetch the model first"
            )
    if model.lora and not lora_cache:
        raise ModelError(f"model {model}: merging its adapter needs a folder; pass --lora-merge-cache FOLDER")
    try:
        return Path(model.merged(lora_cache, trust_remote_code).local_path(cache))
    except Exception as error:
        if locate(model.model.path, model.model.revision).status == "hub":
            raise ModelError(f"{_no_folder(model.model.path)}, and {_hub_says(error)}") from error
        raise ModelError(f"model {model} cannot be opened: {type(error).__name__}: {error}") from error


def _no_folder(path: str) -> str:
    return f"there is no model folder {path} (looked for in {Path.cwd()}), none in the Hugging Face cache"


def _hub_says(error: Exception) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no model of that name that you have access to"
    return f"the hub cannot be asked ({type(error).__name__})"


def read_request(config: Any, overrides: Mapping[str, Any] | None = None) -> SafetyRequest:
    """The request that a config makes. Any other method's config asks for a search of that method's weights.

    ``overrides`` are options that go before those of the config.
    """
    _require_whole_models(config)
    if config.base_model is None:
        raise ModelError("safety_merge needs a base model: add `base_model:` with the model the experts come from")
    raw = config.model_dump(mode="json", exclude_none=True)
    base, inputs = str(config.base_model), _inputs(config)
    # An option of the method itself goes before one of the search's that has its name, as `combine` of svc.
    of_method = [] if config.merge_method == METHOD_NAME else _option_names(config.merge_method)
    given, shared = _divided(dict(raw.get("parameters", {})), of_method)
    if config.merge_method != METHOD_NAME:
        given["combine"] = config.merge_method
    given.update(overrides or {})
    if "combine" in given:
        specs = [method.spec for method in registered_methods()]
        with_weights = WEIGHT in searched_names(str(given.get("over", WEIGHT)))
        require_searchable(given["combine"], specs, with_weights=with_weights)
    options = parse_safety_merge_options(given)
    _require_known_parameters(config, merge_methods.get(options.search.combine), options.search)
    experts = labelled_models([model for model, _ in inputs if str(model) != base])
    if not experts:
        raise ModelError("safety_merge needs at least one expert beside the base model: add it under `models:`")
    dropped = config.merge_method != METHOD_NAME and options.search.finds_weights
    if dropped:
        shared.pop(WEIGHT, None)
    own = {label: _own_parameters(inputs, model, dropped) for label, model in experts.items()}
    kept = {
        key: raw[key] for key in ("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template") if key in raw
    }
    combination = Combination(options, shared, {label: given for label, given in own.items() if given})
    combination.require_startable(merge_methods.get(combination.method).spec, experts)
    return SafetyRequest(config.base_model, experts, combination, kept)


def _option_names(method: str) -> list[str]:
    specs = [known.spec for known in registered_methods() if known.spec.name == method]
    return [parameter.name for spec in specs for parameter in spec.parameters if parameter.name != WEIGHT]


def _divided(parameters: dict[str, Any], of_method: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of safety_merge, and the other parameters."""
    own = [name for name in safety_merge_option_names() if name not in of_method]
    given = {name: parameters.pop(name) for name in list(parameters) if name in own}
    for name, value in given.items():
        if isinstance(value, list | dict):
            raise OptionError(
                f"option {name!r}: got {value!r}; expected one value, without filters or layers"
                + (" (several files are one text, separated by commas)" if name == "data" else "")
            )
    return given, parameters


def _inputs(config: MergeConfiguration) -> list[tuple[ModelReference, dict[str, Any]]]:
    """Models with their parameters, from a config as it was written or as mergekit's planner has rewritten it."""
    if config.models:
        return [(entry.model, _plain(entry.parameters)) for entry in config.models]
    modules = config.modules or {}
    parts = [part for module in modules.values() for part in module.slices or []]
    if len(modules) != 1 or len(parts) != 1 or not all(_is_whole(source) for source in parts[0].sources):
        raise ModelError(
            "safety_merge merges whole models of one architecture; write `models:` instead of slices or modules"
        )
    return [(source.model, _plain(source.parameters)) for source in parts[0].sources]


def _is_whole(source: Any) -> bool:
    layers = getattr(source.model.config(), "num_hidden_layers", None)
    return layers is None or tuple(source.layer_range) == (0, layers)


def _plain(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value

    return {name: plain(value) for name, value in (parameters or {}).items()}


def labelled_models(models: list[ModelReference]) -> dict[str, ModelReference]:
    """Short names: the folders', unless two of them are the same or the base's label."""
    for model in models:
        if models.count(model) > 1:
            raise ModelError(f"model {model} is there {models.count(model)} times; expected every model once")
    names = [_folder_name(model) for model in models]
    return {
        name if names.count(name) == 1 and name != BASE_LABEL else str(model): model
        for name, model in zip(names, models, strict=True)
    }


def _folder_name(model: ModelReference) -> str:
    source = model.lora or model.model
    return Path(source.path).name or source.path


def _own_parameters(inputs: list[tuple[ModelReference, dict[str, Any]]], model: ModelReference, dropped: bool) -> Any:
    """Those of one model, without a weight that is to be found anew."""
    own = next(dict(parameters) for reference, parameters in inputs if reference == model)
    if dropped:
        own.pop(WEIGHT, None)
    return own


def _require_known_parameters(config: MergeConfiguration, method: MergeMethod, options: SearchOptions) -> None:
    """mergekit drops parameters it does not know without a word; here they are errors."""
    of_method = _option_names(method.spec.name)
    is_ours = config.merge_method == METHOD_NAME
    for place in parameter_places(config):
        fixed = place.parameters if is_ours else {k: v for k, v in place.parameters.items() if k != "weight"}
        require_free_weights(options, place.where, fixed)
        for name in place.parameters:
            if name in safety_merge_option_names() and (is_ours or name not in of_method):
                _require_global(place, name)
            elif name not in of_method and name != "weight":
                known = safety_merge_option_names() + of_method
                raise OptionError(
                    f"{place.where}: neither safety_merge nor {method.spec.name}, which combines the models, has an "
                    f"option {name!r}; {did_you_mean(name, known, otherwise='it has: ' + ', '.join(known))}"
                )


def _require_global(place: Place, name: str) -> None:
    if place.kind != "global":
        raise OptionError(
            f"{place.where}.{name}: this is one value for the whole search; move it to the `parameters` of the config"
        )


def _text(model: ModelReference) -> Any:
    return model.model_dump(mode="json") if model.override_architecture else str(model)
