"""Rows of local files: JSONL, JSON, CSV, TSV and Parquet, a row at a time where the format allows it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

from mergekit_3h.data.reading import is_json, numbered_lines
from mergekit_3h.data.records import DataError, LineProblem
from mergekit_3h.optional import optional

Row: TypeAlias = "dict[str, Any]"

# A row's number, as a person would look it up, and the row, or what is wrong with it.
NumberedRow: TypeAlias = tuple[int, "Row | LineProblem"]

_LONGEST_CELL = 1 << 24


def rows_of(path: Path) -> Iterator[NumberedRow]:
    """Every row of a file. Numbers are lines of text files (from 1) and rows of Parquet and JSON files (from 1)."""
    return _reader(path)(path)


def require_readable(path: Path) -> None:
    """Raise unless there is a file and its name says how to read it."""
    _reader(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {found}; expected a file to import")


def _reader(path: Path) -> Callable[[Path], Iterator[NumberedRow]]:
    name = path.name.lower().removesuffix(".gz")
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader
    raise DataError(
        f"{path}: cannot tell the format from the name; expected it to end in {', '.join(_READERS)} "
        "(all but .parquet also with .gz after it)"
    )


def _jsonl(path: Path) -> Iterator[NumberedRow]:
    for number, line in numbered_lines(path):
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            yield number, LineProblem(number, "(whole line)", f"not JSON: {error}")
            continue
        yield number, _object(row, number)


def _json(path: Path) -> Iterator[NumberedRow]:
    """A list of objects, read as a whole; or what some data sets publish under this name: an object with the list or
    with columns in it, or one object a line."""
    with _text(path) as file:
        try:
            content: Any = json.load(file)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read to its end ({error})") from None
        except ValueError as error:
            content = error
    if isinstance(content, ValueError):
        if not _begins_with_an_object(path):
            raise DataError(f"{path}: not JSON ({content}); expected a list of objects, or one object a line")
        yield from _jsonl(path)
        return
    for number, row in enumerate(_listed(content, path), start=1):
        yield number, _object(row, number)


def _begins_with_an_object(path: Path) -> bool:
    first = next((line for _, line in numbered_lines(path)), b"")
    return first.startswith(b"{") and is_json(first)


def _listed(content: Any, path: Path) -> list[Any]:
    if isinstance(content, list):
        return cast("list[Any]", content)
    lists = _lists(content)
    lengths = {len(values) for values in lists.values()}
    if len(lists) == 1 and all(isinstance(value, dict) for values in lists.values() for value in values):
        return next(iter(lists.values()))
    if len(lengths) == 1:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    sizes = ", ".join(f"{name!r} of {len(values)}" for name, values in lists.items()) or "none"
    got = f"an object with these lists in it: {sizes}" if isinstance(content, dict) else type(content).__name__
    raise DataError(
        f"{path}: got {got}; expected a list of objects, or an object with one list of them or with columns of one "
        "length"
    )


def _lists(content: Any) -> dict[str, list[Any]]:
    """The lists in an object that are not empty."""
    named = cast("dict[str, Any]", content if isinstance(content, dict) else {})
    return {name: value for name, value in named.items() if isinstance(value, list) and value}


def _object(row: Any, number: int) -> Row | LineProblem:
    if isinstance(row, dict):
        return cast(Row, row)
    return LineProblem(number, "(whole line)", f"got {type(row).__name__}, expected an object with named fields")


def _separated(path: Path, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(_LONGEST_CELL)
    with _text(path) as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                row = cast("dict[str | None, Any] | None", next(reader, None))
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
            except (EOFError, OSError, zlib.error) as error:
                raise DataError(f"{path}, after line {number}: cannot be decompressed further ({error})") from None
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, after line {number}: not UTF-8 text ({error.reason}); save it as UTF-8"
                ) from None
            if row is None:
                return
            # A cell too many comes under the key None, one too few has the value None.
            if None in row or any(value is None for value in row.values()):
                yield (
                    reader.line_num,
                    LineProblem(reader.line_num, "(whole line)", "more or fewer cells than the header"),
                )
            else:
                yield reader.line_num, cast(Row, row)


def _csv(path: Path) -> Iterator[NumberedRow]:
    return _separated(path, ",")


def _tsv(path: Path) -> Iterator[NumberedRow]:
    return _separated(path, "\t")


def _parquet(path: Path) -> Iterator[NumberedRow]:
    parquet = optional("pyarrow.parquet", "data", "reading Parquet files")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has its own exceptions, which cannot be named before it is imported
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _text(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")


_READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
