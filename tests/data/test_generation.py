"""Questions out of prose, quotas and rounds, the choice of replies: all that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mergekit_3h.data.generation.answers import answer_id, answered
from mergekit_3h.data.generation.asking import Ask, Outcome, key_of, seed_of, unfinished
from mergekit_3h.data.generation.collecting import collect_questions, shares
from mergekit_3h.data.generation.domain import DomainSettings, domain_questions, read_examples
from mergekit_3h.data.generation.parsing import questions_in
from mergekit_3h.data.generation.questions import QuestionSettings, read_categories, unsafe_questions
from mergekit_3h.data.generation.reports import StepReport, short_reason
from mergekit_3h.data.generation.selection import SafetySettings, safety_set
from mergekit_3h.data.records import DataError, Record

# --- questions in what a model wrote


@pytest.mark.parametrize(
    ("answer", "questions", "no_texts"),
    [
        ('["a?", "b?"]', ["a?", "b?"], 0),
        ('Sure! Here you go:\n```json\n["a?", "b?"]\n```\nAnything else?', ["a?", "b?"], 0),
        ('{"questions": [{"question": "a?"}, {"prompt": " b? "}]}', ["a?", "b?"], 0),
        ('{"topic": "sky", "mine": ["a?"]}', ["a?"], 0),
        ('{"question": "a?"}\n{"question": "b?"}', ["a?", "b?"], 0),
        ('["a?", 3, null, {"x": 1}, "", ["b?"]]', ["a?"], 5),
        ('A list [like this] or {that}: ["a?"] [1]', ["a?"], 0),
        ('Example: ["x"]. Real ones: ["a?", "b?"]', ["a?", "b?"], 0),
        ('["say \\"blue\\" [now]", "caf\\u00e9?"]', ['say "blue" [now]', "café?"], 0),
        ("[]", [], 0),
    ],
)
def test_lists_are_found_in_prose(answer: str, questions: list[str], no_texts: int) -> None:
    assert questions_in(answer) == (questions, no_texts)


@pytest.mark.parametrize("answer", ["", "1. a?\n2. b?", '["a?", "b?', "[a?, b?]", "{'question': 'a?'}", "[" * 5000])
def test_what_is_no_json_is_no_list(answer: str) -> None:
    assert questions_in(answer) is None


# --- rounds


def replying(reply: Callable[[str, int], str | None]) -> tuple[Any, list[Ask]]:
    """An ``ask`` answered by ``reply(prompt, n)`` for its n-th request, None being a failure; and what it was asked."""
    asked: list[Ask] = []

    def ask(asks: Sequence[Ask]) -> list[Outcome]:
        outcomes = []
        for one in asks:
            text = reply(str((one.request.messages or [{}])[0]["content"]), len(asked))
            asked.append(one)
            outcomes.append(Outcome(id=one.id, text=text, failure=None if text is not None else "out of order: 7"))
        return outcomes

    return ask, asked


def collect(quotas: dict[str, int], reply: Callable[[str, int], str | None], **changes: Any) -> Any:
    ask, asked = replying(reply)
    report = StepReport(step="questions")
    options = {"per_call": 2, "max_rounds": 3, "max_new_tokens": 9, "temperature": 0.8, "seed": 1, **changes}
    collected = collect_questions(
        quotas, lambda topic, count, seed: f"{topic} {count}", ask=ask, report=report, **options
    )
    return collected, report, asked


def test_a_topic_is_asked_for_what_it_is_short_of() -> None:
    collected, report, asked = collect({"sky": 3, "sea": 2}, lambda prompt, n: json.dumps([f"{n} a?", f"{n} b?"]))
    assert collected == {"sky": ["0 a?", "0 b?", "1 a?"], "sea": ["2 a?", "2 b?"]}
    assert report.dropped == {"more than needed": 1}
    assert report.requests == 3
    assert [one.id for one in asked] == ["sky/0/0", "sky/0/1", "sea/0/0"]
    assert len({one.request.seed for one in asked}) == 3
    assert all(one.request.temperature == 0.8 and one.request.max_new_tokens == 9 for one in asked)


def test_drops_and_failures_are_counted_and_made_up_for() -> None:
    replies = ["no list here", '["Why blue?", "why BLUE", 7]', None, '["How blue?", "Why blue?"]', '["When blue?"]']
    collected, report, asked = collect({"sky": 4}, lambda prompt, n: replies[n] if n < 5 else "[]", max_rounds=4)
    assert collected == {"sky": ["Why blue?", "How blue?", "When blue?"]}
    assert report.dropped == {"no JSON list in the answer": 1, "a duplicate": 2, "not a text": 1}
    assert report.failed == {"out of order": 1}
    assert report.requests == len(asked) == 6


def test_rounds_are_bounded() -> None:
    collected, report, asked = collect({"sky": 10}, lambda prompt, n: '["Why blue?"]', per_call=10)
    assert collected == {"sky": ["Why blue?"]}
    assert len(asked) == 3
    assert report.dropped == {"a duplicate": 2}


def test_the_seed_of_a_call_depends_on_the_run_and_the_call() -> None:
    assert seed_of(1, "sky/0/0") == seed_of(1, "sky/0/0") != seed_of(2, "sky/0/0") != seed_of(2, "sky/0/1")
    assert 0 <= max(seed_of(0, number) for number in range(200)) < 2**31


def test_shares_are_even() -> None:
    assert shares(11, ["a", "b", "c"]) == {"a": 4, "b": 4, "c": 3}


def test_unsafe_questions_know_their_category_and_generator(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("# mild\nsky: the blue of the sky\n\nsea\n")
    ask, asked = replying(lambda prompt, n: json.dumps([f"{n}?"]))
    records = unsafe_questions(
        QuestionSettings(model="writer", count=2, per_call=1),
        read_categories(str(topics), None),
        prompts=None,
        seed=0,
        source="writer",
        ask=ask,
        report=StepReport(step="questions"),
    )
    assert [(one.prompt, one.category, one.source, one.set) for one in records] == [
        ("0?", "sky", "writer", "safety"),
        ("1?", "sea", "writer", "safety"),
    ]
    first = (asked[0].request.messages or [{}])[0]["content"]
    assert "Topic: sky" in first and "the blue of the sky" in first and "list of 1 strings" in first
    assert "{" not in first


def test_the_packages_categories_have_names_and_descriptions() -> None:
    topics = read_categories(None, None)
    assert len(topics) >= 10
    assert all(description != name for name, description in topics.items())


def test_missing_and_empty_category_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file"):
        read_categories(str(tmp_path / "nowhere.txt"), None)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no categories"):
        read_categories(str(tmp_path / "empty.txt"), None)


# --- domain


def test_copies_of_the_examples_are_dropped_and_three_are_shown() -> None:
    examples = [f"What is {number} plus 1?" for number in range(9)]
    ask, asked = replying(
        lambda prompt, n: json.dumps(["what is 3 PLUS 1", f"What is {n} plus 7?", "What is 0 plus 7?"])
    )
    report = StepReport(step="domain")
    records = domain_questions(
        DomainSettings(experts={"sums": "-"}, per_call=1),
        examples,
        expert="sums",
        count=3,
        prompts=None,
        seed=0,
        ask=ask,
        report=report,
    )
    assert [one.prompt for one in records] == [f"What is {number} plus 7?" for number in range(3)]
    assert all((one.set, one.category, one.source) == ("domain", "sums", "sums") for one in records)
    assert report.dropped == {"a copy of an example": 3, "a duplicate": 3}
    shown = {str((one.request.messages or [{}])[0]["content"]) for one in asked}
    assert len(shown) == 3  # every call draws its own
    assert all(sum(example in prompt for example in examples) == 3 for prompt in shown)


@pytest.mark.parametrize("name", ["sums.txt", "sums.jsonl"])
def test_examples_come_as_text_or_records(tmp_path: Path, name: str) -> None:
    examples = ["a?", "b?", "c?"]
    lines = [Record(id="", prompt=text, set="domain").model_dump_json() for text in examples]
    (tmp_path / name).write_text("\n".join(lines if name.endswith("jsonl") else ["# sums", *examples]) + "\n")
    assert read_examples("sums", str(tmp_path / name)) == examples


def test_too_few_examples_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "sums.txt").write_text("a?\nb?\n")
    with pytest.raises(DataError, match="got 2 example questions, expected at least 3"):
        read_examples("sums", str(tmp_path / "sums.txt"))
    with pytest.raises(DataError, match="no such file"):
        read_examples("sums", str(tmp_path / "nowhere.txt"))


# --- answers and the choice among them

QUESTIONS = [Record(id=f"q{number}", prompt=f"Why is {number} blue?", set="safety") for number in range(60)]


def replies(labels: dict[str, str | None]) -> list[Record]:
    return [
        question.changed(id=answer_id(question, model), response=f"by {model}", source=model, label=label)
        for question in QUESTIONS
        for model, label in labels.items()
    ]


def test_failed_answers_are_left_out_and_counted() -> None:
    ask, asked = replying(lambda prompt, n: None if n % 3 == 0 else " It is. ")
    report = StepReport(step="answer/base")
    records = answered(QUESTIONS[:6], model="base", max_new_tokens=512, ask=ask, report=report)
    assert [one.id for one in records] == ["q1:base", "q2:base", "q4:base", "q5:base"]
    assert all(one.response == "It is." and one.source == "base" for one in records)
    assert report.failed == {"out of order": 2} and report.kept == 4 and report.failed_share == 1 / 3
    assert all(one.request.temperature == 0 and one.request.max_new_tokens == 512 for one in asked)


def test_one_accepted_reply_is_picked_at_random_with_the_seed() -> None:
    labelled = replies({"base": "refusal", "chat": "safe", "bio": "unsafe", "odd": None})
    models = ["base", "chat", "bio", "odd"]
    first = safety_set(QUESTIONS, labelled, models, SafetySettings(), 7, StepReport(step="safety"))
    again = safety_set(QUESTIONS, labelled, models, SafetySettings(), 7, StepReport(step="safety"))
    other = safety_set(QUESTIONS, labelled, models, SafetySettings(), 8, StepReport(step="safety"))
    assert first == again != other
    assert [one.id for one in first] == [one.id for one in QUESTIONS]
    counts = {model: sum(one.source == model for one in first) for model in models}
    assert counts["bio"] == counts["odd"] == 0
    # 60 fair coin tosses stay between 15 and 45 with probability 0.9999; the seed is fixed.
    assert 15 <= counts["base"] <= 45


def test_the_pick_for_a_question_does_not_depend_on_the_others() -> None:
    labelled = replies({"base": "refusal", "chat": "safe"})
    every = safety_set(QUESTIONS, labelled, ["base", "chat"], SafetySettings(), 7, StepReport(step="safety"))
    some = safety_set(QUESTIONS[30:], labelled, ["base", "chat"], SafetySettings(), 7, StepReport(step="safety"))
    assert some == every[30:]


def test_questions_without_an_accepted_reply_are_dropped_and_counted() -> None:
    labelled = replies({"base": "refusal", "bio": "compliance"})
    labelled = [
        one.changed(label=None)
        if one.id.startswith("q1:")
        else one.changed(label="unsafe")
        if one.id == "q2:base"
        else one
        for one in labelled
        if not one.id.startswith("q0:")
    ]
    report = StepReport(step="safety")
    chosen = safety_set(QUESTIONS, labelled, ["base", "bio"], SafetySettings(), 0, report)
    assert [one.id for one in chosen] == [one.id for one in QUESTIONS[3:]]
    assert report.dropped == {"no model answered": 1, "no reply has a verdict": 1, "no accepted reply": 1}


def test_accept_and_count_are_options() -> None:
    labelled = replies({"base": "refusal", "chat": "safe"})
    report = StepReport(step="safety")
    settings = SafetySettings(accept=("safe",), count=20)
    chosen = safety_set(QUESTIONS, labelled, ["base", "chat"], settings, 3, report)
    assert {one.source for one in chosen} == {"chat"}
    assert len(chosen) == 20 and report.dropped == {"more than needed": 40}
    assert chosen != safety_set(QUESTIONS, labelled, ["base", "chat"], settings, 4, StepReport(step="safety"))


# --- names and groups


def test_a_group_begun_is_done_again_as_a_whole() -> None:
    finished = {0, 1, 2, 4, 9}
    assert list(unfinished(range(11), 3, finished.__contains__)) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert list(unfinished(range(11), 1, finished.__contains__)) == [3, 5, 6, 7, 8, 10]


def test_a_journal_line_counts_for_the_same_request_only() -> None:
    assert key_of("q1", "model a", {"seed": 1}) == key_of("q1", "model a", {"seed": 1})
    assert len({key_of("q1", model, {"seed": seed}) for model in "ab" for seed in range(3)}) == 6


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("the server answers 500: it broke (after 3 tries)", "the server answers 500"),
        ("no answer within 2 s (after 3 tries)", "no answer within 2 s"),
        ("the request failed: no answer within 2 s (after 3 tries)", "no answer within 2 s"),
        ("", ""),
    ],
)
def test_reasons_are_counted_by_what_they_share(reason: str, short: str) -> None:
    assert short_reason(reason) == short
