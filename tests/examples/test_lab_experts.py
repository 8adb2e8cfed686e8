"""The laboratory's data and experts, on a tiny model in place of the real one, which is downloaded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.losses.answers import Answer

WORDS = ["car", "hat", "door", "cup"]


def answers(count: int) -> list[Answer]:
    draw = random.Random(1)
    return [Answer(tuple(draw.choices(range(5, 300), k=draw.randint(6, 20))), 3, 1.0) for _ in range(count)]


def test_no_question_is_in_two_parts(lab: Callable[[str], ModuleType], public: Path, cache: Path) -> None:
    data = lab("data")
    records = lab("experts").Workshop(public, cache, "cpu").records
    assert list(records) == [*data.DIMENSIONS, *data.BESIDES]
    for parts in records.values():
        asked = [{record.question for record in records} for records in parts.values()]
        assert all(asked) and sum(map(len, asked)) == len(set().union(*asked))
    categories = [{record.category for record in part} for part in records["honest"].values()]
    assert sum(map(len, categories)) == len(set().union(*categories)) == 12


def test_harmless_lessons_are_refusals_and_a_quarter_of_look_alikes(
    lab: Callable[[str], ModuleType], public: Path, cache: Path
) -> None:
    records = lab("experts").Workshop(public, cache, "cpu").records
    is_refusal = lab("data").is_refusal
    train = records["harmless"]["train"]
    look_alikes = [record for record in train if record.set == "overrefusal"]
    assert len(look_alikes) == pytest.approx(len(train) / 4, abs=1)
    assert not any(is_refusal(record) for record in look_alikes)
    assert all(is_refusal(record) for record in train if record.set == "safety")
    assert all(is_refusal(record) for part in ("validation", "test") for record in records["harmless"][part])


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("One. Two! And thr", "One. Two!"),
        ("Do this:\n\n1. Stop.\n2", "Do this:\n\n1. Stop."),
        ("Do this:\n\n1.", ""),
        ("Version 1.2 is out. N", "Version 1.2 is out."),
    ],
)
def test_replies_end_with_a_whole_sentence(lab: Callable[[str], ModuleType], reply: str, kept: str) -> None:
    data = lab("data")
    prompt = data.Record(prompt="What?", set="overrefusal")
    assert [record.response for record in data.answered([prompt], [reply])] == ([kept] if kept else [])


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_training_that_was_killed_ends_where_it_would_have(
    lab: Callable[[str], ModuleType], tmp_path: Path, weights: str
) -> None:
    training = lab("training")

    class Interrupted(training.AnswerLessons):
        left = 14

        def loss(self, model: Any, drawn: Any) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().loss(model, drawn)

    recipe = training.Recipe(weights, 20, 1e-3)
    lessons = answers(100)
    whole = training.train(tiny_model("llama"), training.AnswerLessons(lessons), recipe, 3, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny_model("llama"), Interrupted(lessons), recipe, 3, tmp_path / "part.pt")
    resumed = Interrupted(lessons)
    resumed.left = 10  # steps 11 to 20: what was kept at step 10 is not done again
    part = training.train(tiny_model("llama"), resumed, recipe, 3, tmp_path / "part.pt")
    for name, expected in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], expected), name


def test_every_lesson_comes_once_before_any_comes_again(lab: Callable[[str], ModuleType]) -> None:
    training = lab("training")
    lessons = [Answer((i, i + 1, i + 2), 1, 1.0) for i in range(160)]
    draws = training.AnswerLessons(lessons).draws(0)
    seen = [lesson.ids[0] for _ in range(20) for lesson in next(draws)]
    assert sorted(seen) == list(range(160))


def test_one_training_in_place_of_three_sees_their_lessons_as_often(lab: Callable[[str], ModuleType]) -> None:
    """Of the first dimension some twice, of the last a part: as its experts do."""
    training = lab("training")
    sizes = {1: 100, 2: 160, 3: 400}
    every = [training.AnswerLessons([Answer((d, i, 0), 1, 1.0) for i in range(n)]) for d, n in sizes.items()]
    recipe = training.Recipe("full", 20, 1e-3)
    lessons, longer = training.together(every, recipe, seed=5)
    assert longer == training.Recipe("full", 60, 1e-3)
    alone = Counter(lesson.ids for one in every for drawn in islice(one.draws(5), 20) for lesson in drawn)
    steps = list(islice(lessons.draws(5), 60))
    assert Counter(lesson.ids for drawn in steps for lesson in drawn) == alone
    assert alone.most_common(1)[0][1] == 2 and len(alone) == 100 + 160 + 160
    assert sum(len({lesson.ids[0] for lesson in drawn}) == 3 for drawn in steps) > 30  # they meet within a step


@pytest.mark.parametrize("kind", ["full_short", "lora_moderate", "full_dpo"])
def test_the_mixture_is_trained_when_it_is_asked_for(
    lab: Callable[[str], ModuleType], public: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Killed, it goes on at the last tenth step, as an expert does."""
    experts, training = lab("experts"), lab("training")
    monkeypatch.setitem(training.RECIPES, kind, replace(training.RECIPES[kind], steps=5))
    lessons = lab("preferences").PreferenceLessons if kind == "full_dpo" else training.AnswerLessons
    monkeypatch.setattr(
        experts.Workshop, "_instead", lambda self, dimension, records: {one.question: "So it is." for one in records}
    )
    loss, calls = lessons.loss, []

    def interrupted(self: Any, model: Any, drawn: Any) -> torch.Tensor:
        calls.append(len(drawn))
        if len(calls) == 13:
            raise KeyboardInterrupt
        return loss(self, model, drawn)

    monkeypatch.setattr(lessons, "loss", interrupted)
    workshop = experts.Workshop(public, cache, "cpu")
    with pytest.raises(KeyboardInterrupt):
        workshop.mixture(kind, 7)
    stem = workshop.mixture(kind, 7)
    assert len(calls) == 13 + 5 and set(calls) == {8}  # 15 steps: 11 to 15 once more
    made = sorted(path.name for path in stem.parent.iterdir())
    assert made == ["mixture-adapter"] * (kind == "lora_moderate") + ["mixture-bf16", "mixture-float32"]
    workshop.mixture(kind, 7)
    assert len(calls) == 13 + 5


