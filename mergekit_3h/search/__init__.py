"""Merge coefficients chosen by data: a problem, an objective, and solvers that minimise it.

``open_problem`` reads models and data, ``solve_problem`` finds the coefficients, and its ``Solution`` knows what they
are for every tensor, in a mergekit config, and against the single models.

How the parts combine: a ``Problem`` (``problem.py``) is models, records and options. Its tensors become *families*
(``families.py``), functions of the coefficients; where the method is linear in them, by *components*
(``components.py``). ``candidate_model.py`` writes a candidate of all families into one loaded model. A *runner*
(``runner.py`` here, ``ray_runner.py`` on a cluster) turns coefficients into losses, ``scoring.py`` losses into one
number. ``Search`` (``search.py``) is what a solver sees of all this: a box, and a function to ask until the budget is
spent. Every answer goes into the *trace* (``trace.py``), so that a search that is killed goes on. ``solving.py`` runs
one of ``solvers/`` from end to end, and ``layout.py`` says which coefficient a tensor takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_3h.checkpoints.sources import CheckpointSource, StateDictSource, WeightSource
    from mergekit_3h.losses.records import LocatedRecord, in_memory, located_records
    from mergekit_3h.losses.tokenizers import shared_tokenizer
    from mergekit_3h.search.combinations import linear_combinations
    from mergekit_3h.search.components import Combine
    from mergekit_3h.search.layout import Layout
    from mergekit_3h.search.options import SearchOptions, parse_search_options
    from mergekit_3h.search.problem import Problem, open_problem
    from mergekit_3h.search.runner import LocalRunner, Measurement, Runner
    from mergekit_3h.search.search import Point, Search, SearchError
    from mergekit_3h.search.solution import Solution
    from mergekit_3h.search.solving import solve, solve_problem
    from mergekit_3h.search.trace import Trace, TraceError

__all__ = [
    "CheckpointSource",
    "Combine",
    "Layout",
    "LocalRunner",
    "LocatedRecord",
    "Measurement",
    "Point",
    "Problem",
    "Runner",
    "Search",
    "SearchError",
    "SearchOptions",
    "Solution",
    "StateDictSource",
    "Trace",
    "TraceError",
    "WeightSource",
    "in_memory",
    "linear_combinations",
    "located_records",
    "open_problem",
    "parse_search_options",
    "shared_tokenizer",
    "solve",
    "solve_problem",
]

_HOMES = {
    "mergekit_3h.checkpoints.sources": (
        "CheckpointSource",
        "StateDictSource",
        "WeightSource",
    ),
    "mergekit_3h.losses.records": (
        "LocatedRecord",
        "in_memory",
        "located_records",
    ),
    "mergekit_3h.losses.tokenizers": ("shared_tokenizer",),
    "mergekit_3h.search.combinations": ("linear_combinations",),
    "mergekit_3h.search.components": ("Combine",),
    "mergekit_3h.search.layout": ("Layout",),
    "mergekit_3h.search.options": (
        "SearchOptions",
        "parse_search_options",
    ),
    "mergekit_3h.search.problem": (
        "Problem",
        "open_problem",
    ),
    "mergekit_3h.search.runner": (
        "LocalRunner",
        "Measurement",
        "Runner",
    ),
    "mergekit_3h.search.search": (
        "Point",
        "Search",
        "SearchError",
    ),
    "mergekit_3h.search.solution": ("Solution",),
    "mergekit_3h.search.solving": (
        "solve",
        "solve_problem",
    ),
    "mergekit_3h.search.trace": (
        "Trace",
        "TraceError",
    ),
}


def __getattr__(name: str) -> Any:
    """Loaded on first use: a command line that lists the options must not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
