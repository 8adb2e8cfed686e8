"""A search alone: a config with the weights found, and beside it the trace, the losses and the plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekit_3h.errors import OptionError
from mergekit_3h.safety.merge import SearchedMerge
from mergekit_3h.safety.port import SafetyHost
from mergekit_3h.safety.report import write_plot, write_result, write_static
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.trace import discard


def search_to(output: Path, host: Callable[[], SafetyHost[Any]], *, resume: bool, force: bool) -> Solution:
    """Search, and write ``output`` and its companions.

    With ``resume`` an interrupted search goes on; with ``force`` what is there is replaced.
    """
    if output.suffix not in (".yml", ".yaml"):
        raise OptionError(f"--output: got {output}; expected a name that ends in .yml, as it is a mergekit config")
    trace = output.with_suffix(".trace.jsonl")
    if not output.parent.is_dir():
        raise OptionError(f"--output: there is no folder {output.parent}")
    if output.exists() and not (resume or force):
        raise OptionError(
            f"{output}: is there already. Name another file, go on with --resume, or replace it with --force"
        )
    merge = SearchedMerge(host())
    if force and not resume:
        discard(trace)
    solution = merge.solve(trace, resume=resume)
    write_result(output.with_suffix(".json"), solution, merge.facts)
    write_plot(output.with_suffix(".png"), solution)
    static = merge.host.static(solution.mergekit_weights(), solution.option_values())
    if static is not None:
        write_static(output, static, solution)
    return solution
