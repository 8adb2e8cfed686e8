"""Every spectral method through real ``mergekit-yaml`` and FusionBench's own configs, on checkpoints: the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from mergekit_3h.spectral import registry

from .conftest import differing, logits, merge_config, pool_of, reload, stored
from .test_configs import compose


@pytest.fixture(scope="module")
def by_mergekit(family, mergekit_yaml: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    models = family("llama-tied", dtype=torch.bfloat16)
    return mergekit_yaml({name: merge_config(models, name, {"lambda": 0.7}) for name in registry.own_names()})


@pytest.mark.parametrize("name", registry.own_names())
def test_both_hosts_merge_checkpoints_to_the_same_bits(name: str, family, by_mergekit, tmp_path: Path) -> None:
    models = family("llama-tied", dtype=torch.bfloat16)
    algorithm = instantiate(compose(f"method={name}", "method.lambda=0.7", f"method.model_save_path={tmp_path}").method)
    algorithm.run(pool_of(models, lazy=True))
    assert differing(stored(tmp_path), stored(by_mergekit[name])) == []
    assert differing(stored(tmp_path), stored(models.base))
    assert torch.isfinite(logits(reload(tmp_path))).all()
