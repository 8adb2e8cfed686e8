"""MT-Bench single-answer grading: a general chat model rates a reply from 1 to 10."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.guards.contract import Verdict, conversation, unscored, visible
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.records import Record

_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")


class MTBench:
    """Label rated, score 1 to 10: how good a reply is, not how safe."""

    name: ClassVar[str] = "mt-bench"
    needs_model: ClassVar[bool] = True

    def __init__(self, prompts: str | None = None) -> None:
        self._template = prompt_text("mt_bench", prompts)

    def requests(self, record: Record) -> list[Request]:
        prompt = filled(self._template, prompt=conversation(record), response=record.response or "")
        return [Request(messages=[{"role": "user", "content": prompt}], max_new_tokens=1024)]

    def verdict(self, record: Record, answers: Sequence[str]) -> Verdict:
        raw = answers[0]
        ratings = {float(found) for found in _RATING.findall(visible(raw))}
        if len(ratings) != 1:
            found = ", ".join(f"{rating:g}" for rating in sorted(ratings)) or "none"
            return unscored(f"expected one rating like [[7]], found {found}", raw)
        score = ratings.pop()
        if not 1.0 <= score <= 10.0:
            return unscored(f"expected a rating from 1 to 10, got {score:g}", raw)
        return Verdict(label="rated", score=score, raw=raw)
