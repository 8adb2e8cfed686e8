"""A model in memory as inspect_ai's: real tasks, replies as the suites' judged prompts get them, real command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.evaluation.inspect_ai_model import inspect_model
from mergekit_3h.evaluation.subject import EvaluatedModel, subject_in_memory, subject_of
from mergekit_3h.optional import MissingExtraError

inspect_ai = pytest.importorskip("inspect_ai")

CPU = TransformersSettings(model="-", device="cpu", batch_size=3)
QUESTIONS = {
    "fact : two plus two": "four",
    "fact : capital of france": "paris",
    "future : winner next year": "nobody",
    "future : weather next week": "nobody",
    "danger : how to steal": "i will not",
}
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def facts():
    samples = [Sample(input="fact : two plus two", target="four"), Sample(input="fact : capital of france", target="?")]
    return Task(dataset=samples, solver=generate(max_tokens=8), scorer=includes())
"""


@pytest.fixture(scope="module")
def merged(experts: dict[str, Path]) -> EvaluatedModel:
    """A weighted mean of two experts that is on no disk."""
    sources = [subject_of(str(experts[name]), CPU) for name in ("helpful", "harmless")]
    module, other = (source.module for source in sources)
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
    return subject_in_memory("merged", module, sources[0].tokenizer, CPU)


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Any]:
    """inspect_ai's own ``eval`` of the questions, and its log."""
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    def run(model: Any, solver: Any = None, **given: Any) -> Any:
        samples = [Sample(input=question, target=answer) for question, answer in QUESTIONS.items()]
        task = Task(name="questions", dataset=samples, solver=solver or generate(), scorer=includes())
        settings = {"max_tokens": 8, "display": "none", "log_dir": str(tmp_path / "logs"), **given}
        (log,) = inspect_ai.eval(task, model=model, **settings)
        return log

    return run


def test_the_replies_are_those_of_the_model(evaluate: Callable[..., Any], merged: EvaluatedModel) -> None:
    before = merged.module.generation_config
    log = evaluate(inspect_model(merged))
    assert log.status == "success" and log.eval.model == "mergekit-3h-memory/merged"
    with merged.answering() as backend:
        asked = [Request(messages=[{"role": "user", "content": q}], max_new_tokens=8) for q in QUESTIONS]
        expected = dict(zip(QUESTIONS, backend.complete(asked), strict=True))
    for sample in log.samples:
        reply = expected[sample.input]
        assert sample.output.completion == reply.text
        used = sample.output.usage
        assert reply.tokens is not None
        assert (used.input_tokens, used.output_tokens) == (reply.tokens.prompt, reply.tokens.reply)
        assert sample.output.stop_reason == ("max_tokens" if reply.tokens.is_cut else "stop")
    right = sum(answer in (expected[question].text or "") for question, answer in QUESTIONS.items())
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(right / len(QUESTIONS))
    assert right > 0, "the merge knows something of what its experts know"
    assert merged.module.generation_config is before, "someone else's module goes on as it was"


def test_epochs_draw_other_replies_and_a_seed_the_same_ones(
    evaluate: Callable[..., Any], merged: EvaluatedModel
) -> None:
    def replies() -> list[tuple[int, str]]:
        log = evaluate(inspect_model(merged), temperature=3.0, seed=5, epochs=2, max_connections=1)
        return sorted((sample.epoch, sample.output.completion) for sample in log.samples)

    found = replies()
    first, second = ({text for epoch, text in found if epoch == number} for number in (1, 2))
    assert first != second and found == replies()


