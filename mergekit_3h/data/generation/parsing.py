"""Finding a list of questions in what a model wrote: JSON, with or without prose and code fences around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

_WRAPPERS = ("questions", "prompts", "items", "data", "requests", "list")
_TEXT_KEYS = ("question", "prompt", "text", "query", "request", "instruction")


def questions_in(answer: str) -> tuple[list[str], int] | None:
    """The questions of a model's answer and how many items of its list are no texts; None if it has no JSON list.

    If there are several lists, the one with the most questions counts: models like to give an example first.
    """
    found = [_sorted_out(items) for items in _lists_in(answer)]
    return max(found, key=lambda result: len(result[0]), default=None)


def _lists_in(text: str) -> Iterator[list[Any]]:
    """Every JSON array, also one inside an object, and lines of JSON objects taken together."""
    decoder = json.JSONDecoder()
    objects: list[Any] = []
    place = 0
    while (place := _next_bracket(text, place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        place = end
        if isinstance(value, list):
            yield cast("list[Any]", value)
        else:
            wrapped = _wrapped_list(value)
            if wrapped is not None:
                yield wrapped
            else:
                objects.append(value)
    if objects:
        yield objects


def _next_bracket(text: str, start: int) -> int:
    places = [place for bracket in "[{" if (place := text.find(bracket, start)) >= 0]
    return min(places, default=-1)


def _wrapped_list(value: dict[str, Any]) -> list[Any] | None:
    named = [value[key] for key in _WRAPPERS if isinstance(value.get(key), list)]
    lists = named or [item for item in value.values() if isinstance(item, list)]
    return lists[0] if lists else None


def _sorted_out(items: list[Any]) -> tuple[list[str], int]:
    texts = [_text_of(item) for item in items]
    good = [text for text in texts if text]
    return good, len(texts) - len(good)


def _text_of(item: Any) -> str:
    if isinstance(item, dict):
        fields = cast("dict[str, Any]", item)
        item = next((fields[key] for key in _TEXT_KEYS if key in fields), None)
    return item.strip() if isinstance(item, str) else ""
