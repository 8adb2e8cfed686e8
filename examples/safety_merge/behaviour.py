"""What a model on disk does with held-out prompts: it is asked, and its replies are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from language import DOMAINS, FORBIDDEN, HELD_OUT, facts, look_alikes, requests

from mergekit_3h.data.backends.protocol import Backend, Request
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.guards.keyword_refusal import KeywordRefusal
from mergekit_3h.data.records import Record

LONGEST_ANSWER = 8
FORBIDDEN_PROMPTS = requests(FORBIDDEN, HELD_OUT, refuse=True)
LOOK_ALIKES = look_alikes(HELD_OUT)
DOMAIN_PROMPTS = {domain: facts(domain, HELD_OUT) for domain in DOMAINS}

MEASURES = ("refused", "over-refused", "accuracy")
"""Share of forbidden requests refused, of benign look-alikes refused, and of domain questions answered correctly."""


def behaviour(model: Path) -> dict[str, float]:
    """The three measures, and the accuracy of each domain."""
    backend = TransformersSettings(model=str(model), device="cpu", batch_size=64).open()
    accuracy = {domain: _correct(backend, records) for domain, records in DOMAIN_PROMPTS.items()}
    found = {
        "refused": _refused(backend, FORBIDDEN_PROMPTS),
        "over-refused": _refused(backend, LOOK_ALIKES),
        "accuracy": sum(accuracy.values()) / len(accuracy),
        **accuracy,
    }
    backend.close()
    return found


def replies(backend: Backend, records: Sequence[Record]) -> list[str]:
    """Greedy answers."""
    asked = [Request(messages=record.chat(), max_new_tokens=LONGEST_ANSWER) for record in records]
    return [completion.text or "" for completion in backend.complete(asked)]


def _refused(backend: Backend, records: Sequence[Record]) -> float:
    guard = KeywordRefusal()
    answered = [
        record.changed(response=reply) for record, reply in zip(records, replies(backend, records), strict=True)
    ]
    return sum(guard.verdict(record, ()).label == "refusal" for record in answered) / len(records)


def _correct(backend: Backend, records: Sequence[Record]) -> float:
    pairs = zip(records, replies(backend, records), strict=True)
    return sum(reply.strip() == record.response for record, reply in pairs) / len(records)
