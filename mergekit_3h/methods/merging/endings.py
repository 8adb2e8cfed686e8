"""How a merge ends before it is done: by a signal, in words that say what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from mergekit_3h.errors import ThreeHError
from mergekit_3h.methods.merging.folder import UnfinishedMerge


class InterruptedMergeError(ThreeHError):
    """The user or the system has ended the merge; it can be continued."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """What a shell expects of a program that a signal has ended."""


class _TerminatedError(BaseException):
    """SIGTERM, which by itself would end the process without a word."""


@contextmanager
def ended_in_words(folder: UnfinishedMerge) -> Generator[None]:
    """Ctrl-C and SIGTERM end with what is kept, and how to go on."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if is_main else None
    try:
        yield
    except (KeyboardInterrupt, _TerminatedError) as error:
        number = signal.SIGTERM if isinstance(error, _TerminatedError) else signal.SIGINT
        kept = len({piece.file for piece in folder.pieces.values()})
        text = f"{kept} finished files are kept, and the same command goes on from there" if kept else "nothing is kept"
        raise InterruptedMergeError(f"stopped: {text}", 128 + number) from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
