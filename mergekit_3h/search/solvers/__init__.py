"""One solver a file. A solver is a function that asks a ``Search`` for points and returns why it stopped."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast, get_args

from mergekit_3h.search.options import SolverName
from mergekit_3h.search.search import Search

Solver = Callable[[Search], str]
"""Evaluates candidates until it has converged or the budget is spent; the result is the best point it saw.

Deterministic under ``search.options.seed``: that is what makes every solver resumable.
"""

SOLVERS: tuple[str, ...] = get_args(SolverName)
"""As the option ``solver`` names them: each is a file here."""

BUDGET_SPENT = "budget spent"


def solver_named(name: str) -> Solver:
    """The function ``solve`` of ``mergekit_3h.search.solvers.<name>``."""
    return cast(Solver, import_module(f"{__name__}.{name}").solve)
