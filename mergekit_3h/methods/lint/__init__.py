"""Lint of a mergekit config for any registered merge method, before hours are spent on it.

``lint`` reads config and models and returns findings; ``examine`` adds the estimate. The functions about
options alone touch no disk: merge methods call them when a merge is planned.
"""

from __future__ import annotations

from mergekit_3h.methods.lint.findings import Finding
from mergekit_3h.methods.lint.parameters import (
    misplaced_parameters,
    missing_parameters,
    parameter_findings,
    unknown_parameters,
    value_problems,
)

__all__ = [
    "Finding",
    "misplaced_parameters",
    "missing_parameters",
    "parameter_findings",
    "unknown_parameters",
    "value_problems",
]
