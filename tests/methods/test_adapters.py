"""Adapters of a mergekit config: merged in their core space as if multiplied out, into a model or into one adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from hosts import read_model
from mergekit.options import MergeOptions
from tiny_adapters import change_config, change_tensors, write_adapter, write_adapters
from tiny_models import Family, tiny_model
from torch import Tensor

from mergekit_3h.cli import main
from mergekit_3h.errors import ModelError, OptionError, ThreeHError
from mergekit_3h.methods.adapter_experts import LoraRoute
from mergekit_3h.methods.adapter_merge import write_merged_adapter
from mergekit_3h.methods.memory_merge import Merger

PROMISE = 1e-6
"""Of the core space beside the updates multiplied out, before the result is rounded."""

WEIGHTS = (1.0, 0.5, 1.5)


@pytest.fixture(scope="module")
def adapters(family: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    base = family("llama").base
    return base, write_adapters(base, tmp_path_factory.mktemp("adapters"))


def config_of(base: Path, adapters: list[Path], method: str, **parameters: Any) -> dict[str, Any]:
    models = [
        {"model": f"{base}+{adapter}", "parameters": {"weight": weight}}
        for adapter, weight in zip(adapters, WEIGHTS, strict=False)
    ]
    return {"merge_method": method, "base_model": str(base), "models": models, "parameters": parameters}


def merged(config: dict[str, Any], lora: LoraRoute = "auto", **options: Any) -> dict[str, Tensor]:
    return Merger(lora=lora, **options).tensors(config, 0)


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    """Relative to the merged update."""
    off = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return (off / sum(float((expected[name] - base[name]).double().square().sum()) for name in expected)) ** 0.5


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("tsvm", {"lambda": [0.5, 1.0], "exclude": "k_proj"}),
        ("rtsvm", {}),
        ("iso_c", {"power": 0.5}),
        ("svc", {"combine": "tsvm"}),
    ],
)
def test_the_core_space_gives_what_the_dense_updates_give(
    adapters: tuple[Path, list[Path]], method: str, parameters: dict[str, Any]
) -> None:
    config = config_of(*adapters, method, **parameters)
    base, core = read_model(adapters[0]), merged(config, "core")
    assert core.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], core[name])}
    assert len(changed) == 9 and "model.embed_tokens.weight" in changed
    # Of float32 numbers, the rounding of the weights themselves is 1e-6 of these updates.
    assert distance(core, merged(config, "dense"), base) < 2 * PROMISE


def test_adapters_merged_into_their_bases_first_give_the_same_but_for_rounding(
    adapters: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    config = config_of(*adapters, "tsvm")
    whole = merged(config, "merged", lora_merge_cache=str(tmp_path))
    assert distance(merged(config), whole, read_model(adapters[0])) < 1e-5


def test_before_rounding_the_core_space_is_within_its_promise(adapters: tuple[Path, list[Path]]) -> None:
    config = config_of(*adapters, "tsvm")
    config["dtype"] = "float64"
    base = {name: tensor.double() for name, tensor in read_model(adapters[0]).items()}
    assert distance(merged(config, "core"), merged(config, "dense"), base) < PROMISE


def test_one_adapter_has_the_merged_model_in_it(adapters: tuple[Path, list[Path]], absolute: Path) -> None:
    import peft

    config = config_of(*adapters, "tsvm", **{"lambda": 0.8, "keep_base": "layers.1.mlp"})
    told = write_merged_adapter(config, absolute / "adapter", MergeOptions(), source="a config")
    Merger().write(config, absolute / "model", 0)
    settings = json.loads((absolute / "adapter" / "adapter_config.json").read_text())
    assert (told.modules, told.ranks, told.lost) == (7, [2, 7], 0.0)
    assert (settings["r"], settings["lora_alpha"]) == (7, 7) and settings["task_type"] == "CAUSAL_LM"
    assert "q_proj" in settings["target_modules"] and "model.layers.0.mlp.up_proj" in settings["target_modules"]
    assert (absolute / "adapter" / "mergekit_config.yml").read_text() == "a config"

    load = transformers.AutoModelForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(load(adapters[0]), absolute / "adapter")
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        by_adapter, by_model = adapted(tokens).logits, load(absolute / "model")(tokens).logits
        with adapted.disable_adapter():
            untouched = adapted(tokens).logits
    torch.testing.assert_close(by_adapter, by_model, rtol=0, atol=1e-5)
    assert float((by_adapter - untouched).abs().max()) > 1e-2

    # mergekit adds it to the base to the same model.
    again = merged(config_of(adapters[0], [absolute / "adapter"], "tsvm"), "merged", lora_merge_cache=str(absolute))
    assert distance(again, read_model(absolute / "model"), read_model(adapters[0])) < 1e-5


def test_a_rank_that_is_too_small_is_told_what_it_costs(adapters: tuple[Path, list[Path]], absolute: Path) -> None:
    config = config_of(*adapters, "iso_c", power=1.0)
    told = write_merged_adapter(config, absolute / "adapter", MergeOptions(), rank=2)
    assert told.ranks == [2, 2]
    # The change of a module is cut to its two leading directions: what is left is the rest of its singular values.
    base, exact = read_model(adapters[0]), merged(config)
    cut = merged(config_of(adapters[0], [absolute / "adapter"], "iso_c", power=1.0))
    assert distance(cut, exact, base) == pytest.approx(told.lost, rel=1e-4) and told.lost > 0.1


def test_a_merge_of_nothing_is_no_adapter(adapters: tuple[Path, list[Path]], absolute: Path) -> None:
    config = config_of(*adapters, "tsvm", **{"lambda": 0.0})
    with pytest.raises(ModelError, match="the merged update is nothing"):
        write_merged_adapter(config, absolute / "adapter", MergeOptions())
    assert not (absolute / "adapter").exists()


def test_what_cannot_be_merged_as_adapters_is_said(adapters: tuple[Path, list[Path]], llama: Family) -> None:
    base, folders = adapters
    literal = config_of(base, folders, "rtsvm", preset="paper")
    with pytest.raises(OptionError, match="--lora core: rtsvm with these options depends on more"):
        merged(literal, "core")
    assert merged(literal).keys() == read_model(base).keys()  # auto multiplies them out
    with pytest.raises(OptionError, match="--lora core: ties is no spectral method"):
        merged(config_of(base, folders, "ties"), "core")
    mixed = config_of(base, folders, "tsvm")
    mixed["models"].append({"model": str(llama.experts[0])})
    with pytest.raises(OptionError, match=f"--lora dense: {llama.experts[0]} is no adapter on the base model"):
        merged(mixed, "dense")
    mixed["models"] = mixed["models"][-1:]
    with pytest.raises(OptionError, match="--lora core: no model of the config is an adapter"):
        merged(mixed, "core")


def command(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["merge", *map(str, arguments)])
    return done.exit_code, done.output + done.stderr


def test_the_command_writes_a_model_or_an_adapter(adapters: tuple[Path, list[Path]], absolute: Path) -> None:
    file = absolute / "merge.yml"
    file.write_text(yaml.safe_dump(config_of(*adapters, "tsvm")))
    status, said = command(file, absolute / "model")
    assert status == 0, said
    expected, found = merged(config_of(*adapters, "tsvm")), read_model(absolute / "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    status, said = command(file, absolute / "adapter", "--as-adapter", "--rank", "4", "--lora", "core")
    assert status == 0 and "an adapter of rank 2 to 4 on 9 modules; cutting to it moved the merged update by" in said
    assert (absolute / "adapter" / "mergekit_config.yml").read_text() == file.read_text()
    for arguments, message in [
        ((absolute / "adapter", "--as-adapter"), "is there already and not empty"),
        ((absolute / "new", "--rank", "4"), "--rank goes with --as-adapter"),
        ((absolute / "new", "--as-adapter", "--lora", "merged"), "with --lora merged the adapters become whole models"),
        ((absolute / "new", "--as-adapter", "--evaluate", "3h-small"), "leave --evaluate and --ray out"),
    ]:
        status, said = command(file, *arguments)
        assert status and message in said
    file.write_text(yaml.safe_dump(config_of(*adapters, "ties", density=0.5)))
    assert "--as-adapter: ties is no spectral method" in command(file, absolute / "new", "--as-adapter")[1]
    assert not (absolute / "new").exists()


def test_bad_adapters_are_refused_by_name(llama: Family, absolute: Path) -> None:
    folder = write_adapter(llama.base, absolute / "mine")
    config = config_of(llama.base, [folder], "tsvm")
    change_tensors(folder, lambda found: {name: each * float("nan") for name, each in found.items()})
    with pytest.raises(ThreeHError, match=rf"q_proj.weight': .*{folder} holds NaN or infinity"):
        merged(config)
    change_config(folder, use_dora=True)
    with pytest.raises(ModelError, match=rf"adapter {folder}: use_dora is set"):
        merged(config)
    tiny_model("llama", seed=3).save_pretrained(absolute / "other")
    change_config(folder, use_dora=False)
    with pytest.raises(ModelError, match="was trained on"):
        merged(config_of(absolute / "other", [folder], "tsvm"))


def test_a_record_holds_what_is_left_of_every_adapter(adapters: tuple[Path, list[Path]], absolute: Path) -> None:
    merged(config_of(*adapters, "iso_c", power=1.0, record=str(absolute / "record")))
    lines = [json.loads(line) for line in (absolute / "record" / "record.jsonl").read_text().splitlines()]
    alone = next(line for line in lines if line.get("tensor") == "model.layers.0.self_attn.k_proj.weight")
    assert alone["surviving"] == pytest.approx([0, 0, WEIGHTS[2]], abs=1e-4)  # one adapter changes it, weight 1.5
