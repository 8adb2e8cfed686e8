"""Session-wide tiny model families, the device that merges run on, and the environment of real host processes."""

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

from mergekit_3h.testing import updates


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="Where merges and models compute.")


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are hidden from tests of the CPU, in this process and in those it starts: hosts take one if they see it."""
    device = config.getoption("--device")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        build = f"torch {torch.__version__}" + ("" if torch.version.cuda else ", which is a build without CUDA,")
        raise pytest.UsageError(f"--device cuda: {build} sees no GPU here; leave the option out")
    updates.place = torch.device(device)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("only_on"):
        if marker.args[0] != updates.place.type:
            pytest.skip(f"tests {marker.args[0]}: run with --device {marker.args[0]}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where merges and models compute."""
    return updates.place


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
