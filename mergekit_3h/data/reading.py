"""Reading JSONL, plain or gzipped, a record at a time; every bad line of a file is reported in one error."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError
from typing_extensions import Buffer

from mergekit_3h.data.records import DataError, LineProblem, Record, problems_of

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

# A file of another kind has as many bad lines as lines: the message stays readable and memory bounded.
MOST_PROBLEMS = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InvalidLinesError(DataError):
    """Lines of a file are not valid records. ``problems`` holds the first 200, ``bad_lines`` counts all."""

    def __init__(self, path: Path, problems: list[LineProblem], bad_lines: int, lines: int) -> None:
        self.path, self.problems, self.bad_lines = path, problems, bad_lines
        listed = "\n".join(f"  {fault}" for fault in faults(problems))
        more = "\n  ... and more" if bad_lines > len({problem.line for problem in problems}) else ""
        noun = "line" if lines == 1 else "lines"
        verb = "is not a valid record" if bad_lines == 1 else "are not valid records"
        super().__init__(
            f"{path}: {bad_lines} of {lines} {noun} {verb}:\n{listed}{more}\n"
            "Correct them, or leave them out with --skip-invalid (Python: skip_invalid=True)."
        )


def faults(problems: Iterable[LineProblem]) -> list[str]:
    """Problems as text, one and the same fault of several lines only once, with their numbers."""
    lines: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        lines.setdefault((problem.field, problem.message), []).append(problem.line)
    return [
        f"{_lines(list(dict.fromkeys(numbers)))}, field {field!r}: {message}"
        for (field, message), numbers in lines.items()
    ]


def _lines(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    spans = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return f"lines {', '.join(spans)}"


class Reader(Generic[Model]):
    """Iterates over the records of a JSONL file in constant memory.

    A file with bad lines yields nothing: it is checked as a whole before the first record, and
    ``InvalidLinesError`` names all of them. With ``skip_invalid`` they are counted in ``skipped`` and
    described in ``problems`` instead. ``growing`` ignores a last line that is cut off, as it is while another
    process writes or after it was killed.
    """

    def __init__(self, path: str | Path, model: type[Model], skip_invalid: bool = False, growing: bool = False) -> None:
        self.path, self.model = Path(path), model
        self.skip_invalid, self.growing = skip_invalid, growing
        self._reset()
        if not self.path.is_file():
            kind = "a folder" if self.path.is_dir() else "no such file"
            raise DataError(f"{self.path}: {kind}; expected a JSONL file, plain or .gz")

    def _reset(self) -> None:
        self.problems: list[LineProblem] = []
        self.skipped = 0
        self.lines = 0

    def __iter__(self) -> Iterator[Model]:
        if not self.skip_invalid:
            self.check()
        self._reset()
        yield from self._valid()
        if self.skipped and not self.skip_invalid:  # appended by someone since the check
            raise InvalidLinesError(self.path, self.problems, self.skipped, self.lines)
        if self.skipped:
            log.warning("%s: left out %d invalid of %d lines", self.path, self.skipped, self.lines)

    def check(self) -> None:
        """Raise ``InvalidLinesError`` unless every line is a valid record."""
        self._reset()
        for _ in self._valid():
            pass
        if self.skipped:
            raise InvalidLinesError(self.path, self.problems, self.skipped, self.lines)

    def _valid(self) -> Iterator[Model]:
        for number, line in numbered_lines(self.path, self.growing):
            self.lines += 1
            try:
                yield self.model.model_validate_json(line)
            except ValidationError as error:
                self.skipped += 1
                if len(self.problems) < MOST_PROBLEMS:
                    self.problems += problems_of(error, number, self.model.model_fields)


def read_records(path: str | Path, skip_invalid: bool = False) -> list[Record]:
    """All records of a file; see ``Reader`` for one at a time."""
    return list(Reader(path, Record, skip_invalid))


def numbered_lines(path: Path, growing: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with _opened(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(_BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
                unfinished = growing and not line.endswith(b"\n")
                if content and not (unfinished and not is_json(content)):
                    yield number, content
                if unfinished:
                    return  # its rest may be there by now, and would look like a line of its own
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            if not (growing and _cut_off(error)):
                raise DataError(
                    f"{path}: the compressed data end or break after line {number} ({error}); expected a "
                    "whole gzip file. Copy the file again."
                ) from None


def _cut_off(error: Exception) -> bool:
    """Whether a gzip member ends too early, if only after the first byte of its two magic ones."""
    return isinstance(error, EOFError) or "(b'\\x1f')" in str(error)


def is_json(line: bytes) -> bool:
    """Whether a line is whole: no part of a JSON object is JSON itself."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO, None, None]:
    """The bytes a file has now, decompressed if its name ends in .gz."""
    with io.BufferedReader(_AsItIsNow(path), buffer_size=1 << 18) as raw:
        if path.suffix != ".gz":
            yield cast(BinaryIO, raw)
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield cast(BinaryIO, unpacked)


class _AsItIsNow(io.FileIO):
    """A file up to its size when it was opened: a fast writer cannot keep a reader busy for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._left = os.fstat(self.fileno()).st_size

    def readinto(self, buffer: Buffer, /) -> int | None:
        count = super().readinto(memoryview(buffer)[: self._left])
        self._left -= count or 0
        return count
