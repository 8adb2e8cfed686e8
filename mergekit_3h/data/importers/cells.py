"""Values of cells, whatever file they come from: CSV knows only text, Parquet and JSON have types."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, cast

_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


class CellError(Exception):
    """A cell does not hold what its column should; becomes a problem of its line."""

    def __init__(self, column: str, message: str) -> None:
        self.column, self.message = column, message
        super().__init__(message)


def text(row: Mapping[str, Any], column: str) -> str:
    """A cell that must hold some text."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = "a blank text" if isinstance(value, str) else "nothing" if value is None else repr(value)[:60]
        raise CellError(column, f"got {got}, expected some text")
    return value


def text_or_none(row: Mapping[str, Any], column: str) -> str | None:
    """A cell that may be empty or absent; numbers become text."""
    value = row.get(column)
    return None if value is None or not str(value).strip() else str(value)


def flag(row: Mapping[str, Any], column: str) -> bool:
    """A cell that must say yes or no."""
    value = row.get(column)
    word = str(value).strip().lower().removesuffix(".0")
    if word not in _TRUE | _FALSE:
        raise CellError(column, f"got {value!r}, expected true or false")
    return word in _TRUE


def which(row: Mapping[str, Any], column: str) -> int:
    """A cell that must hold 0 or 1."""
    value = row.get(column)
    word = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or word not in ("0", "1"):
        raise CellError(column, f"got {value!r}, expected 0 or 1")
    return int(word)


def true_names(row: Mapping[str, Any], column: str) -> list[str]:
    """The names with the value true in a cell with a mapping (in CSV: its text); a plain text is one name."""
    value = row.get(column)
    if isinstance(value, str) and value.strip().startswith("{"):
        value = _mapping(value, column)
    if isinstance(value, Mapping):
        return [name for name, holds in cast("Mapping[str, Any]", value).items() if holds]
    return [str(value)] if value is not None and str(value).strip() else []


def _mapping(value: str, column: str) -> Any:
    # JSON's spelling and Python's both occur in CSV exports.
    pythonic = value.replace(": true", ": True").replace(": false", ": False").replace(": null", ": None")
    try:
        return ast.literal_eval(pythonic)
    except (ValueError, SyntaxError):
        raise CellError(column, f"got {value[:60]!r}, expected a mapping of names to true or false") from None
