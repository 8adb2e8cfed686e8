"""The record: what it accepts, what its errors name, and its derived id."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mergekit_3h.data.records import Message, Record, problems_of
from mergekit_3h.data.text import normalised_text, plain_text


def problems(line: str) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as error:
        Record.model_validate_json(line)
    return [(problem.field, problem.message) for problem in problems_of(error.value, 7, Record.model_fields)]


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        ('{"prompt": "a"}', "set", "required"),
        ('{"set": "safety"}', "prompt/messages", "got neither"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "set": "safety"}', "prompt/messages", "both"),
        ('{"prompt": " ", "set": "safety"}', "prompt", "blank"),
        ('{"prompt": "a", "set": "safty"}', "set", "'safty'"),
        ('{"prompt": "a", "set": "safety", "lable": "safe"}', "lable", "did you mean 'label'?"),
        ('{"prompt": "a", "set": "safety", "label": "ok"}', "label", "'ok'"),
        ('{"prompt": "a", "set": "safety", "weight": -1}', "weight", "-1"),
        ('{"prompt": "a", "set": "safety", "weight": NaN}', "weight", "finite"),
        ('{"messages": [], "set": "safety"}', "messages", "at least one"),
        ('{"messages": [{"role": "usr", "content": "b"}], "set": "safety"}', "messages[0].role", "'usr'"),
        ('{"messages": [{"role": "assistant", "content": "b"}], "set": "safety"}', "messages", "'response'"),
        ('{"prompt": "a", "set": "safety"', "(whole line)", "not JSON"),
        ('["a"]', "(whole line)", "object"),
    ],
)
def test_a_bad_line_names_the_field_and_what_is_wrong(line: str, field: str, says: str) -> None:
    ((named, message),) = problems(line)
    assert named == field
    assert says in message


def test_all_bad_fields_of_a_line_are_named() -> None:
    found = problems('{"prompt": "a", "set": "x", "label": "y", "weight": "z"}')
    assert [field for field, _ in found] == ["set", "label", "weight"]


def test_the_id_follows_from_the_content_and_survives_a_verdict() -> None:
    record = Record(prompt="Why is the sky blue?", set="safety")
    assert record.id == Record(prompt="Why is the sky blue?", set="safety").id
    # Written down once: an id that changes between releases would make every finished file be answered again.
    assert record.id == "27fc2783123770113057"
    different = [
        Record(prompt="Why is the sky red?", set="safety"),
        Record(prompt="Why is the sky blue?", set="domain"),
        Record(prompt="Why is the sky blue?", set="safety", response="It is not."),
        Record(prompt="Why is the sky blue?", set="safety", source="another"),
        Record(messages=(Message(role="user", content="Why is the sky blue?"),), set="safety"),
    ]
    assert len({record.id, *(other.id for other in different)}) == 6
    assert record.changed(label="refusal", category="colours").id == record.id


def test_an_explicit_id_is_kept_and_may_be_a_number() -> None:
    assert Record.model_validate_json('{"id": 12, "prompt": "a", "set": "domain"}').id == "12"


def test_changes_are_validated() -> None:
    record = Record(prompt="Why?", set="safety")
    with pytest.raises(ValidationError):
        record.changed(label="maybe")


def test_chat_is_what_templates_take() -> None:
    record = Record(prompt="Why?", response="Because.", set="domain")
    assert record.chat() == [{"role": "user", "content": "Why?"}]
    assert record.chat(with_response=True)[-1] == {"role": "assistant", "content": "Because."}
    turns = tuple(Message(role=role, content=role) for role in ("system", "user", "assistant", "user"))
    several = Record(messages=turns, set="domain")
    assert [turn["role"] for turn in several.chat(with_response=True)] == ["system", "user", "assistant", "user"]
    assert several.question == "user"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Don\u2019t ask!", "dont  ask"),
        ("\uff22\uff2c\uff35\uff25 sky", "blue sky"),
        ("blue-green", "Blue \u2013 green?"),
        ("straße", "STRASSE"),
    ],
)
def test_normalised_texts_are_equal_where_only_the_spelling_differs(first: str, second: str) -> None:
    assert normalised_text(first) == normalised_text(second)


def test_normalising_keeps_what_matters() -> None:
    assert normalised_text("blue sky") != normalised_text("bluesky")
    assert normalised_text("???") != normalised_text("!!!")
    assert plain_text("\u201cI  can\u2019t\u201d") == '"i can\'t"'
