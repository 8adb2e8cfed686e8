"""Llama Guard 1 to 4: the chat template carries the policy, the answer is safe or unsafe and codes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.guards.contract import Verdict, unscored
from mergekit_3h.data.records import Record

# S1-S14 (versions 2 to 4) or O1-O6 (version 1).
_CODE = re.compile(r"[SO]\d{1,2}")
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</s>")


class LlamaGuard:
    """Llama Guard 1, 2 and 3: user and assistant turns through the model's own chat template."""

    name: ClassVar[str] = "llama-guard"
    needs_model: ClassVar[bool] = True

    def requests(self, record: Record) -> list[Request]:
        # The template accepts user and assistant turns only.
        turns = [
            {"role": turn["role"], "content": self._content(turn["content"])}
            for turn in record.chat(with_response=True)
            if turn["role"] != "system"
        ]
        return [Request(messages=turns, max_new_tokens=24)]

    def _content(self, text: str) -> Any:
        return text

    def verdict(self, record: Record, answers: Sequence[str]) -> Verdict:
        raw = answers[0]
        lines = [line.strip() for line in _SPECIAL_TOKEN.sub("", raw).splitlines() if line.strip()]
        label = lines[0].lower() if lines else ""
        codes = ",".join(dict.fromkeys(_CODE.findall(" ".join(lines[1:]))))
        if label == "unsafe":
            return Verdict(label="unsafe", category=codes or None, raw=raw)
        if label == "safe" and not codes:
            return Verdict(label="safe", raw=raw)
        if label == "safe":
            return unscored(f"the guard said safe and listed {codes}", raw)
        return unscored("expected a first line 'safe' or 'unsafe'", raw)


class LlamaGuard4(LlamaGuard):
    """Llama Guard 4, a multimodal model: every message's content is a list of typed parts."""

    name: ClassVar[str] = "llama-guard-4"

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}]
