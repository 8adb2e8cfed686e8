"""The search is below the hosts: importing it loads neither, nor what only a search in progress needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("mergekit", "fusion_bench", "transformers", "cma", "matplotlib", "ray")


def loaded_after(statement: str) -> list[str]:
    code = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import mergekit_3h.search, mergekit_3h.search.solvers.cmaes, mergekit_3h.search.solvers.gradient", []),
        ("import cma", ["cma"]),  # the positive control
    ],
)
def test_importing_the_search_loads_no_host(statement: str, loaded: list[str]) -> None:
    found = loaded_after(statement)
    assert set(found) >= set(loaded)
    assert bool(found) == bool(loaded)
