"""Adapters in FusionBench's pools: folders, configs and peft's models in memory give mergekit's bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fusion_bench.compat.modelpool import PeftModelForSeq2SeqLMPool  # its own module imports this one in a circle
from fusion_bench.modelpool import BaseModelPool, CausalLMPool
from hosts import read_model
from mergekit.options import MergeOptions
from omegaconf import OmegaConf
from tiny_adapters import adapted_model, change_config, write_adapter, write_adapters
from tiny_models import Family, tiny_model
from torch import Tensor

from fusion_bench_ext.algorithms import RTSVM, TSVM, MergeKitAlgorithm
from fusion_bench_ext.pools import PoolModels
from mergekit_3h.errors import ModelError, OptionError, TensorError
from mergekit_3h.methods.adapter_merge import write_merged_adapter
from mergekit_3h.methods.memory_merge import Merger
from mergekit_3h.spectral.low_rank import bytes_to_merge_low_rank

LOADER = "fusion_bench.modelpool.causal_lm.causal_lm.load_peft_causal_lm"


@pytest.fixture(scope="module")
def adapters(family: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    base = family("llama", dtype=torch.bfloat16).base
    return base, write_adapters(base, tmp_path_factory.mktemp("adapters"))


def config_of(base: Path, adapters: list[Path]) -> dict[str, Any]:
    models = [{"model": f"{base}+{adapter}"} for adapter in adapters]
    return {"merge_method": "tsvm", "base_model": str(base), "models": models}


def by_mergekit(base: Path, adapters: list[Path]) -> dict[str, Tensor]:
    return Merger().tensors(config_of(base, adapters), 0)


def entries(base: Path, adapters: list[Path], kind: str) -> dict[str, Any]:
    def entry(folder: Path) -> Any:
        if kind == "config":
            return {"_target_": LOADER, "base_model_path": str(base), "peft_model_path": str(folder)}
        return str(folder)

    return {"_pretrained_": str(base), **{folder.name: entry(folder) for folder in adapters}}


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("kind", ["folder", "config"])
def test_a_pool_of_adapters_is_merged_as_mergekit_merges_them(
    adapters: tuple[Path, list[Path]], kind: str, lazy: bool
) -> None:
    pool = CausalLMPool(entries(*adapters, kind), tokenizer=None, enable_lazy_loading=lazy)
    found = TSVM(lora="core").run(pool).state_dict()
    expected = by_mergekit(*adapters)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_models_of_peft_in_memory_are_merged_alike(adapters: tuple[Path, list[Path]]) -> None:
    import peft

    base, folders = adapters
    load = transformers.AutoModelForCausalLM.from_pretrained
    models = {folder.name: peft.PeftModel.from_pretrained(load(base, dtype="auto"), folder) for folder in folders}
    found = TSVM(lora="core").run(BaseModelPool({"_pretrained_": load(base, dtype="auto"), **models})).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in by_mergekit(base, folders).items())


def test_every_other_algorithm_reads_whole_models(adapters: tuple[Path, list[Path]]) -> None:
    base, folders = adapters
    pool = CausalLMPool(entries(base, folders[:1], "folder"), tokenizer=None, enable_lazy_loading=True)
    found = MergeKitAlgorithm("task_arithmetic", parameters={"weight": 1.0}).run(pool).state_dict()
    whole = adapted_model(base, 0, r=2, target_modules=["q_proj", "up_proj"]).merge_and_unload().state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)  # bfloat16
    mixed = CausalLMPool({**entries(base, folders[:1], "folder"), "same": str(base)}, tokenizer=None)
    assert TSVM().run(mixed).state_dict().keys() == found.keys()
    with pytest.raises(OptionError, match="'lora': got 'core', but not all experts of the pool are LoRA adapters"):
        TSVM(lora="core").run(mixed)


def test_the_pool_of_sequence_to_sequence_models(tmp_path: Path) -> None:
    import peft

    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base")
        lora = peft.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
        peft.get_peft_model(model, lora).save_pretrained(tmp_path / f"expert{seed}")
    models = [{"name": "_pretrained_", "path": str(tmp_path / "base")}]
    models += [{"name": f"expert{seed}", "path": str(tmp_path / f"expert{seed}")} for seed in (1, 2)]

    def pool(*, merge: bool) -> Any:
        chosen = [models[0], *({**each, "merge_and_unload": merge} for each in models[1:])]
        return PeftModelForSeq2SeqLMPool(OmegaConf.create({"models": chosen}))

    found, dense = (TSVM().run(pool(merge=merge)).state_dict() for merge in (False, True))
    assert found.keys() == dense.keys()
    base = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").state_dict()
    assert sum(not torch.equal(found[name], base[name]) for name in base) == 6  # q and v of three attentions
    assert all(torch.allclose(found[name], dense[name], atol=1e-5) for name in found)


def test_wrong_pools_and_options(adapters: tuple[Path, list[Path]], llama: Family, tmp_path: Path) -> None:
    base, folders = adapters
    alone = entries(base, folders, "folder")
    del alone["_pretrained_"]
    with pytest.raises(ModelError, match="model 'adapter0' of the pool is a LoRA adapter, and the pool has no"):
        MergeKitAlgorithm("karcher").run(CausalLMPool(alone, tokenizer=None))
    with pytest.raises(OptionError, match="'lora': got 'dens'; expected one of auto, core, dense"):
        TSVM(lora="dens")
    with pytest.raises(OptionError, match="rtsvm with these options depends on more"):
        RTSVM(lora="core", preset="paper").run(CausalLMPool(entries(base, folders, "folder"), tokenizer=None))
    other = tmp_path / "other"
    tiny_model("llama", seed=9).save_pretrained(other)
    with pytest.raises(ModelError, match=r"adapter 'adapter0' was trained on .*, not on"):
        TSVM().run(CausalLMPool({**alone, "_pretrained_": str(other)}, tokenizer=None))
    on_another = BaseModelPool({"_pretrained_": tiny_model("llama", seed=9), "peft": adapted_model(llama.base)})
    with pytest.raises(TensorError, match="adapter 'peft' brings a weight of its base for the module"):
        TSVM().run(on_another)
    with_two = adapted_model(llama.base)
    with_two.add_adapter("second", with_two.peft_config["default"])
    with_two.base_model.set_adapter(["default", "second"])
    pool = BaseModelPool({"_pretrained_": tiny_model("llama"), "peft": with_two})
    with pytest.raises(ModelError, match="model 'peft' has 2 active adapters"):
        TSVM().run(pool)


FILES = ("adapter_model.safetensors", "adapter_config.json")


def same_files(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(("lora", "rank"), [("auto", None), ("core", 3), ("dense", 2)])
def test_one_adapter_is_written_as_mergekit_3h_merge_writes_it(
    adapters: tuple[Path, list[Path]], absolute: Path, lora: Any, rank: int | None
) -> None:
    import peft

    base, folders = adapters
    pool = CausalLMPool(entries(base, folders, "config"), tokenizer=None, enable_lazy_loading=True)
    merged = TSVM(lora=lora, adapter_save_path=str(absolute / "ours"), adapter_rank=rank).run(pool)
    write_merged_adapter(config_of(base, folders), absolute / "cli", MergeOptions(), route=lora, rank=rank)
    assert same_files(absolute / "ours", absolute / "cli")
    assert "adapter_rank" in (absolute / "ours" / "algorithm_config.yaml").read_text()

    # The merged model is the base with the adapter that was written: by peft, and by mergekit's BASE+ADAPTER.
    found, expected = merged.state_dict(), by_mergekit(base, folders)
    if rank is None:
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    whole = peft.PeftModel.from_pretrained(loaded, absolute / "ours").merge_and_unload().state_dict()
    once_more = by_mergekit(base, [absolute / "ours"])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-2, atol=1e-3)  # bfloat16
        if name in once_more:
            torch.testing.assert_close(tensor, once_more[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow  # a process of its own
def test_the_command_writes_an_adapter(
    adapters: tuple[Path, list[Path]], absolute: Path, fusion_bench: Callable[..., Any]
) -> None:
    pool = {
        "_target_": "fusion_bench.modelpool.CausalLMPool",
        "models": entries(*adapters, "folder"),
        "tokenizer": None,
        "enable_lazy_loading": True,
    }
    write_merged_adapter(config_of(*adapters), absolute / "cli", MergeOptions(), rank=4)
    options = ["method=tsvm", f"method.adapter_save_path={absolute / 'ours'}", "method.adapter_rank=4"]
    done = fusion_bench(pool, [*options, "taskpool=dummy"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "saved an adapter of rank 2 to 4 on 9 modules; cutting to it moved the merged update by" in done.stdout
    assert same_files(absolute / "ours", absolute / "cli")
    with pytest.raises(OptionError, match=r"adapter_save_path: .*/ours: is there already and not empty"):
        TSVM(adapter_save_path=str(absolute / "ours")).run(CausalLMPool(pool["models"], tokenizer=None))


def test_an_adapter_of_models_in_memory_names_the_base_that_theirs_name(llama: Family, absolute: Path) -> None:
    def pool() -> BaseModelPool:
        base = transformers.AutoModelForCausalLM.from_pretrained(llama.base, dtype="auto")
        return BaseModelPool({"_pretrained_": base, "one": adapted_model(llama.base), "two": other})

    other = adapted_model(llama.base, 1)
    TSVM(adapter_save_path=str(absolute / "adapter"), **{"lambda": 0.5}).run(pool())
    assert read_model(absolute / "adapter").keys() and str(llama.base) in (absolute / "adapter" / FILES[1]).read_text()
    other.peft_config["default"].base_model_name_or_path = None
    with pytest.raises(ModelError, match="the pool's base is in memory, and its adapters do not name one base"):
        TSVM(adapter_save_path=str(absolute / "another")).run(pool())
    assert not (absolute / "another").exists()


def test_an_adapter_that_could_not_be_right_is_refused(
    adapters: tuple[Path, list[Path]], llama: Family, absolute: Path
) -> None:
    base, folders = adapters
    out = str(absolute / "adapter")
    mixed = CausalLMPool({**entries(base, folders, "folder"), "whole": str(base)}, tokenizer=None)
    with pytest.raises(ModelError, match="adapter_save_path: model 'whole' is a whole model, and no adapter has in"):
        TSVM(adapter_save_path=out).run(mixed)
    pool = CausalLMPool(entries(base, folders, "folder"), tokenizer=None)
    with pytest.raises(ModelError, match="the merged update is nothing"):
        TSVM(adapter_save_path=out, weight=0.0).run(pool)
    for options, message in [
        ({"adapter_rank": 4}, "option 'adapter_rank': got 4, but no adapter is written; name adapter_save_path too"),
        ({"adapter_rank": 0, "adapter_save_path": out}, "'adapter_rank': got 0; expected a whole number from 1 on"),
        ({"adapter_save_pth": out}, "did you mean 'adapter_save_path'"),
    ]:
        with pytest.raises(OptionError, match=message):
            TSVM(**options)
    with pytest.raises(OptionError, match=r"'adapter_save_path': got .* where model_save_path saves the whole model"):
        TSVM(adapter_save_path=out, model_save_path=f"{out}/").run(pool)
    trained_whole = write_adapter(llama.base, absolute / "trained", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"modules_to_save is set in its adapter_config.json"):
        TSVM(adapter_save_path=out).run(CausalLMPool(entries(llama.base, [trained_whole], "folder"), tokenizer=None))
    change_config(trained_whole, modules_to_save=None)
    with pytest.raises(TensorError, match=r"its tensor '.*lm_head.weight' is no LoRA factor of a matrix"):
        TSVM(adapter_save_path=out).run(CausalLMPool(entries(llama.base, [trained_whole], "folder"), tokenizer=None))
    assert not list(absolute.glob("adapter*"))


def test_memory_is_that_of_the_core_space(adapters: tuple[Path, list[Path]]) -> None:
    base, folders = adapters
    pool = CausalLMPool(entries(base, folders, "folder"), tokenizer=None, enable_lazy_loading=True)
    models, weights, algorithm = PoolModels(pool), read_model(base), TSVM()
    experts = [models.open(folder.name) for folder in folders]
    algorithm.check_pool("_pretrained_", [folder.name for folder in folders])
    q, norm = weights["model.layers.0.self_attn.q_proj.weight"], weights["model.norm.weight"]
    own = bytes_to_merge_low_rank((q.shape[0], q.shape[1]), q.itemsize, [2, 3, 2], algorithm.options, "auto")
    needs = [algorithm.bytes_needed(name, models.base, experts) for name, tensor in weights.items() if tensor is q]
    assert needs == [q.nbytes + own]
    assert algorithm.bytes_needed("model.norm.weight", models.base, experts) == 2 * norm.nbytes
