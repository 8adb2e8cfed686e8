"""Files that are there whole or not at all, and files with a single writer."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mergekit_3h.errors import ThreeHError

_HELD = (errno.EAGAIN, errno.EACCES)


class InUseError(ThreeHError):
    """Another process writes there."""


def keep_others_out(descriptor: int, refusal: str) -> None:
    """Be the only writer of an open file until it is closed; if there is one already, raise with ``refusal``.

    The system ends it even for a process that is killed. Where there are no such locks (Windows, some network file
    systems) two writers are the user's own care.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise InUseError(refusal) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` write another file beside ``path``, and put it in its place when it is complete.

    A kill leaves no more than that one file behind, always of the same name, which the next try overwrites. Of two
    processes that write the same file at the same time the second is refused.
    """
    new = path.with_name(f".{path.stem}.partial{path.suffix}")
    with new.open("ab") as held:
        keep_others_out(held.fileno(), f"{path}: another process is writing it; wait for it to finish or stop it")
        if not new.exists() or not os.path.samestat(os.fstat(held.fileno()), new.stat()):
            raise InUseError(f"{path}: another process has just written it; run again")
        try:
            held.truncate(0)
            write(new)
            os.fsync(held.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def write_text_whole(path: Path, text: str) -> None:
    """Replace the file by ``text`` in UTF-8."""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))
