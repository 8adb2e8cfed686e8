"""The trace of a search: one JSON line for every measurement, appended as soon as it is there.

The first line says which search it is. A search that is started again with the same trace finds what was measured
before and continues; a last line that was cut off when the process was killed is removed. One search at a time writes
to a trace: another one that names the same file is refused, whichever it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from mergekit_3h.errors import ThreeHError
from mergekit_3h.search.runner import Measurement
from mergekit_3h.writing import keep_others_out

log = logging.getLogger(__name__)

FORMAT = 1
_BEGINNING = b'{"kind": "search", '


class TraceError(ThreeHError):
    """A trace cannot be continued: it belongs to another search, or it is damaged."""


class Trace:
    """Measurements by what was measured. Without a path they are only kept in memory."""

    def __init__(self, path: str | Path | None, identity: Mapping[str, object], resume: bool = False) -> None:
        self.path = Path(path) if path else None
        self._models: dict[str, Measurement] = {}
        self._candidates: dict[tuple[tuple[float, ...], bool], Measurement] = {}
        self._merged: dict[tuple[float, ...], Measurement] = {}
        self._file: IO[bytes] | None = None
        if self.path is None:
            return
        header: dict[str, object] = {"kind": "search", "format": FORMAT, "identity": _as_json(identity)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _opened_alone(self.path)
        try:
            self._read(self.path, header, resume)
            if not os.fstat(self._file.fileno()).st_size:
                self._append(header)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another search write to the file. Nothing can be added any more."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        """How many candidates there are."""
        return len(self._candidates)

    def model(self, label: str) -> Measurement | None:
        return self._models.get(label)

    def candidate(self, coefficients: Sequence[float], gradient: bool) -> Measurement | None:
        return self._candidates.get((tuple(coefficients), gradient))

    def merged(self, coefficients: Sequence[float]) -> Measurement | None:
        """A candidate merged with nothing held."""
        return self._merged.get(tuple(coefficients))

    def add_merged(self, coefficients: Sequence[float], measured: Measurement) -> None:
        self._merged[tuple(coefficients)] = measured
        self._append({"kind": "merged", "coefficients": list(coefficients), **_fields(measured)})

    def add_model(self, label: str, measured: Measurement) -> None:
        self._models[label] = measured
        self._append({"kind": "model", "model": label, **_fields(measured)})

    def add_candidate(
        self, coefficients: Sequence[float], gradient: bool, measured: Measurement, **notes: object
    ) -> None:
        self._candidates[tuple(coefficients), gradient] = measured
        line = {"kind": "candidate", **notes, "coefficients": list(coefficients), "gradient": gradient}
        self._append({**line, **_fields(measured)})

    def _append(self, content: Mapping[str, object]) -> None:
        if self._file is not None:
            self._file.write(_line(content))
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, path: Path, header: dict[str, object], resume: bool) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = [_parsed(path, number, line) for number, line in enumerate(content[:whole].splitlines(), start=1)]
        if not lines and not _is_cut_off_header(content):
            raise TraceError(f"{path}: not the trace of a search; name another file")
        if len(lines) == 1 and lines[0].get("kind") == "search" and lines[0] != header:
            log.info("%s: begun anew, as another search has left no measurement in it", path)
            os.truncate(path, 0)
            return
        if lines:
            _require_same_search(path, lines[0], header)
        if len(lines) > 1 and not resume:
            raise TraceError(
                f"{path}: holds {len(lines) - 1} measurements of an earlier search. Continue it with resume, or name "
                "another file."
            )
        if whole < len(content):
            log.warning("%s: removed the last line, which was cut off", path)
            os.truncate(path, whole)
        for number, line in enumerate(lines[1:], start=2):
            self._remember(path, number, line)
        if lines:
            log.info("%s: continues after %d candidates", path, len(self))

    def _remember(self, path: Path, number: int, line: dict[str, Any]) -> None:
        try:
            values = {name: line[name] for name in Measurement.__dataclass_fields__}
            if line["kind"] == "model":
                self._models[line["model"]] = Measurement(**values)
            elif line["kind"] == "merged":
                self._merged[tuple(line["coefficients"])] = Measurement(**values)
            else:
                self._candidates[tuple(line["coefficients"]), line["gradient"]] = Measurement(**values)
        except (KeyError, TypeError) as error:
            raise TraceError(f"{path}, line {number}: not a line of a trace ({error!r} is missing or wrong)") from None


def discard(path: Path) -> None:
    """Empty the trace of an earlier search, unless one is writing to it right now."""
    if path.exists():
        with _opened_alone(path) as file:
            file.truncate(0)


def _opened_alone(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        keep_others_out(
            file.fileno(),
            f"{path}: another search is writing to it at this moment; wait for it, stop it, or name another output "
            "or report",
        )
    except BaseException:
        file.close()
        raise
    return file


def _is_cut_off_header(content: bytes) -> bool:
    """Whether a file without a whole line may be the beginning of a trace: any trace, as it holds no measurement."""
    return content.startswith(_BEGINNING) or _BEGINNING.startswith(content)


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _fields(measured: Measurement) -> dict[str, object]:
    return {name: getattr(measured, name) for name in Measurement.__dataclass_fields__}


def _as_json(identity: Mapping[str, object]) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(json.dumps(identity)))


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise TraceError(f"{path}, line {number}: not a JSON object; the file is damaged or not a trace")
    return cast("dict[str, Any]", parsed)


def _require_same_search(path: Path, found: dict[str, Any], header: dict[str, object]) -> None:
    if found.get("kind") != "search" or found.get("format") != FORMAT:
        raise TraceError(f"{path}: not the trace of a search of this version; name another file")
    before, now = found.get("identity", {}), cast("dict[str, Any]", header["identity"])
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in different[:5])
        raise TraceError(f"{path}: belongs to another search ({shown}). Name another file to start anew.")
