"""Every method on a device that is not the CPU: no tensor is made beside it, and the numbers are the CPU's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from spectral.elsewhere import adapters_are_merged_there, components_stay_there, merge_is_the_same

from mergekit_3h.spectral import registry

METHODS = registry.names()
BRANCHES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tsvm", {"decomposition": "krylov"}, {"shape": (64, 300), "rank": 4}),
    ("tsvm", {}, {"shape": (600, 400), "dtype": torch.bfloat16}),
    ("tsvm", {"decomposition": "auto", "energy": 0.999}, {"shape": (300, 800), "rank": 4}),
    ("rtsvm", {"order": "orthogonalize_first"}, {"shape": (24, 40)}),
    ("rtsvm", {"preset": "paper"}, {}),
    ("rtsvm", {"rank_budget": "per_task"}, {"dtype": torch.bfloat16}),
]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (2, 16, 24), (17,)])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, shape: tuple[int, ...], dtype: torch.dtype, process: ProcessPoolExecutor) -> None:
    assert process.submit(merge_is_the_same, method, {}, shape, dtype).result()


@pytest.mark.parametrize(("method", "options", "given"), BRANCHES)
def test_branches(method: str, options: dict[str, Any], given: dict[str, Any], process: ProcessPoolExecutor) -> None:
    given = {"shape": (24, 40), "dtype": torch.float32, **given}
    assert process.submit(merge_is_the_same, method, options, **given).result()


@pytest.mark.parametrize("method", [name for name, found in registry.methods().items() if found.is_linear])
def test_components_of_a_search(method: str, process: ProcessPoolExecutor) -> None:
    assert process.submit(components_stay_there, method).result()


@pytest.mark.parametrize(("method", "route"), [("tsvm", "core"), ("tsvm", "dense"), ("iso_c", "core")])
def test_adapters(method: str, route: str, process: ProcessPoolExecutor) -> None:
    assert process.submit(adapters_are_merged_there, method, route).result()
