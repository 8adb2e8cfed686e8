"""Where a search without a report leaves its trace, so that a merge that goes on need not search again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_kept: ContextVar[Path | None] = ContextVar("kept_trace", default=None)


@contextmanager
def trace_kept_in(file: Path) -> Generator[None]:
    """Searches that are planned within keep their trace in ``file``, unless their options name a report."""
    token = _kept.set(file)
    try:
        yield
    finally:
        _kept.reset(token)


def kept_trace() -> Path | None:
    """The file that is kept for the merge that is planned now, if any."""
    return _kept.get()
