"""Wrong input through ``mergekit-yaml``: one clear message, no traceback, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import merge_config, mergekit_yaml, read_model
from safetensors.torch import load_file, save_file
from tiny_models import Family

from mergekit_3h.kernels.workers import BLAS_THREADS, blas_threads


def refusal(config: dict[str, Any], out: Path) -> str:
    """The message of a merge that must fail before it writes."""
    done = mergekit_yaml(config, out, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert not list(out.glob("*.safetensors"))
    return done.stderr[done.stderr.index("Error: ") :]


@pytest.fixture
def altered(llama: Family, absolute: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Family]:
    """The tiny family with one expert's file changed by a function of its tensors."""

    def alter(change: Callable[[dict[str, torch.Tensor]], None]) -> Family:
        folder = absolute / "altered"
        shutil.copytree(llama.experts[1], folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return Family(llama.base, [llama.experts[0], folder])

    return alter


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": 1.5}, "option 'gamma': got 1.5; input should be less than or equal to 1"),
        ({"gama": 0.5}, "rtsvm has no option 'gama', mergekit would ignore it; did you mean 'gamma'?"),
        ({"order": "sideways"}, "'truncate_first' or 'orthogonalize_first'"),
        ({"gamma": [0.0, 1.5]}, "got 1.5"),
        ({"gamma": [{"filter": "mlp", "value": -1.0}, {"value": 0.1}]}, "got -1.0"),
        ({"exclude": ["embed_tokens", "lm_head"]}, "write several values as one string"),
        ({"keep_base": ["embed_tokens", "lm_head"]}, "write several values as one string"),
        ({"block_weights": "1 0 / 1 0"}, "got '1 0 / 1 0', which is for 2 experts; there are 3"),
        ({"core": "dc", "decorrelation": 0.1}, "option 'decorrelation': got 0.1; core: dc stands between"),
    ],
)
def test_bad_options(parameters: dict[str, Any], message: str, llama: Family, absolute: Path) -> None:
    assert message in refusal(merge_config(llama, "rtsvm", parameters=parameters), absolute / "out")


def test_a_misspelt_option_of_one_model(llama: Family, absolute: Path) -> None:
    config = merge_config(llama, "tsvm")
    config["models"][1]["parameters"] = {"wieght": 2.0}
    assert "did you mean 'weight'?" in refusal(config, absolute / "out")


def test_blas_threads_that_are_no_number(llama: Family, absolute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BLAS_THREADS, "all")
    blas_threads.cache_clear()
    try:
        message = refusal(merge_config(llama, "tsvm"), absolute / "out")
    finally:
        blas_threads.cache_clear()
    assert f"{BLAS_THREADS} is 'all'; expected a whole number of 1 or more" in message


def test_no_base_model(llama: Family, absolute: Path) -> None:
    config = merge_config(llama, "tsvm")
    del config["base_model"]
    assert "tsvm needs a base model" in refusal(config, absolute / "out")


def test_only_the_base(llama: Family, absolute: Path) -> None:
    config = merge_config(Family(llama.base, [llama.base]), "tsvm")
    assert "at least one expert" in refusal(config, absolute / "out")


def test_a_missing_tensor(altered: Callable[..., Family], absolute: Path) -> None:
    models = altered(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    message = refusal(merge_config(models, "tsvm"), absolute / "out")
    assert str(models.experts[1]) in message
    assert "model.layers.1.mlp.up_proj.weight" in message


def test_a_shape_mismatch(altered: Callable[..., Family], absolute: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:40].contiguous()

    models = altered(cut)
    message = refusal(merge_config(models, "tsvm"), absolute / "out")
    assert "model.layers.1.mlp.up_proj.weight has the shape (40, 32)" in message
    assert "(48, 32)" in message


@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_a_shard_that_is_cut_off_or_not_there(
    method: str, family: Callable[..., Family], llama: Family, absolute: Path
) -> None:
    sharded, copy = family("llama", max_shard_size="50KB"), absolute / "copy"
    shutil.copytree(sharded.experts[1], copy)
    shards = sorted(copy.glob("*.safetensors"))
    assert len(shards) > 2
    shards[-1].write_bytes(shards[-1].read_bytes()[:-100])
    config = merge_config(Family(llama.base, [llama.experts[0], copy]), method)
    message = refusal(config, absolute / "out")
    assert f"{shards[-1]}: truncated" in message and "download or save the model again" in message
    shards[-1].unlink()
    assert f"{shards[-1]} is listed in" in refusal(config, absolute / "out")


def test_a_nan(altered: Callable[..., Family], absolute: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.weight"][3, 5] = float("nan")

    models = altered(poison)
    message = refusal(merge_config(models, "rtsvm"), absolute / "out")
    assert "'model.layers.0.self_attn.q_proj.weight'" in message
    assert f"{models.experts[1]} holds NaN" in message


def test_one_expert_is_returned_itself(llama: Family, absolute: Path) -> None:
    mergekit_yaml(merge_config(Family(llama.base, llama.experts[:1]), "tsvm"), absolute / "out")
    merged, expert = read_model(absolute / "out"), read_model(llama.experts[0])
    assert all(torch.allclose(merged[name], expert[name], rtol=2e-7, atol=1e-8) for name in expert)


def test_an_expert_equal_to_the_base_changes_only_the_others_share(llama: Family, absolute: Path) -> None:
    """It takes its part of the rank and of the mean, and adds nothing."""
    copy = absolute / "copy"
    shutil.copytree(llama.base, copy)
    mergekit_yaml(merge_config(Family(llama.base, [llama.experts[0], copy]), "tsvm"), absolute / "out")
    base, merged, expert = (read_model(path) for path in (llama.base, absolute / "out", llama.experts[0]))
    name = "model.norm.weight"
    assert torch.allclose(merged[name], (base[name] + expert[name]) / 2, atol=1e-7)
    name = "model.layers.0.mlp.up_proj.weight"
    u, s, vh = torch.linalg.svd((expert[name] - base[name]).double())
    half = (u[:, :16] * s[:16]) @ vh[:16]
    assert torch.allclose((merged[name] - base[name]).double(), half, atol=1e-7)


def test_identical_experts_give_their_own_truncation(llama: Family, absolute: Path) -> None:
    twin = absolute / "twin"
    shutil.copytree(llama.experts[0], twin)
    mergekit_yaml(merge_config(Family(llama.base, [llama.experts[0], twin]), "tsvm"), absolute / "out")
    base, merged, expert = (read_model(path) for path in (llama.base, absolute / "out", llama.experts[0]))
    name = "model.layers.0.mlp.up_proj.weight"
    u, s, vh = torch.linalg.svd((expert[name] - base[name]).double())
    assert torch.allclose((merged[name] - base[name]).double(), (u[:, :16] * s[:16]) @ vh[:16], atol=1e-7)
