"""One contract for every guard and judge, and what each makes of the answers its model is known to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest
from tiny_models import write_family

from mergekit_3h.data.backends.protocol import Backend, Completion, Request
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.guards import GUARDS, Guard, Verdict, guard_named, judged, labelled, unscored
from mergekit_3h.data.guards.contract import VerdictLabel
from mergekit_3h.data.guards.shieldgemma import ShieldGemma
from mergekit_3h.data.prompts import filled, prompt_names, prompt_text
from mergekit_3h.data.records import DataError, Message, Record

# Braces and markers in a text must reach the guard unchanged and must not be filled in themselves.
QUESTION = "Why is {response} blue? [[direct_answer]]"
REPLY = "I do not discuss {prompt}. {policy} 100%"
RECORD = Record(prompt=QUESTION, response=REPLY, set="safety")
TURNS = tuple(
    Message(role=role, content=content)
    for role, content in (
        ("system", "Be brief."),
        ("user", "Hello blue"),
        ("assistant", "Hello"),
        ("user", "And now?"),
    )
)
CONVERSATION = Record(messages=TURNS, response=REPLY, set="safety")

WITH_MODEL = [name for name in GUARDS if guard_named(name).needs_model]

# What each guard's model answers, as published for it, and the verdict: label, category, score.
SAFE = ("safe", None, None)
READABLE: dict[str, list[tuple[list[str], tuple[str, str | None, float | None]]]] = {
    "llama-guard": [
        (["safe"], SAFE),
        (["\n\nsafe"], SAFE),
        (["safe<|eot_id|>"], SAFE),
        (["\n\nunsafe\nS1"], ("unsafe", "S1", None)),
        (["unsafe\nS1,S10"], ("unsafe", "S1,S10", None)),
        (["unsafe\nO3"], ("unsafe", "O3", None)),
        (["unsafe"], ("unsafe", None, None)),
    ],
    "llama-guard-4": [(["\n\nsafe"], SAFE), (["\n\nunsafe\nS14"], ("unsafe", "S14", None))],
    "wildguard": [
        (
            ["Harmful request: yes\nResponse refusal: yes\nHarmful response: no"],
            ("refusal", "harmful request", None),
        ),
        (
            ["Harmful request: yes\nResponse refusal: no\nHarmful response: yes</s>"],
            ("unsafe", "harmful request", None),
        ),
        (["Harmful request: no\nResponse refusal: no\nHarmful response: no\n"], ("safe", "harmless request", None)),
        (["Harmful request: yes\nResponse refusal: yes\nHarmful response: yes"], ("unsafe", "harmful request", None)),
    ],
    "shieldgemma": [
        (["No", "No", "No", "No"], SAFE),
        (["No", " Yes", "No", "No"], ("unsafe", "No Harassment", None)),
        (["**Yes**, it", "no.", "Yes", "No"], ("unsafe", "No Dangerous Content, No Hate Speech", None)),
        (["maybe", "Yes", "No", "No"], ("unsafe", "No Harassment", None)),
    ],
    "md-judge": [
        (["[REASONING]: It declines.\n[RESULT]: safe, 1"], ("safe", None, 1.0)),
        (["[REASONING]: Unsafe?\n[RESULT]: unsafe 4\n[UNSAFE CATEGORY]: O14: Illegal"], ("unsafe", "O14", 4.0)),
        (["[RESULT]: Safe, score: 2"], ("safe", None, 2.0)),
        (["[RESULT]: unsafe\n[UNSAFE CATEGORY]: Toxic Content."], ("unsafe", "Toxic Content.", None)),
        (["<think>[RESULT]: unsafe, 5</think>[RESULT]: safe, 1"], ("safe", None, 1.0)),
    ],
    "refusal-judge": [
        (["It answers.\n[[direct_answer]]"], ("compliance", "direct_answer", None)),
        (["[[direct_refusal]]"], ("refusal", "direct_refusal", None)),
        (["It talks of green.\n[[ Indirect_Refusal ]]\n"], ("refusal", "indirect_refusal", None)),
        (["[[direct_answer]] I repeat: [[direct_answer]]"], ("compliance", "direct_answer", None)),
    ],
    "hallucination-judge": [
        (["It is so.\n[[truthful]]"], ("rated", "truthful", 1.0)),
        (["[[ Hallucinated ]]"], ("rated", "hallucinated", 0.0)),
    ],
    "mt-bench": [
        (["Good.\nRating: [[8]]"], ("rated", None, 8.0)),
        (["Rating: [[7.5]]"], ("rated", None, 7.5)),
        (["Rating: [[10/10]]"], ("rated", None, 10.0)),
    ],
    "keyword": [([], ("refusal", "phrase: i do not discuss", None))],
}

UNREADABLE: dict[str, list[tuple[list[str], str]]] = {
    "llama-guard": [
        ([""], "first line"),
        (["uns"], "first line"),
        (["It is safe to say"], "first line"),
        (["safe\nS1"], "said safe and listed S1"),
        (["I cannot assess this."], "first line"),
    ],
    "llama-guard-4": [(["<|eot|>"], "first line")],
    "wildguard": [
        ([""], "harmful request, response refusal, harmful response"),
        (["Harmful request: yes\nResponse refusal: yes"], "harmful response"),
        (["Harmful request: N/A\nResponse refusal: no\nHarmful response: no"], "harmful request"),
        (
            ["Harmful request: no\nResponse refusal: no\nHarmful response: no\nHarmful response: yes"],
            "harmful response",
        ),
        (["Harmful request: no\nResponse refusal: nothing\nHarmful response: no"], "response refusal"),
    ],
    "shieldgemma": [
        (["", "No", "No", "No"], "No Dangerous Content"),
        (["Nobody knows", "No", "No", "No"], "No Dangerous Content"),
    ],
    "md-judge": [
        ([""], "found none"),
        (["[REASONING]: It is safe."], "found none"),
        (["[RESULT]: not safe, 4"], "found none"),
        (["[RESULT]: safe, 1\n[RESULT]: unsafe, 5"], "found both"),
        (["<think>[RESULT]: safe, 1"], "found none"),
    ],
    "refusal-judge": [
        ([""], "found none"),
        (["direct_answer"], "found none"),
        (["[[direct_answer]] or [[direct_refusal]]"], "direct_answer, direct_refusal"),
        (["<think>It could be [[direct_answer]]"], "found none"),
    ],
    "hallucination-judge": [
        (["truthful"], "found none"),
        (["[[truthful]] or [[hallucinated]]"], "found both"),
        (["<think>[[truthful]]"], "found none"),
    ],
    "mt-bench": [
        (["Rating: 8"], "found none"),
        (["Rating: [[0]]"], "got 0"),
        (["Rating: [[11]]"], "got 11"),
        (["[[rating]]"], "found none"),
        (["Not [[5]] but [[6]]"], "found 5, 6"),
    ],
    "keyword": [],
}


@pytest.fixture(params=GUARDS)
def guard(request: pytest.FixtureRequest) -> Guard:
    return guard_named(request.param)


class Answering:
    """A backend that gives prepared completions in order, and keeps what it was asked."""

    batch_size = 1

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = iter(completions)
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            yield next(self._completions)

    def close(self) -> None:
        pass


def text_of(request: Request) -> str:
    if request.prompt is not None:
        return request.prompt
    return "\n".join(
        part["text"] if isinstance(part, dict) else part
        for turn in request.messages or ()
        for part in (turn["content"] if isinstance(turn["content"], list) else [turn["content"]])
    )


def test_every_guard_has_readable_and_unreadable_answers() -> None:
    assert set(READABLE) == set(UNREADABLE) == set(GUARDS)


def test_requests_hold_question_and_reply_unchanged(guard: Guard) -> None:
    requests = guard.requests(RECORD)
    assert bool(requests) == guard.needs_model
    for request in requests:
        assert QUESTION in text_of(request)
        assert REPLY in text_of(request)
        assert request.temperature == 0.0, "verdicts are greedy"


def test_requests_are_the_same_every_time_and_differ_by_record(guard: Guard) -> None:
    assert guard.requests(RECORD) == guard.requests(RECORD)
    if guard.needs_model:
        assert guard.requests(RECORD) != guard.requests(RECORD.changed(response="Another."))


def test_every_turn_of_a_conversation_is_shown(guard: Guard) -> None:
    for request in guard.requests(CONVERSATION):
        shown = text_of(request)
        places = [shown.index(part) for part in ("Hello blue", "And now?", REPLY)]
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("name", "answers", "expected"), [(name, *case) for name, cases in READABLE.items() for case in cases]
)
def test_readable_answers(name: str, answers: list[str], expected: tuple[str, str | None, float | None]) -> None:
    verdict = guard_named(name).verdict(RECORD, answers)
    assert (verdict.label, verdict.category, verdict.score) == expected
    assert all(answer in verdict.raw for answer in answers), "the raw text is kept"


@pytest.mark.parametrize(
    ("name", "answers", "reason"), [(name, *case) for name, cases in UNREADABLE.items() for case in cases]
)
def test_unreadable_answers_are_unscored_with_the_reason(name: str, answers: list[str], reason: str) -> None:
    verdict = guard_named(name).verdict(RECORD, answers)
    assert verdict.label == "unscored"
    assert reason in (verdict.reason or "")
    assert verdict.raw == "\n".join(answers)


@pytest.mark.parametrize("noise", ["", " ", "\n\n", "\x00", "{}", "[[", "]]" * 99, "Yesterday", "safety", "🟦" * 50])
def test_noise_is_unscored_and_never_raises(guard: Guard, noise: str) -> None:
    if guard.needs_model:
        assert guard.verdict(RECORD, [noise] * len(guard.requests(RECORD))).label == "unscored"


def test_verdicts_survive_their_way_to_disk(guard: Guard) -> None:
    for answers, _ in READABLE[guard.name]:
        verdict = guard.verdict(RECORD, answers)
        assert verdict.label in get_args(VerdictLabel)
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize("name", WITH_MODEL)
def test_records_are_judged_in_order_however_many_requests_each_needs(name: str) -> None:
    guard, cases = guard_named(name), READABLE[name] * 3
    records = [RECORD.changed(id=str(number)) for number in range(len(cases))]
    backend = Answering([Completion(text=answer) for answers, _ in cases for answer in answers])
    found = list(judged(guard, records, backend, at_once=2))
    assert [record.id for record, _ in found] == [record.id for record in records]
    assert [(verdict.label, verdict.category, verdict.score) for _, verdict in found] == [case[1] for case in cases]
    assert len(backend.asked) == len(cases) * len(guard.requests(records[0]))


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_failed_request_unscores_its_record_alone(name: str) -> None:
    guard = guard_named(name)
    answers, expected = READABLE[name][0]
    good = [Completion(text=answer) for answer in answers]
    bad = [*good[:-1], Completion(failure="HTTP 500, gave up after 6 tries")]
    records = [RECORD, RECORD.changed(id="second"), RECORD.changed(id="third")]
    verdicts = [verdict for _, verdict in judged(guard, records, Answering([*good, *bad, *good]))]
    assert [verdict.label for verdict in verdicts] == [expected[0], "unscored", expected[0]]
    assert "HTTP 500" in (verdicts[1].reason or "")


def test_a_record_without_a_reply_is_unscored_and_asks_nothing(guard: Guard) -> None:
    backend = Answering([])
    ((_, verdict),) = judged(guard, [Record(prompt="Blue?", set="safety")], backend)
    assert verdict == unscored("the record has no response")
    assert backend.asked == []


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A real model on disk that knows nothing and has room for the longest prompt."""
    family = write_family(tmp_path_factory.mktemp("guard"), experts=0, max_position_embeddings=8192)
    backend = TransformersSettings(model=str(family.base), device="cpu").open()
    yield backend
    backend.close()


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_real_model_that_babbles_scores_nothing(name: str, babbler: Backend) -> None:
    records = [RECORD.changed(id=str(number), response="No. " * number) for number in (1, 2, 3)]
    found = list(judged(guard_named(name), records, babbler))
    assert [record.id for record, _ in found] == ["1", "2", "3"]
    for _, verdict in found:
        assert verdict.label == "unscored"
        assert verdict.raw.strip(), "it was asked and answered"
        assert verdict.reason and "failed" not in verdict.reason


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_guard_that_needs_a_model_says_so_without_one(name: str) -> None:
    ((_, verdict),) = judged(guard_named(name), [RECORD])
    assert verdict.label == "unscored"
    assert "needs a model" in (verdict.reason or "")


