"""The one tokenizer that models must share for their losses to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from mergekit_3h.data.records import DataError


def shared_tokenizer(tokenizers: Mapping[str, Any], chat_template: str) -> Any:
    """The tokenizer that all models agree on, given by the models' labels (None: the model has none).

    The vocabularies must be equal. A model without a chat template takes the others' one.
    """
    there = {label: tokenizer for label, tokenizer in tokenizers.items() if tokenizer is not None}
    if not there:
        raise DataError(f"none of the models {', '.join(tokenizers)} has a tokenizer; expected at least one")
    _require_equal_vocabularies(there)
    if chat_template == "plain":
        return next(iter(there.values()))
    templated = {label: tokenizer for label, tokenizer in there.items() if tokenizer.chat_template}
    _require_equal(templated, lambda tokenizer: tokenizer.chat_template)
    return next(iter(templated.values()), next(iter(there.values())))


def _require_equal_vocabularies(tokenizers: Mapping[str, Any]) -> None:
    (first, reference), *others = tokenizers.items()
    expected = cast("dict[str, int]", reference.get_vocab())
    for label, tokenizer in others:
        vocabulary = cast("dict[str, int]", tokenizer.get_vocab())
        if vocabulary == expected:
            continue
        different = sorted(token for token in {*expected, *vocabulary} if expected.get(token) != vocabulary.get(token))
        raise DataError(
            f"models {first!r} and {label!r} have different tokenizers: {len(expected)} and {len(vocabulary)} tokens, "
            f"{len(different)} of them differ, for example {different[:3]}. Losses and weights can only be compared "
            "with one vocabulary; merge models that share their base's."
        )


def _require_equal(tokenizers: Mapping[str, Any], quality: Callable[[Any], object]) -> None:
    if not tokenizers:
        return
    (first, reference), *others = tokenizers.items()
    for label, tokenizer in others:
        if quality(tokenizer) != quality(reference):
            raise DataError(
                f"models {first!r} and {label!r} have different chat templates, so their losses cannot be compared. "
                "Give them the same template, or set chat_template to plain."
            )
