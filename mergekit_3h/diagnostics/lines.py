"""Files of JSON lines that grow while a run goes on and survive its end at any moment."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_3h.errors import ThreeHError
from mergekit_3h.writing import keep_others_out


class LinesError(ThreeHError):
    """A file of lines is not what it was taken for."""


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Every line that is whole. One that a kill cut off is the last, and is left out."""
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            raise LinesError(f"{file}, line {number} is no JSON; expected a file that mergekit-3h wrote") from None
        if not isinstance(content, dict):
            raise LinesError(f"{file}, line {number} is no JSON object; expected a file that mergekit-3h wrote")
        yield content


def drop_cut_off_line(file: Path) -> None:
    """Shorten the file to its last line break, so that the next line begins a new one."""
    with file.open("rb+") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)


class GrowingLines:
    """Appends to a file, each line whole in one write; the only writer of it."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("ab", buffering=0)
        keep_others_out(self._stream.fileno(), f"{file}: another process is writing it; wait for it, or stop it")
        drop_cut_off_line(file)

    @property
    def is_empty(self) -> bool:
        return self._stream.tell() == 0

    def append(self, content: Mapping[str, Any] | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
        line, before = text.encode() + b"\n", os.fstat(self._stream.fileno()).st_size
        if self._stream.write(line) != len(line):  # a disk that fills up takes a part without an error
            self._stream.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._stream.name)

    def settle(self) -> None:
        """Bring what was appended to the disk."""
        os.fsync(self._stream.fileno())

    def is_file(self, file: Path) -> bool:
        """Whether a path still leads to the file that is written."""
        return os.path.samestat(os.fstat(self._stream.fileno()), file.stat())

    def restart(self) -> None:
        """Begin with an empty file."""
        self._stream.truncate(0)

    def close(self) -> None:
        self.settle()
        self._stream.close()

    def __enter__(self) -> GrowingLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
