"""What is wrong is said while mergekit plans: one message, no traceback, no tensor read, nothing written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from hosts import mergekit_yaml, read_model
from safetensors.torch import load_file, save_file
from search.training import domain_records, safety_records, write_jsonl
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.cli import main

from .conftest import Trained


@pytest.fixture
def refusal(absolute: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """The message of a merge that is refused before any tensor is read."""
    from mergekit.io.lazy_tensor_loader import LazyTensorLoader

    from mergekit_3h.checkpoints.sources import CheckpointSource

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(LazyTensorLoader, "get_tensor", read)
    monkeypatch.setattr(CheckpointSource, "tensor", read)

    def refuse(config: dict[str, Any]) -> str:
        done = mergekit_yaml(config, absolute / "out", check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert not (absolute / "out").exists()
        return done.stderr[done.stderr.rindex("Error: ") :]

    return refuse


Refusal = Callable[[dict[str, Any]], str]

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"solvre": "grid"}, "has an option 'solvre'; did you mean 'solver'?"),
    ({"density": 0.5, "combine": "tsvm"}, "has an option 'density'"),
    ({"solver": "gradent"}, "option 'solver': got 'gradent'"),
    ({"solver": ["cmaes", "grid"]}, "expected one value, without filters or layers"),
    ({"data": ["a.jsonl", "b.jsonl"]}, "several files are one text, separated by commas"),
    ({"data": "/nowhere/data.jsonl"}, "there is no file /nowhere/data.jsonl"),
    ({"combine": "ties"}, "Take solver 'cmaes'"),
    ({"combine": "tise", "solver": "cmaes"}, "did you mean 'ties'?"),
    ({"combine": "slerp", "solver": "cmaes"}, "a base and a weight per expert"),
    ({"combine": "safety_merge"}, "a base and a weight per expert"),
    ({"weight": 0.5}, "the weights are what safety_merge searches"),
    ({"lambda": 0.5}, "the search sets the scale of task_arithmetic"),
    ({"combine": "della", "solver": "cmaes", "density": 0.9}, "della rejects its options"),
    ({"combine": "tsvm", "energy": [0.5, 0.9]}, "takes one value for all tensors"),
    ({"combine": "tsvm", "energy": 3}, "option 'energy': got 3"),
    ({"min_safety": 1.5}, "option 'min_safety': got 1.5"),
    ({"max_length": 5}, "more than the 5 of option max_length"),
    ({"ray_gpus_per_worker": 1.5}, "option 'ray_gpus_per_worker': got 1.5"),
    ({"report": "{data}"}, "is a file; expected a folder"),
]


@pytest.mark.parametrize(("parameters", "message"), OPTIONS)
def test_options(parameters: dict[str, Any], message: str, trained: Trained, refusal: Refusal) -> None:
    given = {name: value.format(data=trained.data) if name == "report" else value for name, value in parameters.items()}
    assert message in refusal(trained.config(**given))


def test_no_data(trained: Trained, refusal: Refusal) -> None:
    config = trained.config()
    del config["parameters"]
    assert "option 'data' is required" in refusal(config)


def test_an_option_of_the_search_under_a_model(trained: Trained, refusal: Refusal) -> None:
    config = trained.config()
    config["models"][1]["parameters"] = {"seed": 3}
    assert "move it to the `parameters` of the config" in refusal(config)


def test_data(trained: Trained, refusal: Refusal, absolute: Path) -> None:
    safety, domain = safety_records(), domain_records()
    cases = {
        "no record of the set 'safety'": domain,
        "no record of the set 'domain'": safety,
        "none of 12 records has a refusal": [*(record.changed(response=None) for record in safety), *domain],
        "labelled 'compliance'": [safety[0].changed(label="compliance"), *safety[1:], *domain],
        "more than the 256 of the models' context": [*safety, *domain, domain[0].changed(response="far " * 300)],
    }
    for message, records in cases.items():
        data = write_jsonl(absolute / "data.jsonl", records)
        assert message in refusal(trained.config(data=str(data))), message
    (absolute / "data.jsonl").write_text('{"set": "safety", "promt": "x"}\n')
    told = refusal(trained.config(data=str(data)))
    assert "line 1, field 'promt'" in told or "line 1, field 'prompt/messages'" in told
    (absolute / "data.jsonl").write_text("")
    assert "no record of the set 'safety' among 0" in refusal(trained.config(data=str(data)))


def test_another_tokenizer(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    def add(folder: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<|new|>"])
        tokenizer.save_pretrained(folder)

    assert "'base' and 'changed' have different tokenizers" in refusal(changed(add))


def test_another_template(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    def rename(folder: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        tokenizer.save_pretrained(folder)

    assert "different chat templates" in refusal(changed(rename))


def test_another_architecture(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    def narrow(folder: Path) -> None:
        tiny_model("llama", intermediate_size=40).save_pretrained(folder)

    message = refusal(changed(narrow))
    assert "/changed" in message and "mlp.up_proj.weight has the shape" in message


def test_other_layers(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    assert "num_hidden_layers is 3" in refusal(
        changed(lambda folder: tiny_model("llama", num_hidden_layers=3).save_pretrained(folder))
    )


def test_a_missing_tensor(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    def drop(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    assert "/changed lacks 1 of 21 tensors: model.layers.1.mlp.up_proj.weight" in refusal(changed(drop))


def test_a_shard_that_is_cut_off(changed: Callable[..., dict[str, Any]], refusal: Refusal) -> None:
    def cut(folder: Path) -> None:
        read = tiny_model("llama", seed=1)
        read.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        (folder / "model.safetensors").unlink()
        read.save_pretrained(folder, max_shard_size="50KB")
        shard = sorted(folder.glob("*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-100])

    message = refusal(changed(cut))
    assert "/changed/model-" in message and "safetensors: truncated" in message


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.safetensors", "model.safetensors: truncated"), ("config.json", "config.json cannot be read as JSON")],
)
def test_the_search_command_names_a_file_that_is_cut_off(
    file: str, message: str, changed: Callable[..., dict[str, Any]], absolute: Path
) -> None:
    def cut(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])

    config = changed(cut)
    (absolute / "config.yml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(main, ["search", str(absolute / "config.yml"), "-o", str(absolute / "found.yml")])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert message in done.output and str(absolute / "changed") in done.output
    assert not (absolute / "found.yml").exists()


def test_no_base_and_no_expert(trained: Trained, refusal: Refusal) -> None:
    config = trained.config()
    del config["base_model"]
    assert "needs a base model" in refusal(config)
    config = {**trained.config(), "models": [{"model": str(trained.base)}]}
    assert "at least one expert" in refusal(config)


def test_the_same_expert_twice(trained: Trained, refusal: Refusal) -> None:
    config = trained.config()
    config["models"].append(config["models"][0])
    assert "is there 2 times" in refusal(config)


def test_slices(trained: Trained, refusal: Refusal) -> None:
    config = trained.config()
    sources = [{"model": entry["model"], "layer_range": [0, 1]} for entry in config.pop("models")]
    assert "merges whole models" in refusal({**config, "slices": [{"sources": sources}]})


def test_single_weight_files(trained: Trained, absolute: Path) -> None:
    from mergekit.scripts.merge_raw_pytorch import main as merge_files

    config = trained.config()
    config["base_model"] += "/model.safetensors"
    for entry in config["models"]:
        entry["model"] += "/model.safetensors"
    (absolute / "raw.yml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(merge_files, [str(absolute / "raw.yml"), str(absolute / "out")])
    assert done.exit_code == 1
    assert "it cannot merge single weight files" in done.output


def test_single_tensors(trained: Trained) -> None:
    from mergekit_3h.errors import ThreeHError
    from mergekit_3h.methods.safety_merge import SafetyMergeMethod

    tensors = {"base": {"w": torch.ones(2, 2)}, "expert": {"w": torch.zeros(2, 2)}}
    from mergekit.merge_methods import merge_state_dicts

    with pytest.raises(ThreeHError, match="single tensors cannot be merged"):
        merge_state_dicts(tensors, SafetyMergeMethod(), base="base", parameters={"data": "x"})


def test_nan_in_an_expert_is_named_and_nothing_is_written(
    changed: Callable[..., dict[str, Any]], absolute: Path
) -> None:
    def poison(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    done = mergekit_yaml(changed(poison), absolute / "out", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model 'changed' by itself" in done.stderr
    assert not list((absolute / "out").glob("*.safetensors"))


def test_a_report_of_another_search(trained: Trained, absolute: Path) -> None:
    report = str(absolute / "report")
    mergekit_yaml(trained.config(report=report, solver="cocktail"), absolute / "first")
    done = mergekit_yaml(trained.config(report=report, solver="grid"), absolute / "out", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "solver: was 'cocktail', is 'grid'" in done.stderr
    content = json.loads((absolute / "report" / "safety_merge.json").read_text())
    assert content["options"]["solver"] == "cocktail"


def test_threads_share_one_search(trained: Trained, absolute: Path) -> None:
    """mergekit's executor for several GPUs merges tensors in a thread for each."""
    from mergekit.common import ModelReference
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    from mergekit_3h.methods.safety_host import MergekitHost
    from mergekit_3h.methods.safety_request import read_request
    from mergekit_3h.safety.merge import SearchedMerge

    config = trained.config(report=str(absolute / "report"), max_evaluations=4)
    request = read_request(MergeConfiguration.model_validate(config))
    merge = SearchedMerge(MergekitHost(request, MergeOptions(quiet=True)))
    folders = (trained.base, trained.aligned, trained.domain)
    models = {ModelReference.parse(str(folder)): read_model(folder) for folder in folders}
    merged: dict[str, torch.Tensor | None] = {}

    def work(name: str) -> None:
        merged[name] = merge.found()[1].merged(name, {model: tensors[name] for model, tensors in models.items()})

    names = list(read_model(trained.base))
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (absolute / "report" / "trace.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "candidate" for line in lines) <= 4
    mergekit_yaml(yaml.safe_load((absolute / "report" / "static.yml").read_text()), absolute / "static")
    static = read_model(absolute / "static")
    assert all(torch.equal(static[name], merged[name]) for name in names)


def test_check_finds_the_same(trained: Trained, absolute: Path) -> None:
    """``mergekit-3h check`` knows the options of the method that is searched, and plans as a merge would."""

    def errors(**parameters: Any) -> list[str]:
        (absolute / "config.yml").write_text(yaml.safe_dump(trained.config(**parameters)))
        done = CliRunner().invoke(main, ["check", str(absolute / "config.yml"), "--json", "--no-estimate"])
        return [f["message"] for f in json.loads(done.stdout)["findings"] if f["severity"] == "error"]

    assert errors(combine="ties", solver="cmaes", density=0.5) == []
    assert "has no option 'density'" in errors(density=0.5, combine="tsvm")[0]
    assert "Take solver 'cmaes'" in errors(combine="ties")[0]


@pytest.mark.parametrize("missing", ["config", "model"])
def test_the_search_command_shows_no_traceback(missing: str, trained: Trained, absolute: Path) -> None:
    config = trained.config()
    if missing == "model":
        config["models"][0]["model"] = "/nowhere/model"
    (absolute / "config.yml").write_text(yaml.safe_dump(config) if missing == "model" else "merge_method: [")
    done = CliRunner().invoke(main, ["search", str(absolute / "config.yml"), "-o", str(absolute / "found.yml")])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    expected = {"model": "there is no model at /nowhere/model", "config": "not a config of mergekit-yaml"}
    assert expected[missing] in done.output
    assert [path.name for path in absolute.iterdir()] == ["config.yml"]
