"""What is finished of a merge, line by line on disk: which request it is, and every file that is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergekit_3h.diagnostics.lines import GrowingLines, LinesError, read_lines
from mergekit_3h.errors import OptionError
from mergekit_3h.writing import InUseError

FORMAT = 1
_SHOWN = 80
_NAMED = 3


@dataclass(frozen=True)
class FinishedPiece:
    """A file of the unfinished merge with some of its tensors: a shard, or a part of one."""

    file: str
    """Below the folder of the pieces."""
    tensors: dict[str, int]
    """Bytes of each, in mergekit's order."""
    bytes: int
    sha256: str
    random: dict[str, Any] | None = None
    """States of the random numbers from which the tensors after this piece are drawn, by places in mergekit's
    schedule; None if nothing was drawn since the piece before."""


_FIELDS = tuple(FinishedPiece.__dataclass_fields__)


class MergeJournal:
    """The journal of one output, and its only writer. The first line is the request, every other one a piece."""

    def __init__(
        self, file: Path, request: Mapping[str, Any], environment: Mapping[str, Any], *, start_over: bool = False
    ) -> None:
        """``request`` is what the bits of the result follow from; ``environment`` what they may depend on as well."""
        self._file = file
        self.shared: str | None = None
        self._lines = GrowingLines(file)
        try:
            self._require_still_there()
            self._header = {"kind": "merge", "format": FORMAT, "request": request, "environment": environment}
            if start_over or not self._read(as_json(request)):
                self.restart()
        except BaseException:
            self.close()
            raise

    def add(self, piece: FinishedPiece) -> None:
        """On disk when this returns: the file it tells of is there before, and never has to be made again."""
        self._lines.append({"kind": "piece", **asdict(piece)})
        self._lines.settle()
        self.pieces.append(piece)

    def add_shared(self, sha256: str) -> None:
        """Of the file with what all pieces are made with."""
        self._lines.append({"kind": "shared", "sha256": sha256})
        self._lines.settle()
        self.shared = sha256

    def restart(self) -> None:
        """Forget every piece."""
        self._lines.restart()
        self._lines.append(self._header)
        self._lines.settle()
        self.environment, self.pieces = as_json(self._header["environment"]), []
        self.shared = None

    def close(self) -> None:
        self._lines.close()

    def _require_still_there(self) -> None:
        """Another process may have finished the merge and removed the file between its opening and its locking."""
        if not self._file.exists() or not self._lines.is_file(self._file):
            raise InUseError(f"{self._file}: another process has just finished this merge; look at its result")

    def _read(self, request: Mapping[str, Any]) -> bool:
        """Whether the run before has left something, of the same request."""
        try:
            header, *lines = list(read_lines(self._file)) or [{}]
            pieces = [FinishedPiece(**{key: line[key] for key in _FIELDS}) for line in lines if line["kind"] == "piece"]
            if pieces and (header["kind"], header["format"]) != ("merge", FORMAT):
                raise LinesError(f"{self._file} is of another version")
            self.shared = next((line["sha256"] for line in lines if line["kind"] == "shared"), None)
        except (LinesError, KeyError) as error:
            raise OptionError(
                f"{self._file} is no journal of a merge that can be continued ({error}); --start-over throws what is "
                "unfinished away"
            ) from None
        if not pieces:
            return False
        _require_same(self._file.parent.parent, header["request"], request, len(pieces))
        self.environment, self.pieces = header["environment"], pieces
        return True


def _require_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], pieces: int) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not different:
        return
    shown = "; ".join(_difference(name, before.get(name), now.get(name)) for name in different[:_NAMED])
    more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    raise OptionError(
        f"{out} holds the beginning of another merge ({shown}{more}): run it as it was begun, name another folder, or "
        f"throw its {pieces} finished files away with --start-over"
    )


def _difference(name: str, before: Any, now: Any) -> str:
    if name.startswith("files"):
        return f"{name} have changed since" if before and now else f"{name} are new to it"
    return f"{name} was {_shortly(before)}, is {_shortly(now)}"


def _shortly(value: Any) -> str:
    text = "unset" if value is None else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from the disk: what is compared with a line has to be of the same types."""
    return json.loads(json.dumps(content))


def settled_file(file: Path) -> None:
    """Bring a file's content to the disk, so that it outlives the machine's power."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
