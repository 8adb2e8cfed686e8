"""The parts of the domain set: every expert's questions and answers, and the set itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_3h.data.generation.collecting import shares
from mergekit_3h.data.generation.domain import PROMPT, DomainSettings, domain_questions, read_examples
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.pipeline.parts import PipelinePart, Workplace, answering_part
from mergekit_3h.data.pipeline.safety_parts import without_duplicates
from mergekit_3h.data.pipeline.settings import PipelineSettings
from mergekit_3h.data.prompts import prompt_text
from mergekit_3h.data.reading import read_records
from mergekit_3h.data.records import Record


def domain_parts(settings: PipelineSettings, own: DomainSettings, folder: Path) -> Iterator[PipelinePart]:
    """Questions and answers of every expert."""
    quotas = shares(own.count or settings.questions.count, list(own.experts))
    for expert, file in own.experts.items():
        asked = folder / "domain" / "questions" / f"{expert}.jsonl"
        yield _questions_part(settings, own, expert, Path(file), quotas[expert], asked)
        yield answering_part(
            "domain",
            f"domain-answers/{expert}",
            asked,
            _answers_file(folder, expert),
            expert,
            settings.models[expert].identity(),
            own.answer_tokens,
        )


def _questions_part(
    settings: PipelineSettings, own: DomainSettings, expert: str, examples: Path, count: int, output: Path
) -> PipelinePart:
    def make(place: Workplace, report: StepReport) -> list[Record]:
        report.wanted = count
        records = domain_questions(
            own,
            read_examples(expert, str(examples)),
            expert=expert,
            count=count,
            prompts=settings.prompts,
            seed=settings.seed,
            ask=place.ask(expert),
            report=report,
        )
        report.kept = len(records)
        return records

    depends_on: dict[str, Any] = {
        "domain": own.model_dump(mode="json", exclude={"experts", "count", "answer_tokens"}),
        "count": count,
        "model": settings.models[expert].identity(),
        "seed": settings.seed,
        "prompt": prompt_text(PROMPT, settings.prompts),
    }
    return PipelinePart("domain", f"domain-questions/{expert}", output, (examples,), depends_on, make)


def domain_set_part(own: DomainSettings, folder: Path) -> PipelinePart:
    """D_expert."""
    answers = tuple(_answers_file(folder, expert) for expert in own.experts)

    def make(place: Workplace, report: StepReport) -> list[Record]:
        records = [record for file in answers for record in read_records(file)]
        replied = [record for record in records if record.response]
        report.drop("an empty answer", len(records) - len(replied))
        # Back to the question's own id: in this set there is one answer to each.
        return without_duplicates([record.changed(id=record.id.rpartition(":")[0]) for record in replied], report)

    return PipelinePart("build", "domain", folder / "domain.jsonl", answers, {}, make)


def _answers_file(folder: Path, expert: str) -> Path:
    return folder / "domain" / "answers" / f"{expert}.jsonl"
