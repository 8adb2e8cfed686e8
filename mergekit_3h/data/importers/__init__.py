"""Records from the files people have: published data sets, this package's own, or any table with a column mapping."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from mergekit_3h.data.importers.cells import CellError
from mergekit_3h.data.importers.detection import detected, format_named, mapped
from mergekit_3h.data.importers.formats import FORMATS, Format
from mergekit_3h.data.importers.tables import Row, require_readable, rows_of
from mergekit_3h.data.reading import MOST_PROBLEMS, InvalidLinesError
from mergekit_3h.data.records import DataError, LineProblem, Record, SetName, problems_of

__all__ = ["FORMATS", "Format", "Import"]

log = logging.getLogger(__name__)


class Import:
    """Iterates over the records of a local file, one for each row; ``summary`` tells what became of the rows.

    The format is found by the columns of the first row unless ``format`` names it or ``mapping`` (record field to
    column) describes it. A file with bad rows yields nothing and raises one error that names them all; with
    ``skip_invalid`` they are counted instead.
    """

    def __init__(
        self,
        path: str | Path,
        format: str = "auto",
        set_name: SetName | None = None,
        source: str | None = None,
        mapping: Mapping[str, str] | None = None,
        skip_invalid: bool = False,
    ) -> None:
        self.path, self.set_name, self.source, self.skip_invalid = Path(path), set_name, source, skip_invalid
        require_readable(self.path)
        if mapping is not None and format != "auto":
            raise DataError(f"got both a mapping and the format {format!r}; expected one of them")
        named = format_named(format) if format != "auto" else None
        columns = self._columns()
        if mapping is not None:
            self.format = mapped(mapping, set_name, columns, self.path)
        else:
            self.format = named or detected(columns, self.path)
        self._reset()

    def _columns(self) -> list[str]:
        for _, row in rows_of(self.path):
            if not isinstance(row, LineProblem):
                return list(row)
        raise DataError(f"{self.path}: no rows; expected a table with at least one")

    def _reset(self) -> None:
        self.rows = self.records = self.replies_left_out = self.skipped = 0
        self.problems: list[LineProblem] = []

    def __iter__(self) -> Iterator[Record]:
        if not self.skip_invalid:
            self.check()
        self._reset()
        yield from self._valid()
        log.info("%s: %s", self.path, self.summary())

    def check(self) -> None:
        """Raise unless every row can be imported."""
        self._reset()
        for _ in self._valid():
            pass
        if self.skipped:
            raise InvalidLinesError(self.path, self.problems, self.skipped, self.rows)

    def summary(self) -> str:
        """What became of the rows of the last iteration, in a sentence."""
        left_out = f", {self.replies_left_out} unsafe or untrue replies left out" if self.replies_left_out else ""
        skipped = f", {self.skipped} invalid rows left out" if self.skipped else ""
        return f"{self.records} records from {self.rows} rows of {self.format.description}{left_out}{skipped}"

    def _valid(self) -> Iterator[Record]:
        for number, row in rows_of(self.path):
            self.rows += 1
            record = self._record(number, row)
            if isinstance(record, Record):
                self.records += 1
                yield record
            else:
                self.skipped += 1
                if len(self.problems) < MOST_PROBLEMS:
                    self.problems += record

    def _record(self, number: int, row: Row | LineProblem) -> Record | list[LineProblem]:
        if isinstance(row, LineProblem):
            return [row]
        try:
            fields = self.format.fields(row)
            if self.format.name not in ("own", "mapping"):
                fields["source"] = self.format.name
            if self.source is not None:
                fields["source"] = self.source
            if self.set_name is not None:
                fields["set"] = self.set_name
            record = Record.model_validate(fields)
        except CellError as error:
            return [LineProblem(number, error.column, error.message)]
        except ValidationError as error:
            return problems_of(error, number, Record.model_fields)
        if self.format.leaves_out_bad and record.response is None:
            self.replies_left_out += 1
        return record
