"""The parts of divided records as files in a folder, a JSONL file each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.splits import require_shares
from mergekit_3h.data.store import write_records

_PART_NAME = re.compile(r"[\w-]+")
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


def parse_shares(text: str) -> dict[str, float]:
    """Shares as users write them: ``train=0.8,test=0.2``."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if not _PART_NAME.fullmatch(name) or not _NUMBER.fullmatch(share):
            raise DataError(
                f"shares: got {part.strip()!r}, expected NAME=SHARE with a name for a file, as in train=0.8,test=0.2"
            )
        if name in shares:
            raise DataError(f"shares: {name!r} is there twice; give every part a name of its own")
        shares[name] = float(share)
    require_shares(shares)
    return shares


def part_files(
    folder: str | Path, names: Iterable[str], given: Sequence[Path], replace: bool = False
) -> dict[str, Path]:
    """The file of each part, none of which is there already (or ``replace``) or among the files that are divided."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; expected a folder for the parts, or a name that is free")
    files = {name: folder / f"{name}.jsonl" for name in names}
    for file in files.values():
        if file.exists() and any(other.exists() and file.samefile(other) for other in given):
            raise DataError(f"{file}: is one of the files to divide; choose another folder for the parts")
        if file.exists() and not replace:
            raise DataError(f"{file}: is there already; choose another folder or replace it with --force")
    return files


def write_parts(parts: Mapping[str, Sequence[Record]], files: Mapping[str, Path]) -> None:
    """Write every part into its file. If one cannot be written, those that are new are removed again."""
    new = [file for file in files.values() if not file.exists()]
    try:
        for name, records in parts.items():
            write_records(files[name], records)
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise
