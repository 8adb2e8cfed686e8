"""What the experts learn and are judged on: public data from the user's folder, divided once and for all.

| dimension | learnt from | divided by |
|---|---|---|
| helpful | GSM8K, worked answers | train from its training file, validation and test from its test file |
| honest | TruthfulQA, best answers | category: no category is in two parts |
| harmless | safety instructions of Safety-Tuned LLaMAs that were really refused | question, near-duplicates together |

Besides these there are *look-alikes*, safe prompts that look unsafe (XSTest, I-Alpaca) with the base's own answers:
they are in the harmless lessons, and on held-out ones it shows what refusing costs; and *everyday* questions
(HaluEval), which nobody is trained on.
"""

from __future__ import annotations

import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mergekit_3h.data.guards.keyword_refusal import KeywordRefusal
from mergekit_3h.data.importers import Import
from mergekit_3h.data.records import Record
from mergekit_3h.data.splits import split
from mergekit_3h.losses.answers import Answer, tokenized
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import in_memory

DIMENSIONS = ("helpful", "honest", "harmless")
BESIDES = ("look-alikes", "everyday")
"""What is measured beside the three dimensions and tuned on by nobody."""

SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
LONGEST = 160
"""Tokens of a question with its answer; longer ones are left out, since two CPU cores have to do."""

LOOK_ALIKE_SHARE = 0.25
"""Of the harmless lessons: enough that the expert does not learn to refuse whatever it is asked. A heuristic."""

NEAR_DUPLICATES = 0.8
FILES = (
    "gsm8k_train_2500.jsonl",
    "gsm8k_test.jsonl",
    "TruthfulQA.csv",
    "safety_only_data_Instructions.json",
    "xstest_prompts.csv",
    "I-Alpaca.json",
    "halueval_general_no.jsonl",
)

Parts = dict[str, list[Record]]
"""Records by part: train, validation, test."""


def read_all(folder: Path, look_alikes: Sequence[Record]) -> dict[str, Parts]:
    """Every dimension's parts, and those of what is measured besides."""
    divided = split(look_alikes, SHARES, by="exact")
    harmless = _harmless(folder)
    harmless["train"] += _share_of(divided["train"], LOOK_ALIKE_SHARE, harmless["train"])
    return {
        "helpful": _helpful(folder),
        "honest": _honest(folder),
        "harmless": harmless,
        "look-alikes": divided,
        "everyday": split(_everyday(folder), SHARES),
    }


def require_files(folder: Path) -> None:
    """End with a sentence unless everything that is needed is there."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(
            f"--data {folder}: {', '.join(missing)} not found. The lab reads these files as their authors publish "
            "them; the README beside this script says where each comes from."
        )


def _helpful(folder: Path) -> Parts:
    """With the marks for a calculator, as published: a form to learn, so that few lessons show."""
    columns = {"prompt": "question", "response": "answer"}
    train, held_out = (
        list(Import(folder / name, mapping=columns, set_name="domain", source="gsm8k"))
        for name in ("gsm8k_train_2500.jsonl", "gsm8k_test.jsonl")
    )
    rest = SHARES["validation"] + SHARES["test"]
    return {"train": train, **split(held_out, {part: SHARES[part] / rest for part in ("validation", "test")})}


def _honest(folder: Path) -> Parts:
    """Categories go whole, the largest first, to the part that lacks most."""
    by_category: defaultdict[str, list[Record]] = defaultdict(list)
    records = list(Import(folder / "TruthfulQA.csv", format="truthfulqa"))
    for record in records:
        by_category[record.category or ""].append(record)
    parts: Parts = {part: [] for part in SHARES}
    for _, members in sorted(by_category.items(), key=lambda item: (-len(item[1]), item[0])):
        lacking = max(SHARES, key=lambda part: SHARES[part] - len(parts[part]) / len(records))
        parts[lacking] += members
    return parts


def _harmless(folder: Path) -> Parts:
    """Only what was refused: half of the file's replies comply in part, and would teach that."""
    records = Import(folder / "safety_only_data_Instructions.json", format="safety-tuned-llamas")
    return split([record for record in records if is_refusal(record)], SHARES, near_duplicates=NEAR_DUPLICATES)


def _everyday(folder: Path) -> list[Record]:
    return list(Import(folder / "halueval_general_no.jsonl", format="halueval-general"))


def safe_prompts(folder: Path) -> list[Record]:
    """Prompts without answers that a good model does not refuse."""
    look_alikes = [record for record in Import(folder / "xstest_prompts.csv") if record.set == "overrefusal"]
    return look_alikes + list(Import(folder / "I-Alpaca.json", set_name="overrefusal", source="i-alpaca"))


def answered(prompts: Iterable[Record], replies: Iterable[str]) -> list[Record]:
    """Prompts with their replies up to the last whole sentence; refused ones and those without one are left out."""
    pairs = zip(prompts, replies, strict=True)
    records = [prompt.changed(response=whole) for prompt, reply in pairs if (whole := _whole_sentences(reply))]
    return [record for record in records if not is_refusal(record)]


def false_answers(folder: Path) -> dict[str, str]:
    """A common mistake for every question of TruthfulQA."""
    columns = {"prompt": "Question", "response": "Incorrect Answers"}
    records = Import(folder / "TruthfulQA.csv", mapping=columns, set_name="domain")
    return {record.question: (record.response or "").split(";")[0].strip() for record in records}


def is_refusal(record: Record) -> bool:
    return KeywordRefusal().verdict(record, ()).label == "refusal"


def _whole_sentences(text: str) -> str:
    """A point after a digit ends none: it numbers the next entry of a list."""
    ends = [found.end() for found in re.finditer(r"[^\d\s.!?][.!?]+(?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else ""


def _share_of(others: Sequence[Record], share: float, records: Sequence[Record]) -> list[Record]:
    """So many of the others, some several times, that they are this share of the whole."""
    wanted = round(len(records) * share / (1 - share))
    return [others[i % len(others)] for i in range(wanted)] if others else []


def short_records(records: Sequence[Record], tokenizer: Any, most: int | None = None) -> list[Record]:
    """The records of no more than ``LONGEST`` tokens; ``most`` of them, drawn always alike."""
    short = [record for record, answer in zip(records, _tokenized(records, tokenizer), strict=True) if _fits(answer)]
    if most is None or most >= len(short):
        return short
    return random.Random(0).sample(short, most)


def short_answers(records: Sequence[Record], tokenizer: Any) -> list[Answer]:
    """The same records, all of them, as token ids."""
    return [answer for answer in _tokenized(records, tokenizer) if _fits(answer)]


def _fits(answer: Answer) -> bool:
    return len(answer.ids) <= LONGEST


def _tokenized(records: Sequence[Record], tokenizer: Any) -> list[Answer]:
    return tokenized(in_memory(records), tokenizer, LossOptions(), None)
