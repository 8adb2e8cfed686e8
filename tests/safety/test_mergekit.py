"""``merge_method: safety_merge`` through mergekit: the report, and a static config that gives the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from hosts import merge_config, mergekit_yaml, read_model
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from tiny_models import Family

from mergekit_3h.methods.host_errors import HostError

from .conftest import Trained


def same_bits(first: Path, second: Path) -> bool:
    one, other = read_model(first), read_model(second)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


COMBINATIONS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"max_evaluations": 12},
    "tsvm": {"max_evaluations": 6, "energy": 0.9},
    "rtsvm": {"max_evaluations": 6, "layer_granularity": 1},
    "ties": {"solver": "cmaes", "max_evaluations": 6, "density": 0.6, "layer_granularity": 1},
    "dare_ties": {"solver": "cmaes", "max_evaluations": 6, "density": [0.4, 0.8]},
    "della": {"solver": "grid", "max_evaluations": 5, "density": 0.6, "epsilon": 0.1},
    "breadcrumbs": {
        "solver": "cocktail",
        "density": [{"filter": "mlp", "value": 0.9}, {"value": 0.7}],
        "gamma": 0.05,
    },
}


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_static_config_gives_the_same_bits(combine: str, trained: Trained, absolute: Path) -> None:
    config = trained.config(combine=combine, report=str(absolute / "report"), **COMBINATIONS[combine])
    config["models"][0]["parameters"] = {} if "density" not in config["parameters"] else {"density": 0.5}
    mergekit_yaml(config, absolute / "searched", "--random-seed", "7")
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    assert static["merge_method"] == combine
    assert "data" not in static.get("parameters", {})
    mergekit_yaml(static, absolute / "static", "--random-seed", "7")
    assert same_bits(absolute / "searched", absolute / "static")
    assert not same_bits(absolute / "searched", trained.base)


def test_a_spectral_merge_is_written_on_several_threads(trained: Trained, absolute: Path) -> None:
    """There mergekit's tasks of the static merge begin and fetch their work, and here they are given the tensors."""
    torch.set_num_threads(2)
    try:
        config = trained.config(combine="tsvm", report=str(absolute / "report"), max_evaluations=3)
        mergekit_yaml(config, absolute / "searched")
        static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
        mergekit_yaml(static, absolute / "static")
    finally:
        torch.set_num_threads(1)
    assert same_bits(absolute / "searched", absolute / "static")


def test_report(trained: Trained, absolute: Path) -> None:
    folder = absolute / "report"
    mergekit_yaml(trained.config(report=str(folder), layer_granularity=1), absolute / "out")
    assert {path.name for path in folder.iterdir()} == {"safety_merge.json", "static.yml", "search.png", "trace.jsonl"}
    report = json.loads((folder / "safety_merge.json").read_text())
    assert report["problem"]["records"] == {"safety": 12, "domain": 12}
    assert set(report["models"]) == {"base", "aligned", "domain"}
    assert set(report["coefficients"]) == {"model.layers.0", "model.layers.1", "rest"}
    # The domain expert alone is the one that lost alignment; the merge is better than it and than the uniform one.
    assert report["losses"]["safety"]["loss"] < report["models"]["domain"]["safety"]["loss"]
    assert report["score"] < sum(w * report["uniform"][s]["loss"] for s, w in (("safety", 1.0), ("domain", 0.3)))
    candidates = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "candidate" for line in candidates) == report["evaluations"]


def test_a_second_run_takes_the_trace_of_the_first(trained: Trained, absolute: Path) -> None:
    config = trained.config(report=str(absolute / "report"), max_evaluations=6)
    mergekit_yaml(config, absolute / "first")
    trace = absolute / "report" / "trace.jsonl"
    before = trace.read_bytes()
    mergekit_yaml(config, absolute / "second")
    assert trace.read_bytes() == before
    assert same_bits(absolute / "first", absolute / "second")


