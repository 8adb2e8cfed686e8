"""Merge coefficients chosen by data: a problem, an objective, and solvers that minimise it.

problem = open_problem("base", {"math": "math-expert", "chat": "chat-expert"}, "data.jsonl", SearchOptions())
solution = solve(problem.local_runner(), problem.layout, problem.options, trace_path="trace.jsonl")
solution.mergekit_weights()
"""

from __future__ import annotations

from mergekit_3h.search.layout import Layout
from mergekit_3h.search.options import LINEAR_COMBINATIONS, SearchOptions, parse_search_options
from mergekit_3h.search.problem import Problem, open_problem
from mergekit_3h.search.runner import LocalRunner, Measurement, Runner
from mergekit_3h.search.session import Point, Search, SearchError
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.solving import solve
from mergekit_3h.search.sources import CheckpointSource, StateDictSource, WeightSource
from mergekit_3h.search.trace import Trace, TraceError

__all__ = [
    "LINEAR_COMBINATIONS",
    "CheckpointSource",
    "Layout",
    "LocalRunner",
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
    "open_problem",
    "parse_search_options",
    "solve",
]
