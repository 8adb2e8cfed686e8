"""The models a config names: where they are, whether their files are whole, and whether two of them are one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_3h.checkpoints.headers import Checkpoint, fingerprint, read_checkpoint
from mergekit_3h.checkpoints.locations import Location, config_problem, hub_is_offline, locate, read_json
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.places import InputGroup, parameter_groups


@dataclass
class NamedModel:
    """A model as the config names it; ``checkpoint`` is there if its headers could be read."""

    name: str
    where: str
    is_base: bool
    location: Location
    path: str
    lora: str | None = None
    checkpoint: Checkpoint | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return self.checkpoint is not None and not self.checkpoint.problems

    @property
    def reference(self) -> str:
        """The model as mergekit finds it without asking the hub."""
        if self.location.status != "cached":
            return self.name
        return f"{self.location.path}+{self.lora}" if self.lora else str(self.location.path)

    @property
    def folder(self) -> Path | None:
        return self.location.path if self.location.path and self.location.path.is_dir() else None


def named_models(config: Any, made_here: frozenset[str] = frozenset(), cache: str | None = None) -> list[NamedModel]:
    """Every model once, the base first; without those that another merge of the same file makes.

    ``cache`` is where models of the hub are, if not in Hugging Face's usual folder.
    """
    found: dict[str, NamedModel] = {}
    for group in parameter_groups(config):
        for name, where, is_base in _names(group):
            if name not in found and name not in made_here:
                found[name] = _named(name, where, is_base, cache)
    return sorted(found.values(), key=lambda model: not model.is_base)


def _names(group: InputGroup) -> Iterator[tuple[str, str, bool]]:
    if group.base is not None:
        yield group.base, "base_model", True
    for place in group.inputs:
        yield str(place.model), place.where.removesuffix(".parameters"), False


def _named(name: str, where: str, is_base: bool, cache: str | None) -> NamedModel:
    text, _, lora = name.partition("+")
    path, _, revision = text.partition("@")
    location = locate(path, revision or None, cache)
    model = NamedModel(name, where, is_base, location, path, lora or None)
    if location.path is not None:
        if location.path.is_dir():
            model.settings = read_json(location.path / "config.json")
        model.checkpoint = read_checkpoint(location.path)
    return model


def model_findings(models: list[NamedModel], kind: str, config_folder: Path | None = None) -> list[Finding]:
    """Findings on each model by itself."""
    return [
        *(finding for model in models for finding in _presence(model, config_folder)),
        *(finding for model in models for finding in _file_findings(model, kind)),
        *(finding for model in models if model.lora for finding in _adapter_findings(model)),
        *(finding for model in models if kind == "yaml" for finding in _card_trap(model)),
    ]


def _presence(model: NamedModel, config_folder: Path | None) -> Iterator[Finding]:
    status, path = model.location.status, model.path
    if status == "hub" and hub_is_offline():
        message = f"{path} is neither a folder nor in the Hugging Face cache, and the environment says offline"
        yield Finding("error", "offline", message, where=model.where, model=model.name)
    elif status == "hub":
        message = f"{path} is not on this machine: mergekit would download it, and it is not checked here"
        yield Finding("note", "download", message, where=model.where, model=model.name)
    elif status == "missing":
        message = f"there is no model at {path}"
        yield Finding(
            "error",
            "missing-model",
            message,
            where=model.where,
            advice=_advice_on_missing(path, config_folder),
            model=model.name,
        )


def _advice_on_missing(path: str, config_folder: Path | None) -> str:
    if path.startswith("~"):
        return f"mergekit does not expand ~, write {Path(path).expanduser()}"
    if config_folder is not None and not Path(path).is_absolute() and (config_folder / path).exists():
        return f"mergekit takes paths from the working directory; {(config_folder / path).resolve()} exists"
    parent = Path(path).parent
    siblings = sorted(item.name for item in parent.iterdir() if item.is_dir()) if parent.is_dir() else []
    return f"{parent} has: {', '.join(siblings[:6])}" if siblings else f"{parent} has no folders of models"


def _file_findings(model: NamedModel, kind: str) -> Iterator[Finding]:
    if model.checkpoint is None:
        return
    if model.folder is not None and (model.folder / "adapter_config.json").exists() and not model.checkpoint.files:
        base = read_json(model.folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        message = f"{model.path} is a LoRA adapter, not a model"
        advice = f"write {base}+{model.path}"
        yield Finding("error", "adapter-as-model", message, where=model.where, advice=advice, model=model.name)
        return
    for problem in model.checkpoint.problems:
        yield Finding("error", "weight-files", problem, where=model.where, model=model.name)
    if kind == "pytorch":
        if model.folder is not None:
            message = f"{model.path} is a folder, mergekit-pytorch merges weight files"
            yield Finding("error", "folder-as-file", message, where=model.where, model=model.name)
    elif model.folder is None:
        message = f"{model.path} is a file, mergekit-yaml merges model folders"
        advice = "name its folder, or merge files with mergekit-pytorch"
        yield Finding("error", "file-as-folder", message, where=model.where, advice=advice, model=model.name)
    elif model.settings.get("auto_map") and not _is_known(model.settings.get("model_type")):
        message = f"{model.path} brings its own code, so its tensors are not compared here"
        advice = "pass --trust-remote-code to mergekit if you trust it"
        yield Finding("note", "remote-code", message, where=model.where, advice=advice, model=model.name)
    elif not model.settings.get("architectures"):
        message = config_problem(model.folder) or f"{model.folder / 'config.json'} names no architecture"
        advice = "download or save the model again"
        yield Finding("error", "model-config", message, where=model.where, advice=advice, model=model.name)


def _is_known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _adapter_findings(model: NamedModel) -> Iterator[Finding]:
    lora = str(model.lora)
    location = locate(lora)
    if location.status == "missing":
        message = f"there is no adapter at {lora}"
        yield Finding("error", "missing-adapter", message, where=model.where, model=model.name)
    elif location.path is not None and not (location.path / "adapter_config.json").exists():
        message = f"{lora} has no adapter_config.json, so it is no LoRA adapter"
        yield Finding("error", "missing-adapter", message, where=model.where, model=model.name)
    advice = (
        "pass --lora-merge-cache FOLDER to mergekit, which fails without it; mergekit-3h merge needs none for spectral "
        "methods"
    )
    message = f"the adapter {lora} is merged into {model.path} first, which writes a whole model"
    yield Finding("note", "lora-cache", message, where=model.where, advice=advice, model=model.name)


def _card_trap(model: NamedModel) -> Iterator[Finding]:
    """mergekit's model card writer takes an existing relative path for a name on the hub, and asks the hub."""
    path = model.path
    if model.location.status != "local" or path[0] in "/~" or path.count("/") > 1:
        return
    severity = "error" if hub_is_offline() else "warning"
    message = (
        f"mergekit asks the hub whether the relative path {path} is a repository there, after the merge, "
        "and without a network it ends there: no model card and no tokenizer are written"
    )
    advice = f"write {Path(path).resolve()}, or pass --no-write-model-card"
    yield Finding(severity, "relative-path", message, where=model.where, advice=advice, model=model.name)


