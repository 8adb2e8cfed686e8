"""Lint of a mergekit config for any registered merge method, before hours are spent on it.

``lint`` reads config and models and returns findings; ``examine`` adds the estimate. The functions about
options alone touch no disk: merge methods call them when a merge is planned, so they load at once and the
rest on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.parameters import (
    misplaced_parameters,
    missing_parameters,
    parameter_findings,
    unknown_parameters,
    value_problems,
)

if TYPE_CHECKING:
    from mergekit_3h.lint.report import LintReport, examine, lint

__all__ = [
    "Finding",
    "LintReport",
    "examine",
    "lint",
    "misplaced_parameters",
    "missing_parameters",
    "parameter_findings",
    "unknown_parameters",
    "value_problems",
]


def __getattr__(name: str) -> Any:
    if name not in ("LintReport", "examine", "lint"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mergekit_3h.lint import report

    return getattr(report, name)
