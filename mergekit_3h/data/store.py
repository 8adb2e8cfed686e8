"""An append-only JSONL file that survives being killed: whole lines, nothing twice, always readable."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Generic, Protocol, TypeVar, cast

from pydantic import BaseModel

from mergekit_3h.data.reading import Reader, is_json
from mergekit_3h.data.records import DataError
from mergekit_3h.writing import keep_others_out, write_whole

log = logging.getLogger(__name__)

_BLOCK = 1 << 20


class Identified(Protocol):
    """What a store can hold: a pydantic model with a unique ``id``."""

    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=BaseModel)


class Store(Generic[Item]):
    """Records on disk, appended one whole line at a time; an id that is already there is not written again.

    Opening repairs what a killed writer left: a last line that is cut off is removed. One process writes, any
    number read. A path ending in .gz is compressed; each ``append`` is then a gzip member of its own, so
    prefer ``extend``.

        with Store("answers.jsonl", Record) as store:
            for question in questions:
                if question.id not in store:
                    store.append(answer(question))
    """

    def __init__(self, path: str | Path, model: type[Item]) -> None:
        if "id" not in model.model_fields:
            raise DataError(f"{model.__name__} has no field 'id', which a store needs to resume")
        self.path, self.model = Path(path), model
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            keep_others_out(self._descriptor, _in_use(self.path))
            repair(self._descriptor, self.path)
            self._ids = {_id(item) for item in self}
        except BaseException:
            self.close()
            raise

    @property
    def ids(self) -> frozenset[str]:
        """The ids in the store."""
        return frozenset(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Item]:
        """What is in the file, in the order it was written; also while it grows."""
        return iter(Reader(self.path, self.model, growing=True))

    def append(self, item: Item) -> bool:
        """Write one record. False, and nothing written, if its id is there already."""
        return self.extend([item]) == 1

    def extend(self, items: Iterable[Item]) -> int:
        """Write the records that are new, with a single system call, and return how many those were."""
        fresh = {_id(item): item for item in items if _id(item) not in self._ids}
        if fresh:
            self._write(b"".join(line_of(item) for item in fresh.values()))
            self._ids.update(fresh)
        return len(fresh)

    def _write(self, data: bytes) -> None:
        if self._descriptor < 0:
            raise DataError(f"{self.path}: the store is closed")
        block = gzip.compress(data, mtime=0) if self.path.suffix == ".gz" else data
        size_before = os.fstat(self._descriptor).st_size
        try:
            written, reason = os.write(self._descriptor, block), ""
        except OSError as error:
            written, reason = 0, f": {error.strerror}"
        if written < len(block):
            os.ftruncate(self._descriptor, size_before)
            raise DataError(
                f"{self.path}: only {written} of {len(block)} bytes could be written{reason}. "
                "What was there is intact; make room on the disk and run again, it continues from here."
            )

    def close(self) -> None:
        """Bring everything to the disk and let another process write."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.fsync(descriptor)
            os.close(descriptor)

    def __enter__(self) -> Store[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def line_of(item: BaseModel) -> bytes:
    """A record as one line; fields with their default value are left out."""
    return item.model_dump_json(exclude_defaults=True).encode() + b"\n"


def write_records(path: str | Path, items: Iterable[BaseModel]) -> int:
    """Write a whole file and return its number of lines; readers see the old file or the new, no part."""
    path, count = Path(path), 0

    def write(new: Path) -> None:
        nonlocal count
        with _opened_for_writing(new) as file:
            for item in items:
                file.write(line_of(item))
                count += 1

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
    return count


@contextmanager
def _opened_for_writing(path: Path) -> Generator[IO[bytes]]:
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            yield cast("IO[bytes]", packed)


def repair(descriptor: int, path: Path) -> None:
    """Remove what a killed writer left unfinished at the end of a file that is open for writing."""
    size = os.fstat(descriptor).st_size
    whole, rescued = _whole_gzip_members(path) if path.suffix == ".gz" else _whole_lines(path, size)
    if whole < size:
        log.warning("%s: the last write was cut off; removed what is left of an incomplete record", path)
        os.ftruncate(descriptor, whole)
    if rescued:
        os.write(descriptor, rescued)


def _whole_lines(path: Path, size: int) -> tuple[int, bytes]:
    """Size of a file without a last line that was cut off, and the newline if only that is missing."""
    with path.open("rb") as file:
        position, tail = size, b""
        while position and b"\n" not in tail:
            step = min(_BLOCK, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return size, b""
    return (size, b"\n") if is_json(last) else (size - len(last), b"")


def _whole_gzip_members(path: Path) -> tuple[int, bytes]:
    """Size of a gzip file without a last member that was cut off, and that member's whole lines."""
    whole = position = 0
    member = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            while block:
                try:
                    member.decompress(block)
                except zlib.error as error:
                    raise DataError(
                        f"{path}: byte {position} is not gzip data ({error}); expected a gzip file, as named"
                    ) from None
                position += len(block) - len(member.unused_data)
                block = member.unused_data
                if member.eof:
                    whole, member = position, zlib.decompressobj(wbits=31)
        if whole == position:
            return whole, b""
        file.seek(whole)
        lines = zlib.decompressobj(wbits=31).decompress(file.read())
    rescued = lines[: lines.rfind(b"\n") + 1]
    return whole, gzip.compress(rescued, mtime=0) if rescued else b""


def _id(item: BaseModel) -> str:
    return cast(Identified, item).id


def _in_use(path: Path) -> str:
    return f"{path}: another process is writing to it; wait for it to finish or stop it"
