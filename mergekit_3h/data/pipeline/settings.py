"""The configuration file of the pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.backends.settings import BackendSettings
from mergekit_3h.data.generation.answers import AnswerSettings
from mergekit_3h.data.generation.domain import PROMPT as DOMAIN
from mergekit_3h.data.generation.domain import DomainSettings, read_examples
from mergekit_3h.data.generation.labels import LabelSettings
from mergekit_3h.data.generation.questions import PROMPT as UNSAFE
from mergekit_3h.data.generation.questions import QuestionSettings, read_categories
from mergekit_3h.data.generation.selection import SafetySettings
from mergekit_3h.data.guards import RATING_GUARDS, guard_named
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.sections import Section, parsed
from mergekit_3h.errors import OptionError
from mergekit_3h.suggestions import did_you_mean

# A model's name becomes a file name and part of ids.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Limits(Section):
    """How much may go wrong before the exit status says so. Shares of a step's requests or replies."""

    failed: float = Field(0.05, ge=0.0, le=1.0, description="Requests without an answer.")
    unscored: float = Field(0.05, ge=0.0, le=1.0, description="Replies without a verdict.")


class PipelineSettings(Section):
    """Everything that ``mergekit-3h data run`` does."""

    output: str = Field(description="Folder for everything the pipeline makes.")
    seed: int = Field(0, description="Of every random choice.")
    prompts: str | None = Field(None, description="Folder with your own prompt files; see `mergekit-3h data prompts`.")
    models: dict[str, BackendSettings] = Field(min_length=1, description="Every model, by the name used below.")
    questions: QuestionSettings
    answers: AnswerSettings
    labels: LabelSettings = Field(default_factory=lambda: LabelSettings.model_validate({}))
    safety: SafetySettings = Field(default_factory=lambda: SafetySettings.model_validate({}))
    domain: DomainSettings | None = Field(None, description="Left out: no domain set is made.")
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))

    @field_validator("models", mode="before")
    @classmethod
    def _a_text_is_a_checkpoint(cls, models: Any) -> Any:
        if not isinstance(models, dict):
            return models
        named = cast("dict[str, Any]", models)
        for name in named:
            if not _FILE_NAME.fullmatch(str(name)):
                message = "'{name}' cannot be a model's name: letters, digits, '.', '_' and '-' only"
                raise PydanticCustomError("model_name", message, {"name": str(name)})
        return {name: {"model": given} if isinstance(given, str) else given for name, given in named.items()}

    def roles(self) -> Iterator[tuple[str, str]]:
        """Every option that names a model, with that name."""
        if self.questions.model is not None:
            yield "questions.model", self.questions.model
        for name in self.answers.models:
            yield "answers.models", name
        if self.labels.model is not None:
            yield "labels.model", self.labels.model
        for name in self.domain.experts if self.domain else ():
            yield "domain.experts", name

    def used_models(self) -> list[str]:
        """The models that have something to do, each once."""
        return list(dict.fromkeys(name for _, name in self.roles()))


def read_settings(path: Path) -> PipelineSettings:
    """The settings in a YAML file, checked as far as that is possible without loading a model."""
    if not path.is_file():
        raise OptionError(f"{path}: no such file; expected the YAML configuration of a data pipeline")
    reason = ""
    given: Any = None
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    if reason:
        raise OptionError(f"{path}: not YAML: {reason}")
    if not isinstance(given, dict):
        raise OptionError(f"{path}: got {type(given).__name__}, expected a mapping with output, models, questions, ...")
    return parsed(PipelineSettings, given, str(path))


def check(settings: PipelineSettings) -> None:
    """Raise for everything that would otherwise stop the pipeline half-way: names, files, keys, combinations."""
    for option, name in settings.roles():
        if name not in settings.models:
            hint = did_you_mean(name, settings.models)
            raise OptionError(f"{option}: there is no model {name!r} under models; {hint}")
    for name in settings.used_models():
        settings.models[name].check(name)
    if settings.prompts is not None and not Path(settings.prompts).is_dir():
        raise OptionError(f"prompts: {settings.prompts}: no such folder; expected one with prompt files (NAME.txt)")
    _check_questions(settings)
    _check_guard(settings)
    for expert, file in settings.domain.experts.items() if settings.domain else ():
        read_examples(expert, file)


def _check_questions(settings: PipelineSettings) -> None:
    questions = settings.questions
    if questions.model is None and not questions.files:
        raise OptionError("questions: got neither model nor files; expected at least one source of questions")
    for file in questions.files:
        if not Path(file).is_file():
            raise OptionError(f"questions.files: {file}: no such file; expected JSONL records")
    if questions.model is not None:
        read_categories(questions.categories, settings.prompts)
        filled(prompt_text(UNSAFE, settings.prompts), count="", topic="", description="")
    if settings.domain is not None:
        filled(prompt_text(DOMAIN, settings.prompts), count="", examples="")
    if len(set(settings.answers.models)) < len(settings.answers.models):
        raise OptionError(f"answers.models: got {list(settings.answers.models)}, expected every model once")


def _check_guard(settings: PipelineSettings) -> None:
    guard = guard_named(settings.labels.guard, settings.prompts)
    if guard.needs_model and settings.labels.model is None:
        raise OptionError(f"labels: the guard {guard.name!r} asks a model; name it in labels.model")
    if guard.name in RATING_GUARDS:
        raise OptionError(f"labels: the judge {guard.name!r} rates replies from 1 to 10 and has no verdict on refusals")
    if not guard.needs_model and settings.labels.model is not None:
        raise OptionError(f"labels: the guard {guard.name!r} asks no model; leave labels.model out")
