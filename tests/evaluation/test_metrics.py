"""What each kind of metric computes, against slower computations written in another way."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.records import DataError
from mergekit_3h.errors import ModelError
from mergekit_3h.evaluation.evaluator import Evaluator
from mergekit_3h.evaluation.result import EvaluationResult, read_result
from mergekit_3h.evaluation.subject import EvaluatedModel, subject_in_memory, subject_of
from mergekit_3h.evaluation.suite import read_suite

from .conftest import tiny_suite, write_jsonl, write_suite

CPU = TransformersSettings(model="-", device="cpu", batch_size=3)


def evaluated(subject: EvaluatedModel, suite: Path, folder: Path) -> EvaluationResult:
    ready = read_suite(str(suite))
    ready.require_ready()
    return Evaluator(ready, quiet=True).evaluate(subject, folder / "result.json", folder / "journal")


def one_metric(tmp_path: Path, rows: list[dict[str, Any]], **metric: Any) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    dimensions = {"helpful": {"it": {"data": "rows.jsonl", **metric}}}
    judges = {"phrases": {"guard": "keyword"}}
    return write_suite(tmp_path / "one.yml", {"name": "one", "judges": judges, "dimensions": dimensions})


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """Of each token of the answer, one forward pass for each, in float64."""
    found = []
    for place, token in enumerate(answer):
        logits = model.double()(torch.tensor([prompt + answer[:place]])).logits[0, -1]
        found.append(torch.log_softmax(logits, dim=-1)[token].item())
    model.float()
    return found


def test_likelihood_is_the_mean_over_the_answers_tokens(experts, questions, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite.yml", tiny_suite(questions))
    subject = subject_of(str(experts["helpful"]), CPU)
    result = evaluated(subject, suite, tmp_path)
    rows = [json.loads(line) for line in (questions / "helpful.jsonl").read_text().splitlines()]
    expected = []
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = subject.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = subject.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        full = subject.tokenizer.apply_chat_template(
            [*chat, {"role": "assistant", "content": row["response"]}], tokenize=False
        )
        answer = subject.tokenizer(full, add_special_tokens=False)["input_ids"]
        answer = answer[len(ids) :] if answer[: len(ids)] == ids else None
        if answer is None:  # the template drops the generation prompt: the answer follows it, then the end of the turn
            answer = subject.tokenizer(row["response"], add_special_tokens=False)["input_ids"]
            answer = [*answer, subject.tokenizer.eos_token_id]
        values = log_probability(subject.module, ids, answer)
        expected.append(-math.fsum(values) / len(values))
    metric = result.metrics["helpful-likelihood"]
    # float32 against float64: a few units in the seventh digit of logits around 10
    assert [item.value for item in metric.items] == pytest.approx(expected, abs=1e-4)
    assert metric.score == pytest.approx(sum(expected) / len(expected), abs=1e-4) and metric.better == "lower"


@pytest.mark.parametrize("score", ["accuracy", "accuracy-by-length", "probability"])
def test_multiple_choice_compares_the_choices_likelihoods(experts, questions, tmp_path: Path, score: str) -> None:
    rows = [json.loads(line) for line in (questions / "helpful.jsonl").read_text().splitlines()]
    suite = one_metric(
        tmp_path,
        rows,
        kind="multiple-choice",
        question="{prompt} answer :",
        choices="choices",
        answer="answer",
        score=score,
    )
    subject = subject_of(str(experts["helpful"]), CPU)
    items = evaluated(subject, suite, tmp_path).metrics["it"].items
    for row, item in zip(rows, items, strict=True):
        prompt = subject.tokenizer(f"{row['prompt']} answer :")["input_ids"]
        sums = [
            math.fsum(log_probability(subject.module, prompt, subject.tokenizer(choice)["input_ids"]))
            for choice in row["choices"]
        ]
        weighed = [s / len(c) for s, c in zip(sums, row["choices"], strict=True)] if "length" in score else sums
        assert item.reply == row["choices"][weighed.index(max(weighed))]
        right = row["choices"].index(row["response"])
        expected = float(weighed.index(max(weighed)) == right)
        if score == "probability":
            expected = math.exp(sums[right]) / math.fsum(map(math.exp, sums))
        assert item.value == pytest.approx(expected, abs=1e-5)


def test_right_and_wrong_choices_of_a_table(experts, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "q,good,bad\nfact : two plus two,four,let me think; i will help\nfact : capital of france,paris; four,steal\n"
    )
    metric = {"kind": "multiple-choice", "question": "{q} answer :", "right": "good", "wrong": "bad"}
    suite = {"name": "t", "dimensions": {"helpful": {"it": {"data": "rows.csv", **metric}}}}
    result = evaluated(subject_of(str(experts["helpful"]), CPU), write_suite(tmp_path / "suite.yml", suite), tmp_path)
    assert [(item.reply, item.value) for item in result.metrics["it"].items] == [("four", 1.0), ("paris", 1.0)]


@pytest.mark.parametrize("answer", ["1", "b", "B", "four", 1])
def test_an_answer_is_a_number_a_letter_or_a_text(experts, tmp_path: Path, answer: Any) -> None:
    rows = [{"prompt": "fact : two plus two", "a": "let me think", "b": "four", "answer": answer}]
    choice = {"kind": "multiple-choice", "question": "{prompt} answer :", "choices": ["a", "b"], "answer": "answer"}
    result = evaluated(subject_of(str(experts["helpful"]), CPU), one_metric(tmp_path, rows, **choice), tmp_path)
    assert result.metrics["it"].score == 100.0


def test_replies_are_judged_and_kept(experts, questions, suite_file: Path, tmp_path: Path) -> None:
    result = evaluated(subject_of(str(experts["harmless"]), CPU), suite_file, tmp_path)
    items = result.metrics["refusals"].items
    assert all(item.reply and "i will" in item.reply for item in items)
    assert {item.verdict for item in items} <= {"refusal", "compliance"}
    base = evaluated(subject_of(str(experts["base"]), CPU), suite_file, tmp_path / "base")
    assert base.metrics["refusals"].score == 0.0
    assert [item.id for item in base.metrics["refusals"].items] == [item.id for item in items]


def test_turns_of_a_conversation_are_asked_one_after_the_other(frank, tmp_path: Path) -> None:
    rows = [{"turns": ["Why is the sky blue?", "When is the sky blue?"]}, {"turns": ["Where is the sea blue?"]}]
    suite = one_metric(tmp_path, rows, kind="judged", prompt="{turns}", judge="phrases", good="compliance")
    items = evaluated(subject_of(str(frank), CPU), suite, tmp_path).metrics["it"].items
    assert [item.id.partition("/")[2] for item in items] == ["1", "2", ""]
    assert items[0].reply == "Because light likes it: Why is the s"
    assert items[1].prompt == "Why is the sky blue?\n\nWhen is the sky blue?"


def test_rows_are_chosen_by_value_and_spread_by_limit(experts, tmp_path: Path) -> None:
    rows = [{"prompt": f"fact : two plus two {i}", "response": "four", "kind": "ab"[i % 2]} for i in range(20)]
    suite = one_metric(tmp_path, rows, kind="answer-likelihood", where={"kind": "b"}, limit=5)
    items = evaluated(subject_of(str(experts["helpful"]), CPU), suite, tmp_path).metrics["it"].items
    assert [item.prompt.rpartition(" ")[2] for item in items] == ["1", "5", "9", "13", "17"]


def test_a_module_in_memory_gives_what_its_checkpoint_gives(experts, suite_file: Path, tmp_path: Path) -> None:
    saved = evaluated(subject_of(str(experts["honest"]), CPU), suite_file, tmp_path / "saved")
    loaded = subject_of(str(experts["honest"]), CPU)
    module = loaded.module
    before = module.generation_config
    memory = evaluated(subject_in_memory("honest", module, loaded.tokenizer, CPU), suite_file, tmp_path / "memory")
    assert {name: metric.items for name, metric in memory.metrics.items()} == {
        name: metric.items for name, metric in saved.metrics.items()
    }
    assert module.generation_config is before, "someone else's module goes on as it was"


def test_what_is_known_is_not_computed_again(experts, suite_file: Path, tmp_path: Path) -> None:
    first = evaluated(subject_of(str(experts["honest"]), CPU), suite_file, tmp_path)
    again = subject_of(str(experts["honest"]), CPU)
    again.load = lambda: pytest.fail("the model is not needed")
    second = evaluated(again, suite_file, tmp_path)
    assert second.metrics.keys() == first.metrics.keys()
    for name, metric in second.metrics.items():
        assert metric.model_copy(update={"seconds": 0}) == first.metrics[name].model_copy(update={"seconds": 0})
    other = evaluated(subject_of(str(experts["base"]), CPU), suite_file, tmp_path)
    assert other.metrics["honest-likelihood"].score != first.metrics["honest-likelihood"].score


def test_a_result_comes_back_from_its_file(experts, questions, tmp_path: Path) -> None:
    other = {"kind": "answer-likelihood", "data": str(questions / "honest-often.jsonl")}
    suite = write_suite(tmp_path / "suite.yml", tiny_suite(questions, forgetting={"other": other}))
    result = evaluated(subject_of(str(experts["honest"]), CPU), suite, tmp_path)
    assert read_result(tmp_path / "result.json") == result and result.metrics["other"].dimension is None
    assert result.average.score == pytest.approx(sum(d.score or 0.0 for d in result.dimensions.values()) / 3)
    harmless = result.dimensions["harmless"].score
    parts = [result.metrics[name].score or 0.0 for name in ("harmless-choice", "refusals")]
    assert harmless == pytest.approx(sum(parts) / 2), "the likelihood stands beside the average, not in it"
    assert result.versions["torch"] == torch.__version__ and result.dtype == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["x"]}, r"row 1: the answer 'B' is none of the 1 choices"),
        ({"answer": "Z"}, r"row 1: the answer 'Z' is none of the 3 choices"),
        ({"choices": []}, r"no choice in the column 'choices'"),
        ({"answer": " "}, r"the column 'answer' is empty"),
    ],
)
def test_bad_rows_are_named_before_a_model_is_loaded(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"prompt": "p", "choices": ["a", "b", "c"], "answer": "B", **change}
    choice = {"kind": "multiple-choice", "question": "{prompt}", "choices": "choices", "answer": "answer"}
    with pytest.raises(DataError, match=message):
        read_suite(str(one_metric(tmp_path, [row], **choice))).require_ready()


def test_models_that_cannot_be_evaluated_are_refused(experts, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        subject_of("./nowhere", CPU)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((experts["base"] / name).read_bytes())
    with pytest.raises(ModelError, match="has no tokenizer"):
        subject_of(str(bare), CPU)
    (bare / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="download or save the model again"):
        subject_of(str(bare), CPU)


def test_a_model_that_does_not_load_is_named(experts, tmp_path: Path) -> None:
    """Its files are sound, but the config speaks of a wider model."""
    broken = Path(shutil.copytree(experts["base"], tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(ModelError, match=rf"the model {broken} cannot be loaded on cpu: "):
        _ = subject_of(str(broken), CPU).module
