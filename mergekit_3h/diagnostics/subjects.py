"""What an inspection looks at: the tensors of a base and its experts, as a config or the command line names them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergekit_3h.checkpoints.headers import StoredTensor, fingerprint
from mergekit_3h.errors import ModelError

if TYPE_CHECKING:
    from mergekit_3h.lint import Finding
    from mergekit_3h.lint.models import NamedModel
    from mergekit_3h.lint.planned import PlannedTensor

ABOUT_FIT = (
    "architecture",
    "layer-count",
    "model-settings",
    "vocabulary",
    "special-token",
    "tokenizer-missing",
    "shape",
    "missing-tensor",
)
"""Rules of check that say whether the models fit together; those about the config's own text are left to it."""


@dataclass(frozen=True)
class StoredVersions:
    """One tensor of the merged model: where each model's version is stored; None where there is none."""

    name: str
    base: StoredTensor | None
    experts: tuple[StoredTensor | None, ...]


@dataclass(frozen=True)
class InspectedModels:
    """The models under inspection."""

    base: str
    experts: tuple[str, ...]
    folders: tuple[Path, ...]
    """Of the base and the experts."""
    tensors: tuple[StoredVersions, ...]
    findings: tuple[Finding, ...]
    """What check says about whether the models fit together."""
    tied: tuple[bool | None, ...]
    """Whether the base and each expert say that the head is the embedding; None where they say nothing."""
    digest: str
    config: Any
    """mergekit's own object."""
    has_config: bool
    """Whether the user wrote it, or it was made of ``--base`` and ``--expert``."""

    @property
    def method(self) -> str:
        """The merge method of the config; empty where there was none."""
        return self.config.merge_method if self.has_config else ""

    @property
    def labels(self) -> list[str]:
        """Short names of the experts: the last part of their paths where that tells them apart."""
        return short_names(self.experts)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell all of them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-count:]) for each in parts]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def subject_of_config(file: Path) -> InspectedModels:
    """The base and the experts of a mergekit config, laid out by mergekit's own planner."""
    try:
        return _subject(file.read_text(encoding="utf-8"), str(file), has_config=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the config {file}: {error}") from error


def subject_of_models(base: str, experts: Sequence[str]) -> InspectedModels:
    """The same without a config."""
    named = [base, *experts]
    twice = next((name for at, name in enumerate(named) if name in named[:at]), None)
    if twice is not None:
        raise ModelError(f"{twice} is named twice; expected a base and experts that are different models")
    listed = [{"model": expert, "parameters": {"weight": 1.0}} for expert in experts]
    config = {"merge_method": "task_arithmetic", "base_model": base, "models": listed}
    return _subject(yaml.safe_dump(config, sort_keys=False), "--base and --expert", has_config=False)


def _subject(text: str, source: str, *, has_config: bool) -> InspectedModels:
    from mergekit_3h.lint import lint
    from mergekit_3h.lint.host_plan import planned_tensors
    from mergekit_3h.lint.models import named_models
    from mergekit_3h.lint.planned import source_tensors
    from mergekit_3h.lint.roles import compared_models
    from mergekit_3h.lint.source import read_documents

    documents = read_documents(text)
    config = documents[0].config
    if len(documents) > 1:
        raise ModelError(f"{source} holds {len(documents)} merges; inspect looks at one: put it into a file of its own")
    if config is None:
        raise ModelError(f"{source}: {'; '.join(map(str, documents[0].findings))}")
    planned, compared = named_models(config), compared_models(config)
    models = [model for model in planned if model.name not in compared]
    _require_inspectable(source, models)
    findings = lint(text if "\n" in text else text + "\n")
    plan, problems = planned_tensors(config, planned)
    if not plan:
        raise ModelError(f"{source}: {'; '.join(map(str, problems)) or 'mergekit plans no tensors for it'}")
    stored = [tensor for tensor in plan if tensor.shape] + source_tensors(plan, planned)
    base, experts = models[0], models[1:]
    return InspectedModels(
        base=base.name,
        experts=tuple(model.name for model in experts),
        folders=tuple(model.location.path or Path(model.path) for model in models),
        tensors=tuple(_each_once(_versions(tensor, models) for tensor in stored)),
        findings=tuple(finding for finding in findings if finding.rule in ABOUT_FIT),
        tied=tuple(model.settings.get("tie_word_embeddings") for model in models),
        digest=_digest(models),
        config=config,
        has_config=has_config,
    )


def _require_inspectable(source: str, models: Sequence[NamedModel]) -> None:
    if not models or not models[0].is_base:
        raise ModelError(f"{source} names no base model; inspect measures against it: add base_model, or use --base")
    if len(models) < 2:
        raise ModelError(f"{source} names no expert beside the base model {models[0].name}")
    for model in models:
        if model.lora:
            raise ModelError(
                f"{model.name} is a LoRA adapter on a model. inspect reads whole models: merge it once, for example "
                "with mergekit-yaml and --lora-merge-cache, and name the folder that this writes."
            )
        if model.checkpoint is None:
            where = "not on this machine" if model.location.status == "hub" else "not there"
            raise ModelError(f"the model {model.name} is {where}; inspect reads weights, it does not download them")
        if model.checkpoint.problems:
            raise ModelError(f"the model {model.name} cannot be read: {model.checkpoint.problems[0]}")


def _each_once(tensors: Iterable[StoredVersions]) -> Iterator[StoredVersions]:
    """Without those made of the same stored tensors as an earlier one: a head that is the embedding."""
    seen: set[tuple[StoredTensor | None, ...]] = set()
    for tensor in tensors:
        made_of = (tensor.base, *tensor.experts)
        if made_of not in seen or not any(made_of):
            yield tensor
        seen.add(made_of)


def _versions(tensor: PlannedTensor, models: Sequence[NamedModel]) -> StoredVersions:
    stored = {given.model: given.stored for given in reversed(tensor.inputs)}
    base, *experts = (stored.get(model.name) for model in models)
    return StoredVersions(tensor.name, base, tuple(experts))


def _digest(models: Sequence[NamedModel]) -> str:
    prints = [fingerprint(model.checkpoint) for model in models if model.checkpoint is not None]
    return hashlib.sha256(" ".join(prints).encode()).hexdigest()[:20]
