"""Searches and inspections on a device that refuses to mix its tensors with the CPU's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from search.there import derivatives_are_the_same, inspection_is_the_same, losses_are_the_same

from .conftest import Trained

COMBINATIONS: list[dict[str, Any]] = [
    {"combine": "task_arithmetic"},
    {"combine": "tsvm", "layer_granularity": 1},
    {"combine": "rtsvm", "solver": "cmaes", "over": "weight, gamma"},
    {"combine": "iso_c", "component_blocks": 2},
    {"combine": "svc", "solver": "cmaes", "over": "weight, lambda"},
]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: options["combine"])
def test_candidates_and_models_have_the_losses_of_the_cpu(
    options: dict[str, Any], trained: Trained, process: ProcessPoolExecutor
) -> None:
    assert process.submit(losses_are_the_same, trained.base, trained.experts, trained.data, options).result()


def test_derivatives_are_those_of_the_cpu(process: ProcessPoolExecutor) -> None:
    assert process.submit(derivatives_are_the_same).result()


def test_inspect_measures_what_it_does_on_the_cpu(trained: Trained, process: ProcessPoolExecutor) -> None:
    assert process.submit(inspection_is_the_same, trained.base, list(trained.experts.values())).result()
