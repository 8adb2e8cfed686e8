"""Rows of a user's own file as questions: which of them, and what is asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mergekit_3h.data.importers.tables import require_readable, rows_of
from mergekit_3h.data.records import DataError, LineProblem, derived_id
from mergekit_3h.data.sections import Section
from mergekit_3h.evaluation.items import unique_ids
from mergekit_3h.suggestions import did_you_mean

_PLACE = re.compile(r"\{([^{}]+)\}")

Keep = Callable[[str], bool]
"""Whether a row, given as a digest of all its cells, is among those to measure."""


@dataclass(frozen=True)
class LocalRow:
    """One row, a name for it that is the same in every run, and where it stands."""

    id: str
    cells: Mapping[str, Any]
    place: str

    def text(self, column: str) -> str:
        value = self.cells.get(column)
        if value is None or not str(value).strip():
            raise DataError(f"{self.place}: the column {column!r} is empty; expected some text")
        return str(value).strip()

    def filled(self, template: str) -> str:
        """``template`` with each ``{column}`` replaced by the row's text there; all other braces stay."""
        return _PLACE.sub(lambda match: self.text(match[1]) if match[1] in self.cells else match[0], template)


class RowSettings(Section):
    """What every metric over a local file has in common."""

    data: str = Field(description="JSONL, JSON, CSV, TSV or Parquet file, or the name of one of the suite's files.")
    where: dict[str, Any] = Field(
        default_factory=dict, description="Only rows whose column has this value, or one of these values."
    )
    limit: int | None = Field(None, ge=1, description="So many rows at most, evenly spread over the file.")
    weight: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="Of this metric in its dimension's average.")

    def rows(self, path: Path, identity: Sequence[str], keep: Keep | None = None) -> list[LocalRow]:
        """The chosen rows. ``identity``: the columns that make a row this row and no other."""
        found: list[tuple[int, dict[str, Any]]] = []
        for number, row in rows_of(path):
            if isinstance(row, LineProblem):
                raise DataError(f"{path}: {row}")
            if number and not found:
                self._require_columns(path, row, identity)
            if self._is_wanted(row):
                found.append((number, row))
        if not found:
            raise DataError(
                f"{path}: no row {f'where {self.where}' if self.where else 'at all'}; expected at least one"
            )
        names = unique_ids([_name(row, identity) for _, row in found])
        rows = [LocalRow(name, row, f"{path}, row {number}") for name, (number, row) in zip(names, found, strict=True)]
        rows = [row for row in rows if keep is None or keep(derived_id(json.dumps(row.cells, default=str)))]
        if self.limit is None or self.limit >= len(rows):
            return rows
        return [rows[place * len(rows) // self.limit] for place in range(self.limit)]

    def _is_wanted(self, row: Mapping[str, Any]) -> bool:
        for column, wanted in self.where.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if str(row.get(column)) not in map(str, values):
                return False
        return True

    def _require_columns(self, path: Path, row: Mapping[str, Any], identity: Sequence[str]) -> None:
        for column in (*identity, *self.where):
            if column not in row:
                raise DataError(f"{path}: there is no column {column!r}; {did_you_mean(column, row)}")


def places_in(template: str) -> list[str]:
    """The columns that a template names."""
    return _PLACE.findall(template)


def _name(row: Mapping[str, Any], identity: Sequence[str]) -> str:
    return derived_id(*(row.get(column) for column in identity))[:12]


def require_file(path: Path, metric: str) -> None:
    """Raise unless the file is there and its name says how to read it."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"metric {metric!r}: {path}: {found}; expected a table (JSONL, JSON, CSV, TSV, Parquet)")
    try:
        require_readable(path)
    except DataError as error:
        raise DataError(f"metric {metric!r}: {error}") from None


def file_digest(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:20]
