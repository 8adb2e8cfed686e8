"""A real Ray cluster of two cores on this machine, and a tiny problem that its workers can open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from search.training import domain_records, safety_records, write_jsonl
from single_thread import one_thread  # noqa: F401
from tiny_models import Family

from mergekit_3h.search import Problem, SearchOptions, open_problem

pytest.importorskip("ray")


@pytest.fixture(scope="session")
def opening(family: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., partial[Problem]]:
    """``opening(solver="cmaes")``: a function that opens the problem, here and in a worker alike."""
    models = family("llama")
    folder: Path = tmp_path_factory.mktemp("ray")
    data = write_jsonl(folder / "data.jsonl", [*safety_records(), *domain_records()])

    def make(combine: str = "task_arithmetic", **options: object) -> partial[Problem]:
        chosen = SearchOptions(combine=combine, batch_size=3, **options)
        experts = {f"expert{i}": path for i, path in enumerate(models.experts)}
        return partial(open_problem, models.base, experts, data, chosen)

    return make
