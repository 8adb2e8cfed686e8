"""What a user may have meant by a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[str], otherwise: str | None = None, *, cutoff: float = 0.6) -> str:
    """Names the closest of ``known``; where none is close, ``otherwise``, by default all of them."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(names) or 'none'}" if otherwise is None else otherwise
