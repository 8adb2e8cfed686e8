"""Step 4: an expert writes questions of its own domain from three examples and answers them itself."""

from __future__ import annotations

from pathlib import Path
from random import Random

from pydantic import Field

from mergekit_3h.data.generation.asking import AskAll
from mergekit_3h.data.generation.collecting import collect_questions
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.reading import read_records
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.sections import Section

PROMPT = "domain_questions"
EXAMPLES_IN_A_CALL = 3


class DomainSettings(Section):
    """The experts and examples of their domains."""

    experts: dict[str, str] = Field(
        min_length=1,
        description="For each expert (a name under models) a file with at least three example questions: JSONL "
        "records, or a text file with one question a line.",
    )
    count: int | None = Field(
        None, ge=1, description="Questions over all experts, shared evenly; questions.count if not given."
    )
    per_call: int = Field(5, ge=1, description="Questions asked for in one call.")
    temperature: float = Field(0.8, ge=0.0, description="Of the questions; the answers are greedy.")
    max_new_tokens: int = Field(2048, ge=1, description="Longest answer of a call for questions, in tokens.")
    answer_tokens: int = Field(512, ge=1, description="Longest answer to a question, in tokens.")
    max_rounds: int = Field(5, ge=1, description="How often an expert that is short of questions is asked again.")


def read_examples(expert: str, file: str) -> list[str]:
    """An expert's example questions."""
    path = Path(file)
    where = f"domain.experts.{expert}: {file}"
    if not path.is_file():
        raise DataError(f"{where}: no such file; expected JSONL records or one question a line")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        examples = [record.question for record in read_records(path)]
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        examples = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(examples) < EXAMPLES_IN_A_CALL:
        raise DataError(f"{where}: got {len(examples)} example questions, expected at least {EXAMPLES_IN_A_CALL}")
    return examples


def domain_questions(
    settings: DomainSettings,
    examples: list[str],
    *,
    expert: str,
    count: int,
    prompts: str | None,
    seed: int,
    ask: AskAll,
    report: StepReport,
) -> list[Record]:
    """Records of the domain set without a reply. Every call shows three of the examples, drawn by its own seed."""
    template = prompt_text(PROMPT, prompts)

    def prompt_for(topic: str, wanted: int, own_seed: int) -> str:
        shown = Random(own_seed).sample(examples, EXAMPLES_IN_A_CALL)
        listed = "\n".join(f"{number}. {text}" for number, text in enumerate(shown, start=1))
        return filled(template, count=str(wanted), examples=listed)

    collected = collect_questions(
        {expert: count},
        prompt_for,
        per_call=settings.per_call,
        max_rounds=settings.max_rounds,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
        taken=examples,
        ask=ask,
        report=report,
    )
    return [Record(id="", prompt=text, set="domain", category=expert, source=expert) for text in collected[expert]]
