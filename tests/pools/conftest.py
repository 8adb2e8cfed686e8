"""Pools of tiny models, and the real commands of both hosts in their own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fusion_bench.modelpool import CausalLMPool
from tiny_models import Family
from transformers import AutoModelForCausalLM

EXPERTS = ("alpha", "beta", "gamma")
TOKENS = torch.arange(3, 27).reshape(2, 12)


def named_experts(family: Family, count: int = len(EXPERTS)) -> dict[str, str]:
    """Name and path of the family's first experts."""
    return dict(zip(EXPERTS[:count], map(str, family.experts), strict=False))


def pool_of(family: Family, *, lazy: bool, **kwargs: Any) -> CausalLMPool:
    """The family as a FusionBench pool: ``_pretrained_`` and one model a name of EXPERTS."""
    models = {"_pretrained_": str(family.base), **named_experts(family)}
    return CausalLMPool(models, tokenizer=str(family.base), enable_lazy_loading=lazy, **kwargs)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


def reload(path: Path | str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(str(path), dtype="auto")


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bits and dtype in both."""
    assert first.keys() == second.keys()
    return [
        name for name in first if first[name].dtype != second[name].dtype or not torch.equal(first[name], second[name])
    ]


def stored(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of a saved checkpoint, under the names of its files."""
    from safetensors.torch import load_file

    files = sorted(Path(path).glob("*.safetensors"))
    assert files, f"nothing saved in {path}"
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def merge_config(
    family: Family, method: str, parameters: dict[str, Any] | None = None, base: bool = True, count: int = 3
) -> dict[str, Any]:
    """A mergekit config with the family's first ``count`` experts and ``parameters`` for all of them."""
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(path)} for path in family.experts[:count]],
        "parameters": parameters or {},
    }
    return {**config, "base_model": str(family.base)} if base else config


_MERGE_ALL = """
import sys
from mergekit.scripts.run_yaml import main
for config in sys.argv[2:]:
    main([config, config.removesuffix(".yaml"), "--random-seed", sys.argv[1]], standalone_mode=False)
"""


@pytest.fixture(scope="session")
def mergekit_yaml(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Runs the ``mergekit-yaml`` command on each of the named configs, in one process; gives their output folders."""

    def run(configs: dict[str, dict[str, Any]], seed: int = 17) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("mergekit")
        files = []
        for name, config in configs.items():
            files.append(folder / f"{name}.yaml")
            files[-1].write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, "-c", _MERGE_ALL, str(seed), *map(str, files)],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return {name: folder / name for name in configs}

    return run


@pytest.fixture
def fusion_bench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The ``fusion_bench`` command in an empty folder, with the family's pool as ``modelpool=tiny``."""

    def run(pool: dict[str, Any], overrides: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        configs, work = tmp_path / "my_configs", tmp_path / "work"
        (configs / "modelpool").mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        (configs / "modelpool" / "tiny.yaml").write_text(yaml.safe_dump(pool, sort_keys=False))
        command = Path(sys.executable).with_name("fusion_bench")
        env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        return subprocess.run(
            [str(command), "--config-dir", str(configs), "modelpool=tiny", *overrides],
            cwd=work,
            capture_output=True,
            text=True,
            env={**env, "COLUMNS": "200", **environment},
            timeout=300,
        )

    return run


def pool_config(family: Family, *, lazy: bool = True) -> dict[str, Any]:
    """What a user writes into ``modelpool/tiny.yaml``."""
    return {
        "_target_": "fusion_bench.modelpool.CausalLMPool",
        "models": {"_pretrained_": str(family.base), **named_experts(family)},
        "tokenizer": str(family.base),
        "enable_lazy_loading": lazy,
    }
