"""Published tables as CSV: read into the same rows as results, and checked against their own averages.

The columns are those of the suite ``3h-paper``: ``method``, the metrics, ``DIMENSION_avg`` for each dimension, ``avg``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mergekit_3h.data.importers.tables import rows_of
from mergekit_3h.data.records import DataError, LineProblem
from mergekit_3h.evaluation.result import ScoreWithInterval
from mergekit_3h.evaluation.side_by_side import AVERAGE, ComparedModel, ScoreColumn, SideBySide
from mergekit_3h.evaluation.suite import read_suite
from mergekit_3h.suggestions import did_you_mean

_TOLERANCE = 0.015
"""What two decimals explain: the columns that go into an average are rounded, which moves it by at most 0.005, and the
printed average is rounded or cut off after its second decimal, which moves it by less than 0.01."""
_SAFETY = 1e-9  # the numbers are decimal, their differences are binary
_GROUPS = ("table", "base_model", "setting")


def published_tables(path: Path) -> list[SideBySide]:
    """One table for each group of rows with the same ``table``, ``base_model`` and ``setting``."""
    dimensions = {dimension: list(metrics) for dimension, metrics in read_suite("3h-paper").suite.dimensions.items()}
    tables: dict[tuple[str, ...], SideBySide] = {}
    for number, row in rows_of(path):
        if isinstance(row, LineProblem):
            raise DataError(f"{path}: {row}")
        _require_columns(path, row, dimensions)
        group = tuple(str(row[name]) for name in _GROUPS if row.get(name))
        title = ", ".join(f"table {part}" if i == 0 and row.get("table") else part for i, part in enumerate(group))
        table = tables.setdefault(group, SideBySide(title or path.stem, _columns(dimensions), []))
        table.rows.append(_row(path, number, row, dimensions))
    if not tables:
        raise DataError(f"{path}: no rows; expected a published table")
    for table in tables.values():
        table.notes += [f"{row.name}: {note}" for row in table.rows for note in row.notes]
    return list(tables.values())


def _require_columns(path: Path, row: Mapping[str, object], dimensions: Mapping[str, Sequence[str]]) -> None:
    metrics = [name for names in dimensions.values() for name in names]
    for name in ("method", *metrics, *(f"{dimension}_avg" for dimension in dimensions), "avg"):
        if name not in row:
            raise DataError(f"{path}: there is no column {name!r}; {did_you_mean(name, row)}")


def _columns(dimensions: Mapping[str, Sequence[str]]) -> list[ScoreColumn]:
    columns: list[ScoreColumn] = []
    for dimension, metrics in dimensions.items():
        columns += [ScoreColumn(name, dimension) for name in metrics]
        columns.append(ScoreColumn(dimension, dimension, is_average=True))
    return [*columns, ScoreColumn(AVERAGE, None, is_average=True)]


def _row(path: Path, number: int, row: Mapping[str, object], dimensions: Mapping[str, Sequence[str]]) -> ComparedModel:
    """The row with the averages that follow from its columns; where a printed one is another, a note says so."""
    found = ComparedModel(str(row["method"]))
    printed = {dimension: _number(path, number, row, f"{dimension}_avg") for dimension in dimensions}
    for dimension, metrics in dimensions.items():
        values = [_number(path, number, row, name) for name in metrics]
        found.scores |= {name: ScoreWithInterval(score=value) for name, value in zip(metrics, values, strict=True)}
        _compare(found, f"{dimension}_avg", printed[dimension], fmean(values), f"its {len(values)} columns give")
        found.scores[dimension] = ScoreWithInterval(score=fmean(values))
    average = _number(path, number, row, "avg")
    _compare(found, "avg", average, fmean(printed.values()), "the mean of its printed averages is")
    found.scores[AVERAGE] = ScoreWithInterval(score=fmean([found.value(name) or 0.0 for name in dimensions]))
    return found


def _compare(row: ComparedModel, name: str, printed: float, computed: float, because: str) -> None:
    if abs(printed - computed) > _TOLERANCE + _SAFETY:
        row.notes.append(f"{name} is printed as {printed:g}, but {because} {computed:.2f}")


def _number(path: Path, line: int, row: Mapping[str, object], column: str) -> float:
    try:
        return float(str(row[column]))
    except ValueError:
        raise DataError(f"{path}, row {line}: {column} is {row[column]!r}; expected a number") from None
