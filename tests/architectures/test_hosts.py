"""Every architecture through both hosts: merged right, by an oracle on what transformers reloads, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from hosts import mergekit_yaml
from kernels.oracle import merge_truncated
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from torch import Tensor

from fusion_bench_ext.algorithms import TSVM
from mergekit_3h.errors import ModelError
from mergekit_3h.lint import lint
from mergekit_3h.methods.planning import check_models
from mergekit_3h.spectral.tensors import SMALLEST_FUSED_SIDE

from .conftest import WEIGHTS, Made
from .families import FAMILIES

REFUSED = {
    "deepseek-v2": "lost-tensor",
    "deepseek-v3": "lost-tensor",
    "ernie4.5-moe": "lost-tensor",
    "llava": "lost-tensor",
    "gpt-neox": "listed-tensor",
    "falcon": "listed-tensor",
    "qwen3-moe-dense-layer": "listed-tensor",
    "t5": "listed-tensor",
    "bert": "listed-tensor",
    "qwen2-vl": "plan",
}
"""What mergekit 0.1.5 cannot merge by any method, and the rule that says so."""

# One of each kind, in every run; the others with `-m slow`.
SAMPLE = ("llama", "llama-tied", "mixtral", "gpt2", "deepseek-v3", "gpt-neox")
EVERY = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in FAMILIES]

KERNEL, ROUNDING = 2e-6, 2**-23
"""Of the update, what the kernel may be off; of the tensor, what rounding it to float32 may (twice the half ulp)."""


def oracle(base: Tensor, experts: list[Tensor]) -> Tensor:
    """The update that TSVM without a noise floor makes, in float64; weighted means where there are no matrices."""
    deltas = [expert.double() - base.double() for expert in experts]
    if base.ndim == 2:
        rank = max(1, min(base.shape) // len(experts))
        return merge_truncated(deltas, [rank] * len(experts), WEIGHTS)
    if base.ndim == 3 and min(base.shape[1:]) >= SMALLEST_FUSED_SIDE:
        return torch.stack([oracle(base[i], [expert[i] for expert in experts]) for i in range(base.shape[0])])
    return sum((w * delta for w, delta in zip(WEIGHTS, deltas, strict=True)), torch.zeros(())) / len(deltas)


def wrong(made: Made, merged: Path) -> list[str]:
    """The tensors that transformers reloads with another update than the oracle's."""
    base, *experts = (made.state(folder) for folder in (made.base, *made.experts))
    result = made.reload(merged).state_dict()
    assert result.keys() == base.keys()
    found = []
    for name, tensor in result.items():
        if torch.equal(base[name], experts[0][name]):  # a buffer
            expected, bound = base[name].double(), 0.0
        else:
            update = oracle(base[name], [expert[name] for expert in experts])
            expected = base[name].double() + update
            bound = float(KERNEL * update.norm() + ROUNDING * expected.norm())
        if not (tensor.double() - expected).norm() <= bound:
            found.append(name)
    return found


def config(made: Made, method: str) -> dict[str, object]:
    models = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(made.experts, WEIGHTS, strict=True)
    ]
    parameters = {"noise_floor": "off"} if method == "tsvm" else {}
    return {"merge_method": method, "base_model": str(made.base), "models": models, "parameters": parameters}


@pytest.mark.parametrize("name", EVERY)
def test_mergekit_merges_right_or_refuses(made: Callable[[str], Made], name: str, absolute: Path) -> None:
    family, out = made(name), absolute / "merged"
    done = mergekit_yaml(config(family, "tsvm"), out, "--no-write-model-card", "--no-copy-tokenizer", check=False)
    rules = {finding.rule for finding in lint(_written(config(family, "task_arithmetic"), absolute))}
    if name not in REFUSED:
        assert done.returncode == 0, done.stderr
        assert wrong(family, out) == []
        assert rules == set()
        return
    assert done.returncode == 1
    assert not list(out.glob("*.safetensors"))
    assert rules == {REFUSED[name]}


def test_safety_merge_refuses_before_it_searches(made: Callable[[str], Made], absolute: Path) -> None:
    deepseek = made("deepseek-v3")
    asked = {**config(deepseek, "safety_merge"), "parameters": {"data": str(absolute / "safety.jsonl")}}
    asked["models"] = [{"model": str(path)} for path in deepseek.experts]
    done = mergekit_yaml(asked, absolute / "merged", check=False)
    assert done.returncode == 1 and "12 of 41 tensors" in done.stderr
    assert "fusion_bench method=safety_merge" in done.stderr and "Traceback" not in done.stderr


def test_a_model_in_another_cache_is_looked_at_too(made: Callable[[str], Made], absolute: Path) -> None:
    """As ``mergekit-yaml --transformers-cache`` keeps one of the hub."""
    deepseek = made("deepseek-v3")
    repository = absolute / "cache" / "models--org--deepseek"
    shutil.copytree(deepseek.base, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    asked = MergeConfiguration.model_validate({**config(deepseek, "tsvm"), "base_model": "org/deepseek"})
    spec = merge_methods.get("tsvm").spec
    check_models(spec, asked, MergeOptions())  # nothing is known of it
    with pytest.raises(ModelError, match="12 of 41 tensors of org/deepseek"):
        check_models(spec, asked, MergeOptions(transformers_cache=str(absolute / "cache")))


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
@pytest.mark.parametrize("name", EVERY)
def test_fusion_bench_merges_right(made: Callable[[str], Made], name: str, lazy: bool, tmp_path: Path) -> None:
    family = made(name)
    target = f"transformers.{family.tiny.auto}" + ("" if lazy else ".from_pretrained")
    folders = {"_pretrained_": family.base, "first": family.experts[0], "second": family.experts[1]}
    models = {key: {"_target_": target, "pretrained_model_name_or_path": str(path)} for key, path in folders.items()}
    pool = CausalLMPool(models, tokenizer=None, enable_lazy_loading=lazy)
    TSVM(weight=list(WEIGHTS), noise_floor="off", model_save_path=str(tmp_path / "merged")).run(pool)
    assert wrong(family, tmp_path / "merged") == []


def _written(content: dict[str, object], folder: Path) -> Path:
    import yaml

    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(content))
    return path
