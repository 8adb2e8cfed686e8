"""The presets of ``keep_base`` on real tiny models, in both hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from fusion_bench.modelpool import CausalLMPool
from hosts import mergekit_yaml

from fusion_bench_ext.algorithms import TSVM
from mergekit_3h.spectral.name_patterns import is_kept

from .conftest import Made


def same_as_base(made: Made, merged: Path) -> set[str]:
    base, result, expert = made.state(made.base), made.state(merged), made.state(made.experts[0])
    changed = {name for name in base if not torch.equal(base[name], expert[name])}  # the others are buffers
    return {name for name in changed if torch.equal(base[name], result[name])}


def by_fusion_bench(made: Made, keep_base: str, out: Path) -> Path:
    folders = {"_pretrained_": made.base, "first": made.experts[0], "second": made.experts[1]}
    target = f"transformers.{made.tiny.auto}"
    models = {key: {"_target_": target, "pretrained_model_name_or_path": str(path)} for key, path in folders.items()}
    pool = CausalLMPool(models, tokenizer=None, enable_lazy_loading=True)
    TSVM(keep_base=keep_base, model_save_path=str(out)).run(pool)
    return out


def test_the_language_tower_of_a_vision_language_model_is_merged_alone(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    llava = made("llava")
    kept = same_as_base(llava, by_fusion_bench(llava, "vlm", tmp_path / "merged"))
    assert kept == {name for name in llava.state(llava.base) if is_kept(name, "vlm")} and len(kept) > 40
    assert any("vision" in name for name in kept) and not any(".mlp." in name and "language" in name for name in kept)


def test_the_routers_of_a_mixture_stay_the_bases_in_both_hosts(made: Callable[[str], Made], absolute: Path) -> None:
    mixtral = made("mixtral")
    models = [{"model": str(path)} for path in mixtral.experts]
    parameters = {"keep_base": "router"}
    config = {"merge_method": "tsvm", "base_model": str(mixtral.base), "models": models, "parameters": parameters}
    mergekit_yaml(config, absolute / "merged", "--no-write-model-card", "--no-copy-tokenizer")
    for merged in (absolute / "merged", by_fusion_bench(mixtral, "router", absolute / "fused")):
        kept = same_as_base(mixtral, merged)
        assert len(kept) == 2 and all(name.endswith(".gate.weight") for name in kept)