def twin_findings(models: list[NamedModel]) -> list[Finding]:
    """Two names for one folder, and two folders with the same weights."""
    whole = [model for model in models if model.is_whole and not model.lora]
    prints = {model.name: fingerprint(model.checkpoint) for model in whole if model.checkpoint}
    return [
        finding
        for index, later in enumerate(whole)
        for earlier in whole[:index]
        for finding in _twins(earlier, later, prints)
    ]


def _twins(earlier: NamedModel, later: NamedModel, prints: dict[str, str]) -> Iterator[Finding]:
    first, second = earlier.location.path, later.location.path
    if first is None or second is None:
        return
    if first.resolve() == second.resolve():
        effect = "it becomes an expert without any update" if earlier.is_base else "it counts twice"
        message = f"{later.name} is the same folder as {earlier.name} under another name: {effect}"
        rule = "base-as-expert" if earlier.is_base else "duplicate-model"
        advice = "write the path the same way, or remove one"
        yield Finding("warning", rule, message, where=later.where, advice=advice, model=later.name)
    elif prints[earlier.name] == prints[later.name]:
        rule = "expert-equals-base" if earlier.is_base else "equal-experts"
        effect = "this expert adds nothing" if earlier.is_base else "their common update counts twice"
        message = f"{later.name} has the same weights as {earlier.name} (equal sizes and samples): {effect}"
        yield Finding("warning", rule, message, where=later.where, model=later.name)
