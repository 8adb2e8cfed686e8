"""``runner: ray``: the workers open the same request, and find what one process finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Trained
from .test_search_command import search

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine for all tests here: starting one takes seconds."""
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_the_same_result(cluster: None, trained: Trained, absolute: Path) -> None:
    config = trained.config(combine="ties", solver="cmaes", density=0.7, max_evaluations=12, layer_granularity=1)
    search(config, absolute / "local.yml")
    search(config, absolute / "ray.yml", "--runner", "ray", "--ray-workers", "2", "--ray-cpus-per-worker", "0.5")
    local, remote = (json.loads((absolute / f"{name}.json").read_text()) for name in ("local", "ray"))
    for report in (local, remote):
        del report["seconds"]
    assert local == remote
