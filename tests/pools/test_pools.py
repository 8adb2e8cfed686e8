"""Whatever a pool gives out, the merged model is a whole one: in memory, after saving and loading, lazy and eager."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool, CausalLMPool
from torch import nn
from transformers import AutoTokenizer

from fusion_bench_ext.algorithms import TSVM, MergeKitAlgorithm, StreamingAlgorithm
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor

from .conftest import differing, logits, merge_config, named_experts, pool_of, reload, stored

KINDS = {
    "tied": ("llama-tied", {}),
    "untied": ("llama", {}),
    "sharded": ("llama", {"max_shard_size": "60KB"}),
    "bf16": ("llama-tied", {"dtype": torch.bfloat16}),
}


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", [TSVM, lambda **kw: MergeKitAlgorithm("ties", {"weight": 0.4}, **kw)])
def test_lazy_eager_and_reloaded_agree(kind, algorithm, family, tmp_path: Path):
    architecture, choices = KINDS[kind]
    models = family(architecture, **choices)
    if kind == "sharded":
        assert (models.base / "model.safetensors.index.json").exists()
    base = reload(models.base)
    merged = {}
    for lazy in (True, False):
        path = tmp_path / f"lazy={lazy}"
        model = algorithm(model_save_path=str(path)).run(pool_of(models, lazy=lazy))
        assert type(model) is type(base)
        assert {tensor.device.type for tensor in tensors_of(model).values()} == {"cpu"}
        assert {parameter.dtype for parameter in model.parameters()} == {next(base.parameters()).dtype}
        assert torch.equal(model.model.rotary_emb.inv_freq, base.model.rotary_emb.inv_freq)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == ("tied" in architecture)
        assert torch.equal(logits(model), logits(reload(path)))
        assert not torch.equal(logits(model), logits(base))
        merged[lazy] = model
    assert differing(merged[True].state_dict(), merged[False].state_dict()) == []
    assert torch.equal(logits(merged[True]), logits(merged[False]))


def test_saves_tokenizer_and_card(llama, tmp_path: Path):
    path = tmp_path / "new" / "merged"
    TSVM(model_save_path=str(path), weight=[1.0, 0.5, 2.0], **{"lambda": 0.75}).run(pool_of(llama, lazy=True))
    assert AutoTokenizer.from_pretrained(path).encode("two plus two")
    card = (path / "README.md").read_text()
    assert "TSVM" in card and "lambda: 0.75" in card and str(llama.experts[1]) in card
    assert [entry.name for entry in path.parent.iterdir()] == ["merged"]


class FullDisk(CausalLMPool):
    """Fails when most of the model has been written."""

    def save_model(self, model, path, **kwargs):
        super().save_model(model, path, **kwargs)
        raise OSError(28, "No space left on device")


def test_saving_that_fails_leaves_nothing_on_disk(llama, tmp_path: Path):
    models = {"_pretrained_": str(llama.base), **named_experts(llama)}
    with pytest.raises(OSError, match="No space left"):
        TSVM(model_save_path=str(tmp_path / "merged")).run(FullDisk(models, tokenizer=str(llama.base)))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_saved_into(llama, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("keep me")
    model = TSVM(model_save_path=str(tmp_path)).run(pool_of(llama, lazy=True))
    assert torch.equal(logits(model), logits(reload(tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_lazy_pool_of_dict_configs_can_be_merged_twice(llama, tmp_path: Path):
    """FusionBench empties such configs when it loads from them; afterwards the model card had no names."""

    def config(path):
        return {"_target_": "transformers.AutoModelForCausalLM", "pretrained_model_name_or_path": str(path)}

    models = {
        "_pretrained_": config(llama.base),
        **{name: config(path) for name, path in named_experts(llama).items()},
    }
    pool = CausalLMPool(models, tokenizer=str(llama.base), enable_lazy_loading=True)
    first = TSVM().run(pool)
    second = TSVM(model_save_path=str(tmp_path / "merged")).run(pool)
    assert differing(first.state_dict(), second.state_dict()) == []
    assert str(llama.experts[0]) in (tmp_path / "merged" / "README.md").read_text()


def test_eager_pool_of_dict_configs(llama):
    def config(path):
        target = "transformers.AutoModelForCausalLM.from_pretrained"
        return {"_target_": target, "pretrained_model_name_or_path": str(path)}

    models = {
        "_pretrained_": config(llama.base),
        **{name: config(path) for name, path in named_experts(llama).items()},
    }
    merged = TSVM().run(CausalLMPool(models, tokenizer=str(llama.base)))
    assert differing(merged.state_dict(), TSVM().run(pool_of(llama, lazy=True)).state_dict()) == []


def test_relative_paths(llama, monkeypatch: pytest.MonkeyPatch):
    expected = TSVM().run(pool_of(llama, lazy=True))
    monkeypatch.chdir(llama.base.parent)
    models = {
        "_pretrained_": llama.base.name,
        **{name: Path(path).name for name, path in named_experts(llama).items()},
    }
    merged = TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=True))
    assert differing(merged.state_dict(), expected.state_dict()) == []


def test_pytorch_files(llama, tmp_path: Path):
    expected = TSVM().run(pool_of(llama, lazy=True))
    copy_of_expert = tmp_path / "in_pytorch_format"
    shutil.copytree(llama.experts[2], copy_of_expert)
    (copy_of_expert / "model.safetensors").unlink()
    torch.save(stored(llama.experts[2]), copy_of_expert / "pytorch_model.bin")
    models = {"_pretrained_": str(llama.base), **named_experts(llama, 2), "gamma": str(copy_of_expert)}
    for lazy in (True, False):
        merged = TSVM().run(CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy))
        assert differing(merged.state_dict(), expected.state_dict()) == []


def test_lora_experts(llama, tmp_path: Path):
    import peft

    torch.manual_seed(5)
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(reload(llama.base), config)
    adapted.save_pretrained(adapter)
    whole = tmp_path / "whole"
    adapted.merge_and_unload().save_pretrained(whole)

    def merged(expert, name="lora"):
        models = {"_pretrained_": {**loader, "pretrained_model_name_or_path": str(llama.base)}, name: expert}
        return TSVM().run(CausalLMPool(models, tokenizer=None)).state_dict()

    loader = {"_target_": "transformers.AutoModelForCausalLM.from_pretrained"}
    lora = {
        "_target_": "fusion_bench.modelpool.causal_lm.causal_lm.load_peft_causal_lm",
        "base_model_path": str(llama.base),
        "peft_model_path": str(adapter),
        "torch_dtype": "float32",
    }
    expected = merged({**loader, "pretrained_model_name_or_path": str(whole)})
    assert differing(merged({**lora, "is_trainable": False, "merge_and_unload": True}), expected) == []
    as_an_adapter = merged(lora)  # its update is not rounded to the weights first
    assert all(torch.allclose(as_an_adapter[name], tensor, atol=1e-7) for name, tensor in expected.items())


def test_torch_dtype_of_the_pool(llama):
    lazy, eager = (
        TSVM().run(pool_of(llama, lazy=lazy, model_kwargs={"torch_dtype": "bfloat16"})) for lazy in (True, False)
    )
    assert {parameter.dtype for parameter in lazy.parameters()} == {torch.bfloat16}
    assert differing(lazy.state_dict(), eager.state_dict()) == []


@pytest.mark.parametrize("lazy", [True, False])
def test_mixed_dtypes_are_merged_promoted_and_rounded_once(family, lazy):
    low, full = family("llama", dtype=torch.bfloat16), family("llama")
    models = {"_pretrained_": str(low.base), "low": str(low.experts[0]), "full": str(full.experts[1])}
    pool = CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy)
    merged = TSVM().run(pool)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    base, experts = stored(low.base), {"low": stored(low.experts[0]), "full": stored(full.experts[1])}
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        tensors = {label: state[name] for label, state in experts.items()}
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.float32}
        expected = merge_tensor(name, base[name], tensors, {"low": 1.0, "full": 1.0}, parse_options("tsvm", {}))
        assert expected.dtype == torch.float32
        assert torch.equal(merged.state_dict()[name], expected.bfloat16())


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gpt2"])
def test_other_architectures(family, architecture, tmp_path: Path):
    models = family(architecture)
    lazy = TSVM(model_save_path=str(tmp_path / "merged")).run(pool_of(models, lazy=True))
    eager = TSVM().run(pool_of(models, lazy=False))
    assert torch.equal(logits(lazy), logits(eager))
    assert torch.equal(logits(lazy), logits(reload(tmp_path / "merged")))


def test_fused_experts(family, tmp_path: Path, mergekit_yaml):
    """Mixtral's files have matrices for each expert, its module one tensor for all: every route merges that one."""
    models = family("mixtral")
    lazy = TSVM(model_save_path=str(tmp_path / "merged")).run(pool_of(models, lazy=True))
    eager = TSVM().run(pool_of(models, lazy=False))
    assert differing(lazy.state_dict(), eager.state_dict()) == []
    assert torch.equal(logits(lazy), logits(reload(tmp_path / "merged")))
    output = mergekit_yaml({"mixtral": merge_config(models, "tsvm")})["mixtral"]
    assert differing(lazy.state_dict(), stored(output)) == []

    base, *experts = (reload(path).state_dict() for path in (models.base, *models.experts))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert base[name].ndim == 3
    for expert in range(base[name].shape[0]):
        tensors = {str(i): state[name][expert] for i, state in enumerate(experts)}
        weights = dict.fromkeys(tensors, 1.0)
        expected = merge_tensor("one", base[name][expert], tensors, weights, parse_options("tsvm", {}))
        assert torch.equal(lazy.state_dict()[name][expert], expected)


