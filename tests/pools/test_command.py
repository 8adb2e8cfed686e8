"""The real ``fusion_bench`` command, in its own process and an empty folder, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import torch

from .conftest import differing, logits, merge_config, named_experts, pool_config, reload, stored


def test_tsvm_equals_mergekit_yaml(family, fusion_bench, mergekit_yaml, tmp_path: Path):
    models = family("llama-tied", dtype=torch.bfloat16, max_shard_size="60KB")
    merged = tmp_path / "merged"
    overrides = ["method=tsvm", "method.lambda=0.8", "method.noise_floor=off", f"method.model_save_path={merged}"]
    done = fusion_bench(pool_config(models), [*overrides, "method.weight={beta: 0.5}"])
    assert done.returncode == 0, done.stderr[-4000:]
    config = merge_config(models, "tsvm", {"lambda": 0.8, "noise_floor": False})
    config["models"][1]["parameters"] = {"weight": 0.5}
    output = mergekit_yaml({"tsvm": config})["tsvm"]
    assert differing(stored(merged), stored(output)) == []
    assert torch.isfinite(logits(reload(merged))).all()
    assert (merged / "tokenizer.json").exists() and "lambda: 0.8" in (merged / "README.md").read_text()
    # No terminal, no progress bar.
    assert "tensor/s" not in done.stderr


def test_saving_by_the_program_itself(llama, fusion_bench, tmp_path: Path):
    merged = tmp_path / "merged"
    parameters = "method.parameters={weight: 0.5, density: 0.5}"
    overrides = ["method=mergekit", "method.merge_method=ties", parameters, f"merged_model_save_path={merged}"]
    done = fusion_bench(pool_config(llama, lazy=False), overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    assert differing(stored(merged), stored(llama.base))
    assert torch.isfinite(logits(reload(merged))).all()


def told(done) -> str:
    """What Hydra prints about an error: all of stderr after its heading."""
    _, _, rest = done.stderr.rpartition("Error executing job with overrides:")
    assert "Traceback" not in done.stdout + done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 1
    return rest.partition("\n")[2]


def test_errors_are_one_message_without_a_traceback(llama, fusion_bench, tmp_path: Path):
    absent = {**pool_config(llama), "models": {"_pretrained_": "/nowhere/base", "alpha": "/nowhere/alpha"}}
    done = fusion_bench(absent, ["method=rtsvm", "method.gamma=1.5"])
    assert told(done).startswith("option 'gamma': got 1.5; ")
    assert (done.stdout + done.stderr).count("option 'gamma': got 1.5") == 1

    # Refused before the models, which do not exist, would be loaded.
    done = fusion_bench(absent, ["method=rtsvm", "+method.gama=0.5"])
    assert told(done).startswith("rtsvm has no option 'gama'; did you mean 'gamma'?")


def test_errors_of_the_models_are_one_message_too(llama, fusion_bench, tmp_path: Path):
    without_base = {**pool_config(llama), "models": named_experts(llama)}
    merged = tmp_path / "merged"
    done = fusion_bench(without_base, ["method=tsvm", f"method.model_save_path={merged}"])
    assert told(done).startswith("tsvm needs the model that the experts were trained from")
    assert not merged.exists()


def test_full_error_brings_the_traceback_back(llama, fusion_bench):
    done = fusion_bench(pool_config(llama), ["method=rtsvm", "method.gamma=1.5"], HYDRA_FULL_ERROR="1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "option 'gamma': got 1.5" in done.stderr
