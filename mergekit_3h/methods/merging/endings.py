"""How a merge ends before it is done: by a signal, in words that say what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
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


class _StoppedError(BaseException):
    """A signal, on its way out of the merge."""


@contextmanager
def ended_in_words(folder: UnfinishedMerge) -> Generator[None]:
    """Ctrl-C and SIGTERM end with what is kept, and how to go on."""
    arrived: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        raise _StoppedError

    with _handled_by(stop):
        try:
            yield
        except (Exception, KeyboardInterrupt, _StoppedError) as error:
            # What a signal raises under torch's C code comes out of it as an error of torch's.
            if not arrived and not isinstance(error, KeyboardInterrupt):
                raise
            number = arrived[0] if arrived else signal.SIGINT
            kept = len({piece.file for piece in folder.pieces.values()})
            rest = (
                f"{kept} finished files are kept, and the same command goes on from there"
                if kept
                else "nothing is kept"
            )
            raise InterruptedMergeError(f"stopped: {rest}", 128 + number) from None


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Signals that end a process, where they may be handled: in the main thread, Ctrl-C if nobody else has it."""
    numbers = [signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    if numbers and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