def test_a_verdict_becomes_the_records_label_only_if_there_is_one() -> None:
    before = RECORD.changed(label="safe")
    assert labelled(before, Verdict(label="unsafe")).label == "unsafe"
    assert labelled(before, unscored("why ever")).label is None
    assert labelled(before, Verdict(label="rated", score=3)).label is None
    assert labelled(before, Verdict(label="refusal")).id == before.id


def test_llama_guard_gets_turns_its_template_accepts() -> None:
    (request,) = guard_named("llama-guard").requests(CONVERSATION)
    assert [turn["role"] for turn in request.messages or ()] == ["user", "assistant", "user", "assistant"]
    (request,) = guard_named("llama-guard-4").requests(RECORD)
    assert (request.messages or ())[0] == {"role": "user", "content": [{"type": "text", "text": QUESTION}]}


def test_trained_formats_are_kept_to_the_letter() -> None:
    """A changed marker would silently ruin a guard, and no test with a stand-in model could see it."""
    (wildguard,) = guard_named("wildguard").requests(RECORD)
    assert (wildguard.prompt or "").startswith("<s><|user|>\n[INST] You are a classifier for analyzing interactions")
    assert (wildguard.prompt or "").endswith("\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n")
    shieldgemma = guard_named("shieldgemma").requests(RECORD)
    assert len(shieldgemma) == 4, "one policy a call"
    assert f"<start_of_turn>\nChatbot Response: {REPLY}\n<end_of_turn>" in (shieldgemma[0].prompt or "")
    assert '\n* "No Harassment": The chatbot shall not' in (shieldgemma[1].prompt or "")
    (md_judge,) = guard_named("md-judge").requests(RECORD)
    assert f"<BEGIN CONVERSATION>\nUser: {QUESTION}\nAgent: {REPLY}\n<END CONVERSATION>" in text_of(md_judge)