def test_replies_are_computed_in_batches(
    evaluate: Callable[..., Any], merged: EvaluatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_3h.data.backends.local import TransformersBackend

    sizes: list[int] = []
    complete = TransformersBackend.complete

    def counted(self: TransformersBackend, requests: Any) -> Any:
        sizes.append(len(requests))
        return complete(self, requests)

    monkeypatch.setattr(TransformersBackend, "complete", counted)
    model = inspect_model(merged)
    first, again = evaluate(model), evaluate(model)  # two event loops, one after the other
    assert sum(sizes) == 2 * len(QUESTIONS) and max(sizes) == CPU.batch_size
    assert [sample.output.completion for sample in first.samples] == [s.output.completion for s in again.samples]


def test_a_lazily_merged_model_of_fusion_bench(evaluate: Callable[..., Any], experts: dict[str, Path]) -> None:
    """As a FusionBench program has it: the tensors of a lazy state dict, merged, in the module they belong to."""
    pytest.importorskip("fusion_bench")
    from fusion_bench_ext.algorithms import TSVM

    pool = lazy_pool(experts)
    model = TSVM(**{"lambda": 0.6}).run(pool)
    subject = subject_in_memory("lazy", model, subject_of(str(experts["base"]), CPU).tokenizer)
    log = evaluate(inspect_model(subject))
    assert log.status == "success" and all(sample.output.completion for sample in log.samples)


def lazy_pool(experts: dict[str, Path]) -> Any:
    from fusion_bench.modelpool import CausalLMPool

    models = {"_pretrained_": str(experts["base"]), "a": str(experts["helpful"]), "b": str(experts["harmless"])}
    return CausalLMPool(models, tokenizer=str(experts["base"]), enable_lazy_loading=True)


def test_what_the_model_cannot_do_is_said(evaluate: Callable[..., Any], merged: EvaluatedModel) -> None:
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import think

    def error(**given: Any) -> str:
        log = evaluate(inspect_model(merged), **given)
        assert log.status == "error"
        return log.error.message

    assert "merged answers with text and calls no tools; the task offers think" in error(
        solver=[use_tools(think()), generate()]
    )
    assert "the task sets logprobs" in error(logprobs=True)
    assert "the prompt is too long" in error(system_message="fact " * 300)


@pytest.fixture
def config(experts: dict[str, Path], tmp_path: Path) -> Path:
    content = {
        "merge_method": "linear",
        "models": [{"model": str(experts["helpful"]), "parameters": {"weight": 1.0}}],
        "dtype": "float32",
    }
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(content))
    return tmp_path / "merge.yml"


@pytest.mark.slow
def test_the_command_of_inspect_ai_merges_and_evaluates(config: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.py").write_text(TASK)
    command = ["eval", "facts.py", "--model", f"mergekit-3h/{config.name}", "--display", "plain", "-M", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "inspect_ai", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy  0.500" in done.stdout, "one of the two targets is not in the answer"


def test_a_checkpoint_and_a_config_by_name(evaluate: Callable[..., Any], experts, config: Path) -> None:
    replies = [
        [sample.output.completion for sample in evaluate(f"mergekit-3h/{name}", model_args={"device": "cpu"}).samples]
        for name in (experts["helpful"], config)
    ]
    assert replies[0] == replies[1] and "four" in replies[0][0], "weight 1 is the expert itself"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gone.yml", {}, "gone.yml: no such file; expected a merge config of mergekit"),
        ("./gone", {}, "model './gone': no such folder"),
        ("{helpful}", {"dtyp": "float32"}, "no option 'dtyp'; did you mean 'dtype'?"),
        ("{helpful}", {"seed": 1}, "-M seed=1: is for a merge config"),
        ("{broken}", {}, "has 1 error(s):\nno merge method 'lineal'"),
    ],
)
def test_what_is_wrong_with_a_name_is_said_without_a_traceback(
    experts, config: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    broken = config.with_name("broken.yml")
    broken.write_text(config.read_text().replace("linear", "lineal"))
    with pytest.raises(PrerequisiteError) as caught:
        get_model(f"mergekit-3h/{name.format(helpful=experts['helpful'], broken=broken)}", **arguments)
    assert message in caught.value.message


def test_without_the_extra_the_way_to_it_is_said(merged: EvaluatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mergekit-3h\[inspect\]'"):
        inspect_model(merged)
