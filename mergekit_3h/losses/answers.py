"""Records as token ids with the answer's part marked, batched by length in a fixed order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mergekit_3h.data.records import DataError
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import LocatedRecord

log = logging.getLogger(__name__)

_DATE = "26 Jul 2024"
"""Templates of the Llama-3 family tell the model the date, and without a given one the present: a loss would depend on
the day. This is the date that those templates fall back to themselves."""


@dataclass(frozen=True)
class Answer:
    """One record as the model sees it: ``ids[prompt_length:]`` is what it should have answered."""

    ids: tuple[int, ...]
    prompt_length: int
    weight: float


@dataclass(frozen=True)
class Batch:
    """Answers of one set, padded on the right. ``order`` are their positions in the set."""

    set_name: str
    order: tuple[int, ...]
    ids: Tensor
    attention: Tensor
    is_answer: Tensor
    """Marks the tokens of ``ids`` that belong to the answer."""

    @property
    def places(self) -> Tensor:
        """Where the logits predict a token of some record's answer: one place before it."""
        return self.is_answer[:, 1:].any(dim=0).nonzero().squeeze(1)


def tokenized(
    records: Sequence[LocatedRecord], tokenizer: Any, options: LossOptions, context: int | None
) -> list[Answer]:
    """Every record as token ids. One that is longer than the context is an error, never cut short."""
    limits = [limit for limit in (context, options.max_length) if limit is not None]
    limit = min(limits) if limits else None
    answers: list[Answer] = []
    for located in records:
        answer = _tokenized(located, tokenizer, options)
        if limit is not None and len(answer.ids) > limit:
            origin = "option max_length" if limit == options.max_length else "the models' context"
            raise DataError(
                f"{located}: {len(answer.ids)} tokens, more than the {limit} of {origin}. Shorten or remove the "
                "record; a cut answer would teach the wrong thing."
            )
        answers.append(answer)
    return answers


def _tokenized(located: LocatedRecord, tokenizer: Any, options: LossOptions) -> Answer:
    uses_template = options.chat_template == "auto" and bool(getattr(tokenizer, "chat_template", None))
    prompt, full = (_by_template if uses_template else _plainly)(located, tokenizer)
    if len(full) == len(prompt):
        raise DataError(f"{located}: the response has no tokens; expected some text to learn from")
    if not prompt:
        raise DataError(f"{located}: the prompt has no tokens, so the first token of the answer has no context")
    return Answer(tuple(full), len(prompt), located.record.weight)


def _by_template(located: LocatedRecord, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The conversation in the models' own form. What the template puts after the end of the turn is left out.

    Some templates render a finished turn in another way than the beginning of an answer (they drop reasoning, or
    trim), so that the prompt is no prefix. Then the answer follows the prompt as the model would generate it.
    """
    record = located.record
    prompt = _rendered(tokenizer, located, record.chat(), add_generation_prompt=True)
    full = _rendered(tokenizer, located, record.chat(with_response=True), add_generation_prompt=False)
    if full[: len(prompt)] != prompt or len(full) == len(prompt):
        log.debug("%s: the prompt's tokens are no prefix of the conversation's; the answer is appended", located)
        return prompt, prompt + _answer_alone(record.response or "", tokenizer)
    return prompt, full[: _end_of_turn(full, len(prompt), tokenizer)]


def _rendered(tokenizer: Any, located: LocatedRecord, chat: list[dict[str, str]], **how: Any) -> list[int]:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, date_string=_DATE, **how)
    except TemplateError as error:
        raise DataError(
            f"{located}: the chat template rejects the conversation ({error}). Change the record, or set "
            "chat_template to plain."
        ) from None
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_of_turn(full: list[int], start: int, tokenizer: Any) -> int:
    """Position after the last end-of-sequence token of the answer, or the end if there is none."""
    ends = [i for i in range(start, len(full)) if full[i] == tokenizer.eos_token_id]
    return ends[-1] + 1 if ends and ends[-1] > start else len(full)


def _plainly(located: LocatedRecord, tokenizer: Any) -> tuple[list[int], list[int]]:
    turns = [turn["content"] for turn in located.record.chat()]
    prompt = cast("list[int]", tokenizer("\n".join(turns) + "\n")["input_ids"])
    if len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
        prompt = prompt[:-1]
    return prompt, prompt + _answer_alone(located.record.response or "", tokenizer)


def _answer_alone(response: str, tokenizer: Any) -> list[int]:
    ids = cast("list[int]", tokenizer(response, add_special_tokens=False)["input_ids"])
    ends = tokenizer.eos_token_id
    return ids if ends is None or not ids or ids[-1] == ends else [*ids, ends]


def batched(answers: Mapping[str, Sequence[Answer]], size: int) -> list[Batch]:
    """Batches of similar length, the longest first, so that memory runs out at the beginning if at all."""
    batches: list[Batch] = []
    for set_name, members in answers.items():
        order = sorted(range(len(members)), key=lambda i: (-len(members[i].ids), i))
        for begin in range(0, len(order), size):
            batches.append(_padded(set_name, order[begin : begin + size], members))
    return batches


def _padded(set_name: str, order: Sequence[int], members: Sequence[Answer]) -> Batch:
    width = max(len(members[i].ids) for i in order)
    ids = torch.zeros(len(order), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    is_answer = torch.zeros(len(order), width, dtype=torch.bool)
    for row, i in enumerate(order):
        answer = members[i]
        length = len(answer.ids)
        ids[row, :length] = torch.tensor(answer.ids)
        attention[row, :length] = 1
        is_answer[row, answer.prompt_length : length] = True
    return Batch(set_name, tuple(order), ids, attention, is_answer)