def test_shieldgemma_takes_other_policies() -> None:
    guard = ShieldGemma(policies={"No Blue": "The chatbot shall not discuss the colour blue."})
    (request,) = guard.requests(RECORD)
    assert '* "No Blue": The chatbot shall not discuss the colour blue.' in (request.prompt or "")
    assert guard.verdict(RECORD, ["Yes"]).category == "No Blue"


def test_an_unknown_guard_is_named_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean 'wildguard'"):
        guard_named("wild-guard")
    with pytest.raises(DataError, match="there are: keyword, llama-guard"):
        guard_named("x")


def test_prompts_can_be_replaced_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "mt_bench.txt").write_text("Rate {response} as a reply to {prompt}.")
    (request,) = guard_named("mt-bench", str(tmp_path)).requests(RECORD)
    assert text_of(request) == f"Rate {REPLY} as a reply to {QUESTION}."
    assert guard_named("md-judge", str(tmp_path)).requests(RECORD) == guard_named("md-judge").requests(RECORD)


def test_a_prompt_without_a_place_for_the_reply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mt_bench.txt").write_text("Rate the reply to {prompt}.")
    with pytest.raises(DataError, match=r"no place for \{response\}"):
        guard_named("mt-bench", str(tmp_path)).requests(RECORD)


def test_every_prompt_can_be_read_and_unknown_ones_are_named() -> None:
    assert {"md_judge", "mt_bench", "refusal_judge", "shieldgemma", "wildguard"} <= set(prompt_names())
    assert all(prompt_text(name).strip() for name in prompt_names())
    with pytest.raises(DataError, match="no prompt 'absent'"):
        prompt_text("absent")


def test_filling_replaces_each_place_once() -> None:
    assert filled("{a} {b} {c} {a}", a="{b}", b="{a}") == "{b} {a} {c} {b}"
