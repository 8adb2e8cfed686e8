"""``runner: ray``: the workers open the same request, and find what one process finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Trained
from .test_search_command import search

ray = pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"combine": "ties", "solver": "cmaes", "density": 0.7, "max_evaluations": 12, "layer_granularity": 1},
        {"combine": "iso_c", "over": "lambda,power", "max_evaluations": 4},
        {"combine": "iso_c", "power": 0.5, "max_evaluations": 3},
    ],
    ids=["weights", "options", "held"],
)
def test_the_same_result(cluster: str, trained: Trained, absolute: Path, options: dict[str, Any]) -> None:
    config = trained.config(**options)
    search(config, absolute / "local.yml")
    search(config, absolute / "ray.yml", "--runner", "ray", "--ray-workers", "2", "--ray-cpus-per-worker", "0.5")
    local, remote = (json.loads((absolute / f"{name}.json").read_text()) for name in ("local", "ray"))
    for report in (local, remote):
        del report["seconds"]
    assert local == remote


@pytest.mark.slow
def test_fusion_bench_workers_open_the_pool_from_its_config(cluster: str, trained: Trained, absolute: Path) -> None:
    pytest.importorskip("fusion_bench")
    from fusion_bench.modelpool import CausalLMPool

    from fusion_bench_ext.algorithms import SafetyMerge

    models = {"_pretrained_": str(trained.base), "aligned": str(trained.aligned), "domain": str(trained.domain)}
    options = {"data": str(trained.data), "max_evaluations": 3, "ray_workers": 1, "ray_cpus_per_worker": 0.5}
    found = {}
    for runner in ("local", "ray"):
        algorithm = SafetyMerge(runner=runner, report=str(absolute / runner), **options)
        algorithm.run(CausalLMPool(models, tokenizer=str(trained.base), enable_lazy_loading=True))
        found[runner] = json.loads((absolute / runner / "safety_merge.json").read_text())
        del found[runner]["seconds"]
    assert found["local"] == found["ray"]
