"""What a part of the pipeline is: one file of records, what it is made from, and what it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mergekit_3h.data.backends.protocol import Backend
from mergekit_3h.data.generation.answers import answered
from mergekit_3h.data.generation.asking import Answerer, Ask, AskAll, Outcome
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.pipeline.opened_models import PipelineModels
from mergekit_3h.data.reading import read_records
from mergekit_3h.data.records import Record

Step = Literal["questions", "answer", "label", "domain", "build"]
STEPS: tuple[Step, ...] = ("questions", "answer", "label", "domain", "build")


@dataclass
class Workplace:
    """What the making of a part may use."""

    journal: Path
    models: PipelineModels
    expect: Callable[[int], object]
    """Hears how many requests are coming."""
    done: Callable[[int], object]
    """Hears how many of them have been answered."""

    def ask(self, model: str) -> AskAll:
        """Answers requests with a model, writing down each in the part's journal."""
        answerer = Answerer(self.journal, self.models.identity(model), self.opener(model), self.done)

        def ask_all(asks: Sequence[Ask]) -> list[Outcome]:
            self.expect(len(asks))
            return answerer.ask_all(asks)

        return ask_all

    def opener(self, model: str) -> Callable[[], Backend]:
        """Opens a model; called only when there is something to ask."""
        return lambda: self.models.backend(model)


Make: TypeAlias = "Callable[[Workplace, StepReport], list[Record]]"


@dataclass(frozen=True)
class PipelinePart:
    """One file of the result. It is made again when its inputs or what it depends on change."""

    step: Step
    name: str
    output: Path
    inputs: tuple[Path, ...]
    depends_on: dict[str, Any]
    make: Make

    def marker(self, folder: Path) -> Path:
        """Says that the part is finished, and what it was made from."""
        return folder / "journal" / f"{self.name}.json"

    def journal(self, folder: Path) -> Path:
        """Every request of the part with its outcome."""
        return folder / "journal" / f"{self.name}.jsonl"


def answering_part(
    step: Step, name: str, asked: Path, output: Path, model: str, identity: dict[str, Any], max_new_tokens: int
) -> PipelinePart:
    """A model's answers to the questions in a file."""

    def make(place: Workplace, report: StepReport) -> list[Record]:
        questions = read_records(asked)
        return answered(questions, model=model, max_new_tokens=max_new_tokens, ask=place.ask(model), report=report)

    return PipelinePart(step, name, output, (asked,), {"model": identity, "max_new_tokens": max_new_tokens}, make)
