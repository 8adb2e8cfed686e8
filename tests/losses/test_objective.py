"""The loss counts answer tokens only, whatever the batching, and in the form the models know."""

from __future__ import annotations

import pytest
import torch
from search.training import domain_records, safety_records
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.data.records import Record
from mergekit_3h.losses.answers import batched, tokenized
from mergekit_3h.losses.objective import Objective, Part
from mergekit_3h.losses.records import in_memory
from mergekit_3h.search import SearchOptions
from mergekit_3h.search.runner import measurement

RECORDS = {
    "safety": [*safety_records()[:5], Record(set="safety", prompt="how", response="no", weight=3.0)],
    "domain": domain_records()[:4],
}


def answers_of(records=RECORDS, tokenizer=None, **options: object):
    tokenizer, chosen = tokenizer or tiny_tokenizer(), SearchOptions(**options)
    return {name: tokenized(in_memory(members), tokenizer, chosen, 256) for name, members in records.items()}


def one(record: Record, tokenizer=None, **options: object):
    return answers_of({"x": [record]}, tokenizer, **options)["x"][0]


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_equals_transformers_own_loss_record_by_record(template: str) -> None:
    """Oracle: labels of -100 on the prompt, one record at a time without padding."""
    model = tiny_model("llama").eval()
    tokenizer = tiny_tokenizer()
    losses = Objective(answers_of(chat_template=template), 4).losses(model).by_set
    for name, members in RECORDS.items():
        total, weights = 0.0, 0.0
        for record in members:
            if template == "plain":
                prompt = tokenizer(record.prompt + "\n").input_ids
                ids = prompt + tokenizer(record.response).input_ids + [tokenizer.eos_token_id]
            else:
                prompt = tokenizer.apply_chat_template(record.chat(), add_generation_prompt=True).input_ids
                ids = tokenizer.apply_chat_template(record.chat(with_response=True)).input_ids
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            total, weights = total + record.weight * float(loss), weights + record.weight
        # float32 sums in another order, with and without padding
        assert losses[name] == pytest.approx(total / weights, rel=1e-5)


def test_batch_size_does_not_matter() -> None:
    model, answers = tiny_model("llama").eval(), answers_of()
    expected = Objective(answers, 1).losses(model).by_set
    for size in (2, 3, 100):
        assert Objective(answers, size).losses(model).by_set == pytest.approx(expected, rel=1e-5)


def test_the_prompt_does_not_count_but_is_read() -> None:
    """Shuffling logits over the prompt changes nothing; changing the prompt does."""
    model = tiny_model("llama").eval()
    first = Record(set="domain", prompt="where is the fox", response="in the den")
    other = Record(set="domain", prompt="where is the dog", response="in the den")
    losses = [
        Objective(answers_of({"domain": [record]}), 1).losses(model).by_set["domain"] for record in (first, other)
    ]
    assert losses[0] != losses[1]
    answer = one(first)
    (batch,) = batched({"domain": [answer]}, 1)
    assert int(batch.is_answer.sum()) == len(answer.ids) - answer.prompt_length
    assert not bool(batch.is_answer[0, : answer.prompt_length].any())


def test_the_template_is_rendered_with_the_answer_after_the_generation_prompt() -> None:
    tokenizer = tiny_tokenizer()
    answer = one(Record(set="domain", prompt="hello", response="good day"), tokenizer)
    assert tokenizer.decode(answer.ids[: answer.prompt_length]) == "<|user|>hello<|end|><|assistant|>"
    assert tokenizer.decode(answer.ids[answer.prompt_length :]) == "good day<|end|>"


def test_earlier_turns_are_part_of_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = one(Record.model_validate({"set": "domain", "messages": messages, "response": "farewell"}), tokenizer)
    assert "hello<|end|><|user|>bye" in tokenizer.decode(answer.ids[: answer.prompt_length])
    assert tokenizer.decode(answer.ids[answer.prompt_length :]) == "farewell<|end|>"


def test_what_the_template_adds_after_the_end_of_the_turn_is_left_out() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    answer = one(Record(set="domain", prompt="hello", response="good day"), tokenizer)
    assert tokenizer.decode(answer.ids[answer.prompt_length :]) == "good day<|end|>"


def test_a_template_whose_prompt_is_no_prefix() -> None:
    """As with models whose generation prompt opens a block of reasoning that finished turns do not have."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|>think:"
    )
    answer = one(Record(set="domain", prompt="hello", response="good day"), tokenizer)
    assert tokenizer.decode(answer.ids[: answer.prompt_length]).endswith("<|assistant|>think:")
    assert tokenizer.decode(answer.ids[answer.prompt_length :]) == "good day<|end|>"


def test_without_a_template_the_form_is_plain() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    record = Record(set="domain", prompt="hello", response="good day")
    assert one(record, tokenizer) == one(record, chat_template="plain")
    assert tokenizer.decode(one(record, tokenizer).ids) == "hello\ngood day<|end|>"


def test_batches_are_fixed_and_hold_every_record_once() -> None:
    answers = answers_of()
    first, second = batched(answers, 3), batched(answers, 3)
    assert [batch.order for batch in first] == [batch.order for batch in second]
    for name, members in answers.items():
        seen = [i for batch in first if batch.set_name == name for i in batch.order]
        assert sorted(seen) == list(range(len(members)))
        lengths = [len(members[i].ids) for i in seen]
        assert lengths == sorted(lengths, reverse=True)


def test_bfloat16_losses_are_near_those_of_float32() -> None:
    answers = answers_of()
    exact = Objective(answers, 4).losses(tiny_model("llama").eval()).by_set
    rounded = Objective(answers, 4).losses(tiny_model("llama", dtype=torch.bfloat16).eval()).by_set
    # bf16 has 8 bits: 0.4 % of a logit; means over tokens come out closer
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact


def test_a_template_that_tells_the_date_gives_the_same_loss_every_day() -> None:
    tokenizer = tiny_tokenizer()
    today = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer.chat_template = today + "{{ date_string }}" + tokenizer.chat_template
    answer = one(Record(set="domain", prompt="hello", response="good day"), tokenizer)
    assert tokenizer.decode(answer.ids).startswith("26 Jul 2024")


def test_infinities_of_both_signs_are_a_failed_candidate() -> None:
    """As float16 gives them in different batches; exact sums of such a column do not exist."""
    objective = Objective(answers_of(), 4)
    infinite = [float("inf"), float("-inf")] * len(objective.batches)
    parts = [Part(i, [1.0] * len(batch.order), [infinite[i], 0.5]) for i, batch in enumerate(objective.batches)]
    losses = objective.total(parts)
    assert "the gradient of the safety set is not finite" in losses.not_finite()
    assert measurement(losses, 0.0).failure == losses.not_finite()
    losses = objective.total([Part(part.batch, [infinite[part.batch] for _ in part.losses], None) for part in parts])
    assert "the loss of the safety set is nan" in measurement(losses, 0.0).failure