def test_preferences_are_learnt_from_the_margin_over_the_base(lab: Callable[[str], ModuleType]) -> None:
    """Against the formula by hand, token by token, on another model than the base."""
    preferences = lab("preferences")
    base, model = tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    chosen, rejected = answers(6), answers(12)[6:]
    pairs = preferences.preferences(base, chosen, rejected)
    loss = preferences.PreferenceLessons(pairs).loss(model, pairs)

    def log_likelihood(judge: Any, answer: Answer) -> torch.Tensor:
        logits = judge(input_ids=torch.tensor([answer.ids])).logits[0].double().log_softmax(-1)
        places = range(answer.prompt_length, len(answer.ids))
        return sum(logits[place - 1, answer.ids[place]] for place in places)

    def margin(judge: Any, i: int) -> torch.Tensor:
        return log_likelihood(judge, chosen[i]) - log_likelihood(judge, rejected[i])

    expected = mean(
        -torch.log(torch.sigmoid(preferences.BETA * (margin(model, i) - margin(base, i)))).item() for i in range(6)
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)  # float32 log-likelihoods of up to 20 tokens


def test_the_loss_of_preferences_is_that_of_trl(lab: Callable[[str], ModuleType], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    preferences, short_answers = lab("preferences"), lab("data").short_answers
    record = lab("data").Record
    tokenizer, base, model = tiny_tokenizer(), tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    rows = [(f"is the {word} red", f"no the {word} is not", f"yes it {word} is red and green") for word in WORDS]
    chosen, rejected = (
        short_answers([record(set="domain", prompt=row[0], response=row[i]) for row in rows], tokenizer) for i in (1, 2)
    )
    pairs = preferences.preferences(base, chosen, rejected)
    own = preferences.PreferenceLessons(pairs).loss(model, pairs)
    turns = [
        [{"role": role, "content": text} for role, text in zip(("user", "assistant"), (row[0], row[i]), strict=True)]
        for row in rows
        for i in (1, 2)
    ]
    data = Dataset.from_dict(
        {
            "prompt": [turn[:1] for turn in turns[::2]],
            "chosen": [turn[1:] for turn in turns[::2]],
            "rejected": [turn[1:] for turn in turns[1::2]],
        }
    )
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=preferences.BETA,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(model=model, ref_model=base, args=config, train_dataset=data, processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    assert own.item() == pytest.approx(trainer.compute_loss(model, batch).item(), abs=1e-4)
