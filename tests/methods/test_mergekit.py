"""``mergekit-yaml`` with our methods: real processes on real checkpoints of several architectures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hosts import merge_config, mergekit_yaml, read_model, run
from kernels.oracle import merge_truncated, relative
from tiny_models import Family

ARCHITECTURES = ["llama", "llama-tied", "mistral", "qwen2", "gpt2", "mixtral"]


def load(path: Path) -> dict[str, torch.Tensor]:
    """A model's tensors under the names it has in memory, where a mixture's experts are fused."""
    return {
        name: t.double() for name, t in transformers.AutoModelForCausalLM.from_pretrained(path).state_dict().items()
    }


def oracle_update(deltas: list[torch.Tensor]) -> torch.Tensor:
    """TSVM of one tensor's updates in float64: of a matrix, of a stack of matrices, or the mean."""
    n, shape = len(deltas), deltas[0].shape
    if deltas[0].ndim == 3:
        return torch.stack([oracle_update([delta[i] for delta in deltas]) for i in range(shape[0])])
    if deltas[0].ndim == 2:
        return merge_truncated(deltas, [max(1, min(shape) // n)] * n, [1.0] * n)
    return torch.stack(deltas).mean(0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_merged_as_the_oracle_says(
    architecture: str, family: Callable[..., Family], absolute: Path
) -> None:
    models = family(architecture)
    mergekit_yaml(merge_config(models, "tsvm"), absolute / "out")
    base, merged, *experts = (load(path) for path in (models.base, absolute / "out", *models.experts))
    assert merged.keys() == base.keys()
    for name, tensor in base.items():
        update = oracle_update([expert[name] - tensor for expert in experts])
        # Adding the base in float32 costs 6e-8 of the weights, which are up to 100 times larger than the update.
        assert relative(merged[name] - tensor, update) < 1e-4, name
        assert torch.allclose(merged[name], tensor + update, rtol=2e-7, atol=1e-8), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_result_loads_and_generates(architecture: str, family: Callable[..., Family], absolute: Path) -> None:
    mergekit_yaml(merge_config(family(architecture), "rtsvm"), absolute / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(absolute / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(absolute / "out")
    reply = model.generate(**tokenizer("the quick", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert reply.shape[1] > tokenizer("the quick", return_tensors="pt")["input_ids"].shape[1]


def test_the_model_card_names_method_and_paper(llama: Family, absolute: Path) -> None:
    mergekit_yaml(merge_config(llama, "rtsvm"), absolute / "out")
    card = (absolute / "out" / "README.md").read_text()
    assert "[Reweighted Task Singular Vector Merging (R-TSVM)](https://arxiv.org/abs/2502.06876)" in card


def test_filters_gradients_and_model_weights_reach_the_kernel(llama: Family, absolute: Path) -> None:
    """lambda falls from 1 to 0 over the layers, and is 0 for the head by filter; one expert weighs 2."""
    parameters = {"lambda": [{"filter": "lm_head", "value": 0.0}, {"value": [1.0, 0.0]}]}
    plain = merge_config(llama, "tsvm", weights=[2.0])
    mergekit_yaml({**plain, "parameters": parameters}, absolute / "graded")
    mergekit_yaml(plain, absolute / "plain")
    base, graded, full = (read_model(path) for path in (llama.base, absolute / "graded", absolute / "plain"))
    assert torch.equal(graded["lm_head.weight"], base["lm_head.weight"])
    first, last = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(graded[first], full[first])
    assert torch.equal(graded[last], base[last])
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "unweighted")
    assert not torch.equal(full[first], read_model(absolute / "unweighted")[first])


@pytest.mark.parametrize("option", ["gamma", "epsilon", "outlier_strength", "energy"])
def test_every_numeric_option_can_be_a_layer_gradient(option: str, llama: Family, absolute: Path) -> None:
    ends = {"gamma": [0.0, 1.0], "epsilon": [0.1, 3.0], "outlier_strength": [0.0, 1.0], "energy": [1.0, 0.3]}[option]
    tensors = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    mergekit_yaml(merge_config(llama, "rtsvm", parameters={option: ends}), absolute / "graded")
    graded = read_model(absolute / "graded")
    for end, tensor in zip(ends, tensors, strict=True):
        mergekit_yaml(merge_config(llama, "rtsvm", parameters={option: end}), absolute / f"{option}-{end}")
        assert torch.equal(graded[tensor], read_model(absolute / f"{option}-{end}")[tensor])
    assert not torch.equal(graded[tensors[0]], read_model(absolute / f"{option}-{ends[1]}")[tensors[0]])


@pytest.mark.parametrize("flags", [("--lazy-unpickle",), ("--low-cpu-memory",), ("--out-shard-size", "20000")])
def test_host_flags_change_nothing_in_the_result(flags: tuple[str, ...], llama: Family, absolute: Path) -> None:
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "plain")
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "flagged", *flags)
    plain, flagged = read_model(absolute / "plain"), read_model(absolute / "flagged")
    assert plain.keys() == flagged.keys()
    assert all(torch.equal(plain[name], flagged[name]) for name in plain)


def test_output_dtypes(family: Callable[..., Family], absolute: Path) -> None:
    """bfloat16 in gives bfloat16 out; dtype: float32 computes and stores in float32; out_dtype rounds that once."""
    models = family("llama", dtype=torch.bfloat16)
    for name, extra in {
        "same": {},
        "float32": {"dtype": "float32"},
        "rounded": {"dtype": "float32", "out_dtype": "bfloat16"},
    }.items():
        mergekit_yaml(merge_config(models, "tsvm", **extra), absolute / name)
    same, wide, rounded = (read_model(absolute / name) for name in ("same", "float32", "rounded"))
    assert {tensor.dtype for tensor in same.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    for name in same:
        assert torch.equal(rounded[name], wide[name].bfloat16())
        assert torch.equal(same[name], rounded[name])


def test_vocabularies_are_aligned_by_the_union_tokenizer(llama: Family, absolute: Path) -> None:
    """One expert knows a token more than the others."""
    grown = absolute / "grown"
    model = transformers.AutoModelForCausalLM.from_pretrained(llama.experts[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama.experts[0])
    tokenizer.add_tokens(["<|extra|>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(grown)
    tokenizer.save_pretrained(grown)
    models = Family(llama.base, [grown, llama.experts[1]])
    refused = mergekit_yaml(merge_config(models, "tsvm"), absolute / "refused", check=False)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "tokenizer_source: union" in refused.stderr
    mergekit_yaml(merge_config(models, "tsvm", tokenizer_source="union"), absolute / "out")
    merged = read_model(absolute / "out")
    assert merged["model.embed_tokens.weight"].shape[0] == len(tokenizer)


def test_lora_references(llama: Family, absolute: Path) -> None:
    import peft

    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(llama.base)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(absolute / f"adapter{seed}")
        adapters.append(Path(f"{llama.base}+{absolute / f'adapter{seed}'}"))
    config = merge_config(Family(llama.base, adapters), "tsvm")
    mergekit_yaml(config, absolute / "out", "--lora-merge-cache", str(absolute / "cache"))
    base, merged = read_model(llama.base), read_model(absolute / "out")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")
    }
    update = merged["model.layers.0.mlp.up_proj.weight"].double() - base["model.layers.0.mlp.up_proj.weight"].double()
    values = torch.linalg.svdvals(update)
    assert int((values > 1e-4 * values[0]).sum()) == 8  # two adapters of rank 4


def test_mergekit_multi_chains_our_methods(llama: Family, absolute: Path) -> None:
    import yaml

    first = {"name": "first", **merge_config(Family(llama.base, llama.experts[:2]), "tsvm")}
    second = {
        "merge_method": "rtsvm",
        "base_model": str(llama.base),
        "models": [{"model": "first"}, {"model": str(llama.experts[2])}],
    }
    file = absolute / "multi.yml"
    file.write_text(yaml.safe_dump_all([first, second]))
    run("mergekit-multi", file, "--intermediate-dir", absolute / "steps", "--out-path", absolute / "out")
    chained = Family(llama.base, [absolute / "steps" / "first", llama.experts[2]])
    mergekit_yaml(merge_config(chained, "rtsvm"), absolute / "again")
    again = read_model(absolute / "again")
    merged = read_model(absolute / "out")
    assert merged.keys() == again.keys()
    assert all(torch.equal(merged[name], again[name]) for name in again)


def test_mergekit_pytorch_merges_raw_files(llama: Family, absolute: Path) -> None:
    import yaml

    files = [path / "model.safetensors" for path in (llama.base, *llama.experts)]
    config = {
        "merge_method": "tsvm",
        "base_model": str(files[0]),
        "models": [{"model": str(file)} for file in files[1:]],
    }
    (absolute / "raw.yml").write_text(yaml.safe_dump(config))
    run("mergekit-pytorch", absolute / "raw.yml", absolute / "raw")
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "whole")
    raw, whole = read_model(absolute / "raw"), read_model(absolute / "whole")
    assert all(torch.equal(raw[name], whole[name]) for name in whole)
    misspelt = {**config, "parameters": {"lamda": 2.0}}
    (absolute / "bad.yml").write_text(yaml.safe_dump(misspelt))
    refused = run("mergekit-pytorch", absolute / "bad.yml", absolute / "bad", check=False)
    assert refused.returncode == 1
    assert "did you mean 'lambda'?" in refused.stderr


def test_the_methods_work_on_state_dicts_in_memory(llama: Family) -> None:
    """mergekit's Python interface, with modules, and gradients left out."""
    from mergekit.merge_methods import merge_state_dicts

    models = {
        name: transformers.AutoModelForCausalLM.from_pretrained(path)
        for name, path in {"base": llama.base, "a": llama.experts[0], "b": llama.experts[1]}.items()
    }
    merged = merge_state_dicts(models, "tsvm", base="base", parameters={"weight": {"a": 1.0, "b": 0.5}})
    assert not any(tensor.requires_grad for tensor in merged.values())
    key = "model.layers.0.mlp.up_proj.weight"
    base, *experts = (models[name].state_dict()[key].double() for name in ("base", "a", "b"))
    expected = merge_truncated([expert - base for expert in experts], [16, 16], [1.0, 0.5])
    assert math.isclose(relative(merged[key].double() - base, expected), 0.0, abs_tol=1e-4)
