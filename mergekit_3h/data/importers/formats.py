"""What each data set's rows mean: one function a format, from a row to a record.

Two rules hold for all of them. A reply that the data set calls unsafe or untrue is left out, and its prompt kept, so
that it can be answered anew. A text that was written as an attacker's goal (JailbreakBench's ``Target``) or as the
worse answer (``rejected``) is never a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from mergekit_3h.data.importers.answered_questions import (
    bare_instructions,
    gsm8k,
    halueval_general,
    instructions,
    truthfulqa,
)
from mergekit_3h.data.importers.cells import CellError, flag, text, text_or_none, true_names, which
from mergekit_3h.data.records import SetName

# Fields of a record.
Fields: TypeAlias = "dict[str, Any]"
Row: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True)
class Format:
    """A data set's columns and what becomes of its rows.

    ``columns`` identify it, ``columns_any`` (at least one, if given) too. Where two data sets have the same columns,
    ``in_file_name`` is what the name of this one's file contains.
    """

    name: str
    description: str
    columns: frozenset[str]
    fields: Callable[[Row], Fields]
    columns_any: frozenset[str] = frozenset()
    in_file_name: str = ""
    no_other_columns: bool = False
    """Whether the file has exactly these columns, because ``columns`` alone would fit too much .."""
    columns_besides: frozenset[str] = frozenset()
    """.. except that it may have these, too."""
    leaves_out_bad: bool = False
    """Whether a record without a reply is one whose reply the data set calls unsafe or untrue."""

    def fits(self, columns: frozenset[str], file_name: str) -> bool:
        """Whether a file with these columns and this name can be of this format."""
        if self.no_other_columns and not columns <= self.columns | self.columns_besides:
            return False
        any_there = not self.columns_any or bool(self.columns_any & columns)
        return self.columns <= columns and any_there and self.in_file_name in file_name.lower()

    @property
    def specificity(self) -> tuple[int, int]:
        """The larger, the less likely that the format fits by chance."""
        return len(self.columns) + bool(self.columns_any), len(self.in_file_name)


def _own(row: Row) -> Fields:
    return {name: value for name, value in row.items() if value is not None and value != ""}


def _beavertails(row: Row) -> Fields:
    fields: Fields = {
        "prompt": text(row, "prompt"),
        "set": "safety",
        "category": ",".join(true_names(row, "category")) or None,
    }
    safe = flag(row, "is_safe")
    return {**fields, "response": text(row, "response"), "label": "safe"} if safe else fields


def _beavertails_evaluation(row: Row) -> Fields:
    return {"prompt": text(row, "prompt"), "set": "safety", "category": text_or_none(row, "category")}


def _pku_saferlhf(row: Row) -> Fields:
    harms = [name for number in (0, 1) for name in true_names(row, f"response_{number}_harm_category")]
    fields: Fields = {
        "prompt": text(row, "prompt"),
        "set": "safety",
        "category": ",".join(dict.fromkeys(harms)) or None,
    }
    safe = [flag(row, "is_response_0_safe"), flag(row, "is_response_1_safe")]
    safer = which(row, "safer_response_id")
    return {**fields, "response": text(row, f"response_{safer}"), "label": "safe"} if safe[safer] else fields


def _salad(row: Row) -> Fields:
    return {"prompt": text(row, "question"), "set": "safety", "category": text_or_none(row, "1-category")}


def _or_bench(set_name: SetName) -> Callable[[Row], Fields]:
    def fields(row: Row) -> Fields:
        return {"prompt": text(row, "prompt"), "set": set_name, "category": text_or_none(row, "category")}

    return fields


def _halueval_wild(row: Row) -> Fields:
    return {
        "prompt": text(row, "query"),
        "response": text_or_none(row, "ref_answer"),
        "set": "domain",
        "category": text_or_none(row, "query_type"),
    }


def _xstest(row: Row) -> Fields:
    """Safe prompts test over-refusal; their unsafe contrasts (types ``contrast_...``) are ordinary unsafe prompts."""
    kind = text(row, "type")
    label = text_or_none(row, "label") or ("unsafe" if kind.startswith("contrast_") else "safe")
    if label not in ("safe", "unsafe"):
        raise CellError("label", f"got {label!r}, expected 'safe' or 'unsafe'")
    set_name = "overrefusal" if label == "safe" else "safety"
    return {"prompt": text(row, "prompt"), "set": set_name, "category": kind}


def _jailbreakbench(set_name: SetName) -> Callable[[Row], Fields]:
    def fields(row: Row) -> Fields:
        return {"prompt": text(row, "Goal"), "set": set_name, "category": text_or_none(row, "Category")}

    return fields


def _ultrafeedback(row: Row) -> Fields:
    """``chosen`` is the reply, or the whole conversation with the reply last."""
    chosen = row.get("chosen")
    if not isinstance(chosen, list):
        return {"prompt": text(row, "prompt"), "response": text(row, "chosen"), "set": "domain"}
    turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in _turns(cast("list[Any]", chosen))]
    if not turns or turns[-1]["role"] != "assistant":
        raise CellError("chosen", "expected a conversation that ends with the assistant's turn")
    fields: Fields = {"response": turns[-1]["content"], "set": "domain"}
    if len(turns) <= 2:
        return {**fields, "prompt": text(row, "prompt")}
    return {**fields, "messages": turns[:-1]}


def _turns(given: list[Any]) -> list[Mapping[str, Any]]:
    turns = [cast("Mapping[str, Any]", turn) for turn in given if isinstance(turn, Mapping)]
    if len(turns) != len(given) or any("role" not in turn or "content" not in turn for turn in turns):
        raise CellError("chosen", "expected a list of messages with role and content")
    return turns


def _format(
    name: str,
    description: str,
    columns: str,
    fields: Callable[[Row], Fields],
    columns_any: str = "",
    in_file_name: str = "",
    no_other_columns: bool = False,
    leaves_out_bad: bool = False,
    columns_besides: str = "",
) -> Format:
    names = columns.split("|") if "|" in columns else columns.split()
    identifying, either = frozenset(names), frozenset(columns_any.split())
    return Format(
        name,
        description,
        identifying,
        fields,
        either,
        in_file_name,
        no_other_columns,
        frozenset(columns_besides.split()),
        leaves_out_bad,
    )


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        _format("own", "this package's records", "set", _own, "prompt messages"),
        _format("beavertails", "BeaverTails", "prompt response category is_safe", _beavertails, leaves_out_bad=True),
        _format(
            "beavertails-evaluation",
            "BeaverTails-Evaluation",
            "prompt category category_id",
            _beavertails_evaluation,
        ),
        _format(
            "pku-saferlhf",
            "PKU-SafeRLHF",
            "prompt response_0 response_1 is_response_0_safe is_response_1_safe safer_response_id",
            _pku_saferlhf,
            leaves_out_bad=True,
        ),
        _format("salad", "SALAD-Bench base set", "qid question", _salad),
        _format(
            "or-bench",
            "OR-Bench, its seemingly toxic prompts",
            "prompt category",
            _or_bench("overrefusal"),
            no_other_columns=True,
        ),
        _format(
            "or-bench-toxic",
            "OR-Bench, its toxic prompts",
            "prompt category",
            _or_bench("safety"),
            in_file_name="toxic",
            no_other_columns=True,
        ),
        _format("halueval-wild", "HaluEval-Wild", "id query query_type ref_answer", _halueval_wild),
        _format("xstest", "XSTest", "prompt type", _xstest, "label focus"),
        _format(
            "jailbreakbench",
            "JailbreakBench, harmful behaviours",
            "Goal Target Behavior Category",
            _jailbreakbench("safety"),
        ),
        _format(
            "jailbreakbench-benign",
            "JailbreakBench, benign behaviours",
            "Goal Target Behavior Category",
            _jailbreakbench("overrefusal"),
            in_file_name="benign",
        ),
        _format("gsm8k", "GSM8K", "question answer", gsm8k, no_other_columns=True),
        _format(
            "truthfulqa",
            "TruthfulQA, its best answers",
            "Question|Best Answer|Correct Answers|Incorrect Answers",
            truthfulqa,
        ),
        _format(
            "alpaca",
            "instructions in the form of Alpaca",
            "instruction input output",
            instructions("domain"),
            no_other_columns=True,
        ),
        _format(
            "safety-tuned-llamas",
            "Safety-Tuned LLaMAs, unsafe instructions with answers",
            "instruction input output",
            instructions("safety"),
            in_file_name="safety",
            no_other_columns=True,
        ),
        _format(
            "safety-tuned-llamas-prompts",
            "Safety-Tuned LLaMAs, unsafe instructions",
            "instructions",
            bare_instructions("safety"),
            no_other_columns=True,
            columns_besides="tags",
        ),
        _format(
            "safety-tuned-llamas-harmless",
            "Safety-Tuned LLaMAs, harmless instructions",
            "instructions",
            bare_instructions("domain"),
            in_file_name="alpaca",
            no_other_columns=True,
            columns_besides="tags",
        ),
        _format(
            "halueval-general",
            "HaluEval, ordinary questions",
            "user_query chatgpt_response",
            halueval_general,
            leaves_out_bad=True,
        ),
        _format("ultrafeedback", "UltraFeedback and other preference pairs", "prompt chosen rejected", _ultrafeedback),
    )
}
