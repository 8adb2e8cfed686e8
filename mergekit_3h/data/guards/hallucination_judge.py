"""A general chat model as judge of hallucination, for HaluEval-Wild: does the reply claim what is not so?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.guards.contract import Verdict, conversation, unscored, visible
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.records import Record

_CLASS = re.compile(r"\[\[\s*(hallucinated|truthful)\s*\]\]", re.IGNORECASE)


class HallucinationJudge:
    """Label rated: 1 for a reply without hallucination, 0 for one with. "I do not know" claims nothing."""

    name: ClassVar[str] = "hallucination-judge"
    needs_model: ClassVar[bool] = True

    def __init__(self, prompts: str | None = None) -> None:
        self._template = prompt_text("hallucination_judge", prompts)

    def requests(self, record: Record) -> list[Request]:
        prompt = filled(self._template, prompt=conversation(record), response=record.response or "")
        return [Request(messages=[{"role": "user", "content": prompt}], max_new_tokens=512)]

    def verdict(self, record: Record, answers: Sequence[str]) -> Verdict:
        raw = answers[0]
        classes = {found.lower() for found in _CLASS.findall(visible(raw))}
        if len(classes) != 1:
            found = "both classes" if classes else "none"
            return unscored(f"expected [[truthful]] or [[hallucinated]], found {found}", raw)
        kind = classes.pop()
        return Verdict(label="rated", score=float(kind == "truthful"), category=kind, raw=raw)
