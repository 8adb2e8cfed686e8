"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` write another file beside ``path``, and put it in its place when it is complete.

    A kill leaves no more than that one file behind, always of the same name, which the next try overwrites.
    """
    new = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(new)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Replace the file by ``text`` in UTF-8."""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))
