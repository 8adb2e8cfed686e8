"""The kinds of metrics, one a file, each settings that can measure; ``contract.py`` says what every kind does."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from mergekit_3h.evaluation.metrics.answer_likelihood import AnswerLikelihood
from mergekit_3h.evaluation.metrics.judged_prompts import JudgedPrompts
from mergekit_3h.evaluation.metrics.lm_eval_task import LmEvalTask
from mergekit_3h.evaluation.metrics.multiple_choice import MultipleChoice

KINDS = ("answer-likelihood", "judged", "lm-eval", "multiple-choice")


def _kind(given: Any) -> str | None:
    return given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)


AnyMetric = Annotated[
    Annotated[AnswerLikelihood, Tag("answer-likelihood")]
    | Annotated[JudgedPrompts, Tag("judged")]
    | Annotated[LmEvalTask, Tag("lm-eval")]
    | Annotated[MultipleChoice, Tag("multiple-choice")],
    Discriminator(_kind),
]
