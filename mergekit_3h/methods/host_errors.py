"""Our errors as mergekit's commands show them: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from mergekit_3h.errors import ThreeHError


class HostError(ThreeHError, click.ClickException):
    """mergekit's commands are click commands, which print a ClickException's message and exit with status 1."""

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, message)


@contextmanager
def shown_by_mergekit() -> Iterator[None]:
    """Turn any error of this package into one that mergekit's commands show without a traceback."""
    try:
        yield
    except HostError:
        raise
    except ThreeHError as error:
        raise HostError(str(error)) from error