@pytest.mark.parametrize(
    ("architecture", "combine"),
    [("llama-tied", "rtsvm"), ("gpt2", "task_arithmetic"), ("qwen2", "tsvm"), ("mistral", "task_arithmetic")],
)
def test_architectures(
    architecture: str, combine: str, family: Callable[..., Family], trained: Trained, absolute: Path
) -> None:
    """bfloat16 checkpoints, one of them with tied embeddings: names, ties and dtypes are mergekit's."""
    models = family(architecture, dtype=torch.bfloat16)
    parameters = {"data": str(trained.data), "combine": combine, "layer_granularity": 1, "max_evaluations": 3}
    config = merge_config(models, "safety_merge", parameters={**parameters, "report": str(absolute / "report")})
    mergekit_yaml(config, absolute / "searched")
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    mergekit_yaml(static, absolute / "static")
    assert same_bits(absolute / "searched", absolute / "static")
    assert not same_bits(absolute / "searched", models.base)


def test_an_architecture_whose_tensors_transformers_fuses(
    family: Callable[..., Family], trained: Trained, absolute: Path
) -> None:
    config = merge_config(family("mixtral"), "safety_merge", parameters={"data": str(trained.data)})
    done = mergekit_yaml(config, absolute / "out", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "merge it with fixed weights instead" in done.stderr
    assert not (absolute / "out").exists()


@pytest.mark.slow
def test_the_real_command(trained: Trained, absolute: Path) -> None:
    config = trained.config(report=str(absolute / "report"), max_evaluations=3)
    mergekit_yaml(config, absolute / "searched", process=True)
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    mergekit_yaml(static, absolute / "static", process=True)
    assert same_bits(absolute / "searched", absolute / "static")
    refused = mergekit_yaml(trained.config(solvre="grid"), absolute / "out", check=False, process=True)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "did you mean 'solver'?" in refused.stderr


def test_an_expert_with_an_adapter(trained: Trained, absolute: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained.base)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.save_pretrained(absolute / "adapter")
    config = trained.config(report=str(absolute / "report"), solver="cocktail")
    config["models"][0]["model"] = f"{trained.base}+{absolute / 'adapter'}"
    cache = ("--lora-merge-cache", str(absolute / "cache"))
    mergekit_yaml(config, absolute / "searched", *cache)
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    assert static["models"][0]["model"] == config["models"][0]["model"]
    mergekit_yaml(static, absolute / "static", *cache)
    assert same_bits(absolute / "searched", absolute / "static")


def test_several_merges_in_one_file(trained: Trained, absolute: Path) -> None:
    """Searches of the same models in one process, whose second has the first's result as an expert."""
    from mergekit.scripts.multimerge import main

    first = trained.config(report=str(absolute / "first"), solver="cocktail")
    second = trained.config(report=str(absolute / "second"), solver="grid", max_evaluations=4)
    second["models"][0]["model"] = "halfway"
    (absolute / "multi.yml").write_text(yaml.safe_dump_all([{"name": "halfway", **first}, second]))
    arguments = [str(absolute / "multi.yml"), "--out-path", str(absolute / "out"), "-I", str(absolute / "parts")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    for report, merged in (("first", absolute / "parts" / "halfway"), ("second", absolute / "out")):
        static = yaml.safe_load((absolute / report / "static.yml").read_text())
        mergekit_yaml(static, absolute / f"static-{report}")
        assert same_bits(merged, absolute / f"static-{report}")


def test_a_merge_that_was_planned_before_another_one(
    trained: Trained, absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was planned last would be searched and written for both."""
    ran: list[Path] = []
    run = Executor.run

    def planning_another(self: Executor, *given: Any, **more: Any) -> Any:
        if not ran:
            ran.append(absolute)
            run_merge(MergeConfiguration.model_validate(second), str(absolute / "second"), MergeOptions(quiet=True))
        return run(self, *given, **more)

    monkeypatch.setattr(Executor, "run", planning_another)
    first, second = trained.config(solver="grid", max_evaluations=4), trained.config(solver="cocktail")
    with pytest.raises(HostError, match="another merge than the one that was planned last"):
        run_merge(MergeConfiguration.model_validate(first), str(absolute / "first"), MergeOptions(quiet=True))
    assert (absolute / "second" / "config.json").exists()
