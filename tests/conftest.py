"""Session-wide tiny model families and the environment that real host processes run in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from tiny_models import Family, write_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    """``family("llama", dtype=torch.bfloat16)``: made once a session for every combination asked for."""
    made: dict[str, Family] = {}

    def get(architecture: str = "llama", **choices: object) -> Family:
        key = f"{architecture}-{sorted(choices.items())}"
        if key not in made:
            made[key] = write_family(tmp_path_factory.mktemp(architecture), architecture, **choices)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture
def llama(family: Callable[..., Family]) -> Family:
    """Three full-rank float32 experts of a tiny Llama."""
    return family("llama")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def absolute(tmp_path: Path) -> Path:
    """An absolute folder for this test; mergekit's model card writer cannot cope with relative model paths offline."""
    return tmp_path.resolve()


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two cores on this machine, which is there when something connects to it."""
    ray = pytest.importorskip("ray")
    context = ray.init(
        "local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False
    )
    yield context.address_info["address"]
    ray.shutdown()
