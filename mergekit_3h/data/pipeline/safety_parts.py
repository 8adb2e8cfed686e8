"""The parts of the safety set: questions, every model's answers, their verdicts, and the set itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_3h.data.duplicates import deduplicated
from mergekit_3h.data.generation.labels import asked_by, verdicts
from mergekit_3h.data.generation.questions import PROMPT, read_categories, unsafe_questions
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.generation.selection import safety_set
from mergekit_3h.data.guards import guard_named
from mergekit_3h.data.pipeline.parts import PipelinePart, Workplace, answering_part
from mergekit_3h.data.pipeline.settings import PipelineSettings
from mergekit_3h.data.prompts import prompt_text
from mergekit_3h.data.reading import read_records
from mergekit_3h.data.records import Record

# The guard's prompt is part of what verdicts depend on, and a reply to this shows it.
_PROBE = Record(id="probe", prompt="question", response="reply", set="safety")


def questions_part(settings: PipelineSettings, folder: Path) -> PipelinePart:
    """The questions from files and from the generator, without duplicates."""
    own = settings.questions
    depends_on: dict[str, Any] = {"questions": own.model_dump(mode="json"), "seed": settings.seed}
    if own.model is not None:
        depends_on["model"] = settings.models[own.model].identity()
        depends_on["prompt"] = prompt_text(PROMPT, settings.prompts)
        depends_on["topics"] = read_categories(own.categories, settings.prompts)

    def make(place: Workplace, report: StepReport) -> list[Record]:
        records = [record for file in own.files for record in _prompts_in(file, report)]
        if own.model is not None:
            report.wanted = own.count
            records += unsafe_questions(
                own,
                depends_on["topics"],
                prompts=settings.prompts,
                seed=settings.seed,
                source=own.model,
                ask=place.ask(own.model),
                report=report,
            )
        return without_duplicates(records, report, own.near_duplicates)

    return PipelinePart("questions", "questions", questions_file(folder), tuple(map(Path, own.files)), depends_on, make)


def answer_parts(settings: PipelineSettings, folder: Path) -> Iterator[PipelinePart]:
    """Every model's answers."""
    for model in settings.answers.models:
        yield answering_part(
            "answer",
            f"answer/{model}",
            questions_file(folder),
            folder / "answers" / f"{model}.jsonl",
            model,
            settings.models[model].identity(),
            settings.answers.max_new_tokens,
        )


def label_parts(settings: PipelineSettings, folder: Path) -> Iterator[PipelinePart]:
    """Every model's answers with their verdicts."""
    for model in settings.answers.models:
        yield _label_part(settings, model, folder / "answers" / f"{model}.jsonl", _labelled_file(folder, model))


def _label_part(settings: PipelineSettings, model: str, answers: Path, output: Path) -> PipelinePart:
    judge = settings.labels.model
    guard = guard_named(settings.labels.guard, settings.prompts)
    identity = settings.models[judge].identity() if judge else None

    def make(place: Workplace, report: StepReport) -> list[Record]:
        records = read_records(answers)
        place.expect(len(records))
        return verdicts(
            records,
            guard,
            journal=place.journal,
            model=place.models.identity(judge) if judge else "",
            backend=place.opener(judge or ""),
            done=place.done,
            report=report,
        )

    depends_on = {"guard": guard.name, "model": identity, "asked": asked_by(guard, _PROBE)}
    return PipelinePart("label", f"label/{model}", output, (answers,), depends_on, make)


def safety_part(settings: PipelineSettings, folder: Path) -> PipelinePart:
    """D_safety."""
    models = settings.answers.models
    questions = questions_file(folder)
    labelled = [_labelled_file(folder, model) for model in models]

    def make(place: Workplace, report: StepReport) -> list[Record]:
        replies = [record for file in labelled for record in read_records(file)]
        return safety_set(read_records(questions), replies, models, settings.safety, settings.seed, report)

    depends_on: dict[str, Any] = {
        "safety": settings.safety.model_dump(mode="json"),
        "seed": settings.seed,
        "models": list(models),
    }
    return PipelinePart("build", "safety", folder / "safety.jsonl", (questions, *labelled), depends_on, make)


def questions_file(folder: Path) -> Path:
    """Where the questions are."""
    return folder / "questions.jsonl"


def without_duplicates(records: list[Record], report: StepReport, near: float | None = None) -> list[Record]:
    """The records that ask different things; the others are counted in the report."""
    result = deduplicated(records, near)
    report.drop("a duplicate", result.counts()["exact"])
    report.drop("a near duplicate", result.counts()["near"])
    report.kept = len(result.kept)
    return result.kept


def _prompts_in(file: str, report: StepReport) -> Iterator[Record]:
    """The prompts of a file's safety records; their replies are for the models of the pool to give."""
    for record in read_records(file):
        if record.set == "safety":
            yield record.changed(response=None, label=None)
        else:
            report.drop(f"of the {record.set} set, not safety")


def _labelled_file(folder: Path, model: str) -> Path:
    return folder / "labelled" / f"{model}.jsonl"
