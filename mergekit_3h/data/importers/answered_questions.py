"""Rows of the public sets of questions and instructions with good answers: mathematics, truthfulness, instructions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mergekit_3h.data.importers.cells import CellError, flag, text, text_or_none
from mergekit_3h.data.records import SetName

_CALCULATION = re.compile(r"<<[^<>]*>>")
_RESULT = "####"


def gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    """The worked answer without the marks for a calculator, which no model is to learn."""
    answer = text(row, "answer")
    if _RESULT not in answer:
        raise CellError(
            "answer",
            f"got no line '{_RESULT} RESULT', with which every answer of GSM8K ends; for another table: --set domain "
            "--column prompt=question --column response=answer",
        )
    return {"prompt": text(row, "question"), "response": _CALCULATION.sub("", answer), "set": "domain"}


def truthfulqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """The best of the true answers; for multiple choice the evaluation reads the file itself."""
    return {
        "prompt": text(row, "Question"),
        "response": text(row, "Best Answer"),
        "set": "domain",
        "category": text_or_none(row, "Category"),
    }


def instructions(set_name: SetName) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Instruction, what it is about, and the answer. Nobody vouches for the answer, so it has no label."""

    def fields(row: Mapping[str, Any]) -> dict[str, Any]:
        about = text_or_none(row, "input")
        asked = text(row, "instruction")
        return {
            "prompt": f"{asked}\n\n{about}" if about else asked,
            "response": text_or_none(row, "output"),
            "set": set_name,
        }

    return fields


def bare_instructions(set_name: SetName) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda row: {
        "prompt": text(row, "instructions"),
        "set": set_name,
        "category": text_or_none(row, "tags"),
    }


def halueval_general(row: Mapping[str, Any]) -> dict[str, Any]:
    """A reply in which the annotators found something made up is left out."""
    made_up = "hallucination" in row and flag(row, "hallucination")
    reply = {} if made_up else {"response": text(row, "chatgpt_response")}
    return {"prompt": text(row, "user_query"), "set": "domain", **reply}