class TiedPair(nn.Module):
    """A module that only Python knows to be tied, with one buffer of each kind."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encode = nn.Linear(12, 16)
        self.decode = nn.Linear(12, 16)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(16, 3 + seed)
        self.register_buffer("indices", torch.arange(4))
        self.register_buffer("running", torch.rand(4))
        self.register_buffer("own", torch.rand(2), persistent=False)


def test_modules_in_memory_stay_as_they_are():
    models = {"_pretrained_": TiedPair(0), "a": TiedPair(1), "b": TiedPair(2)}
    for model in models.values():
        model._fusion_bench_target_modules = ["encode", "decode", "indices", "running"]
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    merged = TSVM().run(BaseModelPool(models))
    for name, model in models.items():
        assert differing(model.state_dict(), before[name]) == []
        mine = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model).values()}
        assert not mine & {tensor.untyped_storage().data_ptr() for tensor in tensors_of(merged).values()}
    assert type(merged) is TiedPair
    assert merged.encode.weight is merged.decode.weight
    assert merged.encode.weight.requires_grad
    assert not torch.equal(merged.encode.weight, models["_pretrained_"].encode.weight)
    # Outside of the target modules the base's tensors stay, here of shapes that only the base has.
    assert torch.equal(merged.head.weight, models["_pretrained_"].head.weight)
    assert torch.equal(merged.indices, torch.arange(4)) and torch.equal(merged.own, models["_pretrained_"].own)
    mean = torch.stack([models[name].running for name in ("a", "b")]).mean(0)
    # One float32 rounding of sums of numbers below 2.
    torch.testing.assert_close(merged.running, mean, rtol=0, atol=2**-22)


def test_batch_norm_counters_are_the_bases():
    models = {name: nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12)) for name in ("_pretrained_", "a", "b")}
    for steps, model in enumerate(models.values()):
        model[1].num_batches_tracked.fill_(steps + 5)
    assert TSVM().run(BaseModelPool(models))[1].num_batches_tracked == 5


def test_passed_through_tensors_are_copies(family):
    base = nn.Linear(8, 8)
    pool = BaseModelPool({"only": base})
    merged = MergeKitAlgorithm("passthrough").run(pool)
    assert torch.equal(merged.weight, base.weight) and merged.weight.data_ptr() != base.weight.data_ptr()


class Mean(StreamingAlgorithm):
    """The example of docs/fusion_bench.md."""

    def base_name(self, modelpool):
        return "_pretrained_"

    def check_pool(self, base, experts):
        pass

    def merge(self, name, base, experts):
        return sum(experts.values()) / len(experts)


def test_a_method_of_ones_own(llama):
    merged = Mean().run(pool_of(llama, lazy=True)).state_dict()
    experts = [reload(path).state_dict() for path in llama.experts]
    for name, tensor in merged.items():
        assert torch.equal(tensor, (experts[0][name] + experts[1][name] + experts[2][name]) / 3)
