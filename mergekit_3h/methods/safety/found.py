"""A search alone: a config with the weights found, and beside it the trace, the losses and the plot."""

from __future__ import annotations

from pathlib import Path

from mergekit.options import MergeOptions

from mergekit_3h.errors import OptionError
from mergekit_3h.methods.safety.merge import SafetyMerge
from mergekit_3h.methods.safety.request import Request
from mergekit_3h.safety.progress import search_progress
from mergekit_3h.safety.report import write_plot, write_result, write_static
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.trace import discard


def search_to(output: Path, request: Request, options: MergeOptions, *, resume: bool, force: bool) -> Solution:
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
    merge = SafetyMerge(request, options)
    if force and not resume:
        discard(trace)
    with search_progress(request.options, disable=options.quiet) as on_point:
        solution = merge.solve(trace, resume=resume, on_point=on_point)
    write_result(output.with_suffix(".json"), solution, merge.facts)
    write_plot(output.with_suffix(".png"), solution)
    write_static(output, request.static(solution.mergekit_weights()), solution)
    return solution
