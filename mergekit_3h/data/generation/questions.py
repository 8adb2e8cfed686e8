"""Step 1: an uncensored model writes questions that an aligned model ought to refuse, one topic a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from mergekit_3h.data.generation.asking import AskAll
from mergekit_3h.data.generation.collecting import collect_questions, shares
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.sections import Section

PROMPT = "unsafe_questions"
CATEGORIES = "unsafe_categories"


class QuestionSettings(Section):
    """Where the questions of the safety set come from: a generator model, files, or both."""

    model: str | None = Field(None, description="The generator, a name under models. It has to be uncensored.")
    files: tuple[str, ...] = Field((), description="JSONL files of records; their replies are not used.")
    count: int = Field(1000, ge=1, description="K: how many questions the generator writes, over all categories.")
    per_call: int = Field(10, ge=1, description="Questions asked for in one call; a call has one topic.")
    temperature: float = Field(0.8, ge=0.0, description="Of the generator.")
    max_new_tokens: int = Field(2048, ge=1, description="Longest answer of one call, in tokens.")
    max_rounds: int = Field(5, ge=1, description="How often a topic that is short of questions is asked again.")
    categories: str | None = Field(
        None, description="File with your own topics, 'name: description' a line; the package's otherwise."
    )
    near_duplicates: float | None = Field(
        None, gt=0.0, le=1.0, description="Drop questions at least this similar to an earlier one; null keeps them."
    )


def read_categories(file: str | None, prompts: str | None) -> dict[str, str]:
    """Topics and what they are about, from lines ``name: description``; lines with # are comments."""
    if file is None:
        text, where = prompt_text(CATEGORIES, prompts), CATEGORIES
    elif Path(file).is_file():
        text, where = Path(file).read_text(encoding="utf-8"), file
    else:
        raise DataError(f"questions.categories: {file}: no such file; expected one 'name: description' a line")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.partition(":") for line in lines]
    topics = {name.strip(): description.strip() or name.strip() for name, _, description in pairs if name.strip()}
    if not topics:
        raise DataError(f"{where}: no categories; expected one 'name: description' a line")
    return topics


def unsafe_questions(
    settings: QuestionSettings,
    topics: Mapping[str, str],
    *,
    prompts: str | None,
    seed: int,
    source: str,
    ask: AskAll,
    report: StepReport,
) -> list[Record]:
    """Records of the safety set without a reply, by category."""
    template = prompt_text(PROMPT, prompts)
    collected = collect_questions(
        shares(settings.count, list(topics)),
        lambda topic, count, _: filled(template, count=str(count), topic=topic, description=topics[topic]),
        per_call=settings.per_call,
        max_rounds=settings.max_rounds,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
        ask=ask,
        report=report,
    )
    return [
        Record(id="", prompt=text, set="safety", category=topic, source=source)
        for topic, texts in collected.items()
        for text in texts
    ]
