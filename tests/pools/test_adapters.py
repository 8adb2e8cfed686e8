"""Adapters in FusionBench's pools: folders, configs and peft's models in memory give mergekit's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fusion_bench.compat.modelpool import PeftModelForSeq2SeqLMPool  # its own module imports this one in a circle
from fusion_bench.modelpool import BaseModelPool, CausalLMPool
from omegaconf import OmegaConf
from tiny_adapters import adapted_model, write_adapters
from tiny_models import Family, tiny_model
from torch import Tensor

from fusion_bench_ext.algorithms import RTSVM, TSVM, MergeKitAlgorithm
from mergekit_3h.errors import ModelError, OptionError, TensorError
from mergekit_3h.methods.memory_merge import Merger

LOADER = "fusion_bench.modelpool.causal_lm.causal_lm.load_peft_causal_lm"


@pytest.fixture(scope="module")
def adapters(family: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    base = family("llama", dtype=torch.bfloat16).base
    return base, write_adapters(base, tmp_path_factory.mktemp("adapters"))


def by_mergekit(base: Path, adapters: list[Path]) -> dict[str, Tensor]:
    models = [{"model": f"{base}+{adapter}"} for adapter in adapters]
    return Merger().tensors({"merge_method": "tsvm", "base_model": str(base), "models": models}, 0)


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
