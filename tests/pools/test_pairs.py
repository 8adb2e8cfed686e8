"""Options that change one merge together: gate, factors on blocks, another method within, noise floors, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from hosts import mergekit_yaml
from hydra.utils import get_class
from tiny_adapters import write_adapters
from tiny_models import Family

from fusion_bench_ext.method_configs import method_config
from mergekit_3h.methods.memory_merge import Merger
from mergekit_3h.spectral.registry import method as spectral

from .conftest import differing, stored
from .test_gate import ROLES, THRESHOLD, config, four, pool

__all__ = ["four"]

BLOCKS = "1 0.5 / 0.25 2"
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks of tsvm": ("tsvm", {"block_weights": BLOCKS}),
    "blocks of iso_c": ("iso_c", {"block_weights": BLOCKS, "power": 0.5}),
    "blocks within": ("svc", {"combine": "tsvm", "combine_options": f"block_weights={BLOCKS}, noise_floor=auto"}),
    "ties within": ("svc", {"combine": "ties", "combine_options": "density=0.4"}),
    "dare within": ("boost", {"combine": "dare_ties", "combine_options": "seed=3"}),
    "floor of iso_c": ("iso_c", {"noise_floor": "on", "lambda": 0.5}),
    "floor of iso_cts": ("iso_cts", {"noise_floor": "auto", "keep_base": "lm_head", "exclude": "embed"}),
}


def by_fusion_bench(method: str, options: dict[str, Any], models: Any) -> dict[str, torch.Tensor]:
    algorithm = get_class(method_config(spectral(method))["_target_"])
    return algorithm(**options).run(models).state_dict()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_with_the_gate(name: str, four: Family, absolute: Path) -> None:
    method, options = OPTIONS[name]
    gate = {"gate_threshold": THRESHOLD, "gate_share": 0.5}
    mergekit_yaml(config(four, **options) | {"merge_method": method}, absolute / "out")
    merged = by_fusion_bench(method, {**options, **gate, "role": ROLES}, pool(four))
    found = stored(absolute / "out")
    assert differing(merged, found) == []
    mergekit_yaml(config(four, **options, gate_threshold=0.0) | {"merge_method": method}, absolute / "open")
    assert differing(stored(absolute / "open"), found)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_with_adapters(name: str, four: Family, absolute: Path) -> None:
    """In their core space where the method has one; elsewhere, and with ``lora: dense``, multiplied out."""
    method, options = OPTIONS[name]
    adapters = write_adapters(four.base, absolute / "adapters")[:2]
    listed = [{"model": f"{four.base}+{adapter}"} for adapter in adapters]
    given = {"merge_method": method, "base_model": str(four.base), "models": listed, "parameters": options}
    models = {"_pretrained_": str(four.base), **{adapter.name: str(adapter) for adapter in adapters}}
    merged = by_fusion_bench(method, options, CausalLMPool(models, tokenizer=str(four.base)))
    assert differing(merged, Merger().tensors(given, 0)) == []
    dense = by_fusion_bench(method, {**options, "lora": "dense"}, CausalLMPool(models, tokenizer=str(four.base)))
    for parameter, tensor in stored(four.base).items():
        update, other = (found[parameter].double() - tensor.double() for found in (merged, dense))
        assert float((update - other).norm()) <= 0.02 * float(other.norm())  # two roundings to bfloat16
