"""Asking a model for questions in rounds until there are enough: shared by unsafe and by domain questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.generation.asking import Ask, AskAll, Outcome, seed_of
from mergekit_3h.data.generation.parsing import questions_in
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.text import normalised_text

# A call that goes on for ever is cut off and its JSON is then no JSON; 2048 tokens hold 20 long questions.
NO_LIST = "no JSON list in the answer"


def collect_questions(
    quotas: Mapping[str, int],
    prompt_for: Callable[[str, int, int], str],
    *,
    per_call: int,
    max_rounds: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    taken: Iterable[str] = (),
    ask: AskAll,
    report: StepReport,
) -> dict[str, list[str]]:
    """Questions by topic, at most ``quotas[topic]`` of each, none twice and none of those ``taken``.

    ``prompt_for(topic, count, seed)`` is the prompt of one call. A round asks every topic that is short of its quota
    for what is missing; there are at most ``max_rounds``. What is left out, and why, is counted in ``report``.
    """
    collected: dict[str, list[str]] = {topic: [] for topic in quotas}
    seen = {normalised_text(text): "a copy of an example" for text in taken}
    for number in range(max_rounds):
        calls = [
            call
            for topic, quota in quotas.items()
            for call in _calls(topic, quota - len(collected[topic]), per_call, number)
        ]
        if not calls:
            break
        asks: list[Ask] = []
        for topic, name in calls:
            own_seed = seed_of(seed, name)
            request = Request(
                messages=[{"role": "user", "content": prompt_for(topic, per_call, own_seed)}],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=own_seed,
            )
            asks.append(Ask(name, request))
        report.requests += len(asks)
        for (topic, _), outcome in zip(calls, ask(asks), strict=True):
            _sort_in(_texts(outcome, report), collected[topic], quotas[topic], seen, report)
    return collected


def shares(total: int, names: Sequence[str]) -> dict[str, int]:
    """``total`` divided as evenly as possible, the first names taking what is left over."""
    each, over = divmod(total, len(names))
    return {name: each + (place < over) for place, name in enumerate(names)}


def _calls(topic: str, missing: int, per_call: int, number: int) -> list[tuple[str, str]]:
    return [(topic, f"{topic}/{number}/{call}") for call in range(math.ceil(max(0, missing) / per_call))]


def _texts(outcome: Outcome, report: StepReport) -> list[str]:
    if outcome.text is None:
        report.fail(outcome.failure or "")
        return []
    found = questions_in(outcome.text)
    if found is None:
        report.drop(NO_LIST)
        return []
    texts, no_texts = found
    report.drop("not a text", no_texts)
    return texts


def _sort_in(texts: list[str], collected: list[str], quota: int, seen: dict[str, str], report: StepReport) -> None:
    for text in texts:
        normalised = normalised_text(text)
        if normalised in seen:
            report.drop(seen[normalised])
        elif len(collected) >= quota:
            report.drop("more than needed")
        else:
            seen[normalised] = "a duplicate"
            collected.append(text)
