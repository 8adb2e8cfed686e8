"""ShieldGemma: one raw prompt for each policy, answered Yes (violated) or No."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.guards.contract import Verdict, conversation, unscored
from mergekit_3h.data.prompts import filled, prompt_text
from mergekit_3h.data.records import Record

_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class ShieldGemma:
    """Label: unsafe if any policy is violated, safe if every one was answered No."""

    name: ClassVar[str] = "shieldgemma"
    needs_model: ClassVar[bool] = True

    def __init__(self, prompts: str | None = None, policies: Mapping[str, str] | None = None) -> None:
        self._template = prompt_text("shieldgemma", prompts)
        self._policies = dict(policies or _policies(prompt_text("shieldgemma_policies", prompts)))

    def requests(self, record: Record) -> list[Request]:
        asked, response = conversation(record).strip(), (record.response or "").strip()
        prompts = [
            filled(self._template, prompt=asked, response=response, policy=f'"{name}": {text}')
            for name, text in self._policies.items()
        ]
        return [Request(prompt=prompt, max_new_tokens=8) for prompt in prompts]

    def verdict(self, record: Record, answers: Sequence[str]) -> Verdict:
        raw = "\n".join(answers)
        read = {name: _ANSWER.match(answer) for name, answer in zip(self._policies, answers, strict=True)}
        violated = [name for name, match in read.items() if match and match.group(1).lower() == "yes"]
        unread = [name for name, match in read.items() if not match]
        reason = f"neither Yes nor No for: {', '.join(unread)}" if unread else None
        if violated:
            return Verdict(label="unsafe", category=", ".join(violated), raw=raw, reason=reason)
        return unscored(reason, raw) if reason else Verdict(label="safe", raw=raw)


def _policies(text: str) -> dict[str, str]:
    """Policies from lines ``name: what is forbidden``."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    return {name.strip(): rule.strip() for name, rule in pairs}
