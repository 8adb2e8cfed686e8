"""Which format a file is in, from its columns; or as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_3h.data.importers.cells import text, text_or_none
from mergekit_3h.data.importers.formats import FORMATS, Fields, Format, Row
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.suggestions import did_you_mean

_MAPPABLE = [name for name in Record.model_fields if name != "set"]


def format_named(name: str) -> Format:
    """A format by its name."""
    if name in FORMATS:
        return FORMATS[name]
    raise DataError(f"there is no import format {name!r}; {did_you_mean(name, ['auto', *FORMATS])}")


def detected(columns: Iterable[str], path: Path) -> Format:
    """The most specific format that the columns fit."""
    there = frozenset(columns)
    fitting = [one for one in FORMATS.values() if one.fits(there, path.name)]
    if FORMATS["own"] in fitting:
        return FORMATS["own"]
    if fitting:
        return max(fitting, key=lambda one: one.specificity)
    known = "\n".join(f"  {one.name}: {_columns(one)}" for one in FORMATS.values())
    raise DataError(
        f"{path}: no known data set has the columns {', '.join(sorted(there)) or '(none)'}. Known are:\n{known}\n"
        "Name the format if it is one of these (--format NAME), or say which column holds what: "
        "--column prompt=COLUMN --set SET (Python: mapping={'prompt': COLUMN}, set_name=SET)."
    )


def mapped(mapping: Mapping[str, str], set_name: str | None, columns: Iterable[str], path: Path) -> Format:
    """A format from the user's own mapping of record fields to columns."""
    there = list(columns)
    for name, column in mapping.items():
        if name not in Record.model_fields:
            raise DataError(f"mapping: records have no field {name!r}; they have {', '.join(Record.model_fields)}")
        if column not in there:
            hint = did_you_mean(column, there, otherwise=f"it has {', '.join(there)}")
            raise DataError(f"mapping: {path} has no column {column!r}; {hint}")
    if "prompt" not in mapping and "messages" not in mapping:
        raise DataError("mapping: it must say which column holds the 'prompt' (or the 'messages')")
    if "set" not in mapping and set_name is None:
        raise DataError("mapping: say which set the records belong to: safety, domain or overrefusal (set_name)")

    def fields(row: Row) -> Fields:
        return {name: _mapped_value(row, name, column) for name, column in mapping.items()}

    return Format("mapping", "your own columns", frozenset(mapping.values()), fields)


def _mapped_value(row: Row, name: str, column: str) -> Any:
    if name == "prompt":
        return text(row, column)
    return row.get(column) if name in ("messages", "weight") else text_or_none(row, column)


def _columns(one: Format) -> str:
    names = ", ".join(sorted(one.columns))
    either = f", and {' or '.join(sorted(one.columns_any))}" if one.columns_any else ""
    in_name = f" ({one.in_file_name!r} in the file's name)" if one.in_file_name else ""
    return names + either + in_name
