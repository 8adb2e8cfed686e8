"""The folder that a finished search leaves behind: safety_merge.json, static.yml, the plot, and beside them the trace.

Files appear whole or not at all: each is written under another name first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergekit_3h.errors import ThreeHError
from mergekit_3h.search.plots import plot_solution
from mergekit_3h.search.solution import Solution

log = logging.getLogger(__name__)

TRACE = "trace.jsonl"
RESULT = "safety_merge.json"
STATIC = "static.yml"
PLOT = "search.png"


def write_report(
    folder: Path, solution: Solution, problem: Mapping[str, Any], static: Mapping[str, Any] | None
) -> None:
    """Write the result, the config that reproduces the merge, and the plot. ``problem`` says what was searched."""
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder / RESULT, solution, problem)
    if static is not None:
        write_static(folder / STATIC, static, solution)
    write_plot(folder / PLOT, solution)


def write_result(path: Path, solution: Solution, problem: Mapping[str, Any]) -> None:
    """Problem, coefficients and losses as JSON."""
    content = {"problem": dict(problem), **solution.to_dict()}
    _whole(path, lambda new: new.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"))


def write_static(path: Path, static: Mapping[str, Any], solution: Solution) -> None:
    """A mergekit config with fixed weights, headed by what it is."""
    import yaml

    losses = ", ".join(f"{name} {loss:.5g}" for name, loss in solution.best.measured.losses.items())
    what = "Options" if solution.option_values() else "Weights"
    header = (
        f"# {what} found by safety_merge ({solution.options.solver}, {len(solution.points)} evaluations, seed "
        f"{solution.options.seed}); losses: {losses}.\n# mergekit-yaml {path.name} OUTPUT merges with them, without "
        "any data. Methods that draw at random (dare, della) need the same --random-seed.\n"
    )
    text = header + yaml.safe_dump(dict(static), sort_keys=False, allow_unicode=True)
    _whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def write_plot(path: Path, solution: Solution) -> None:
    """The plot, unless it cannot be made: a search is not lost for want of a picture."""
    try:
        _whole(path, lambda new: plot_solution(solution, new))
    except ThreeHError as error:
        log.warning("%s is not written: %s", path, error)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    new = path.with_name(f".{path.stem}.partial{path.suffix}")  # one name: a kill leaves no more than one behind
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
