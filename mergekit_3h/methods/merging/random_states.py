"""Random numbers of a merge that is continued: drawn as if it had never been interrupted.

mergekit seeds once, and its methods draw from the generators of the process in the order in which tensors are merged.
So a tensor's draws depend on all that were drawn before it. What a finished piece is followed by is written down with
it: the states before those tasks that had drawn already for tensors of the next piece, and the state after them all.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from mergekit_3h.errors import ModelError

States = dict[str, Any]
"""Of all generators that a merge method may draw from, as JSON holds it."""


def random_states() -> States:
    name, keys, *rest = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, words, gauss = random.getstate()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": _text(torch.get_rng_state().numpy()),
        "cuda": [_text(state.numpy()) for state in on_devices],
        "numpy": [name, _text(np.asarray(keys)), *rest],
        "python": [version, list(words), gauss],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(_bytes(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state_all([_bytes(state) for state in states["cuda"]])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.frombuffer(base64.b64decode(keys), dtype=np.uint32), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


def _text(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


class DrawWatch:
    """Sees which tasks draw, and sets the states that they drew from in the run before. Tasks go by their places in
    mergekit's schedule."""

    def __init__(self, order: str = "", known: Mapping[str, Any] | None = None) -> None:
        """``known``: what the piece before these tasks was followed by; ``order`` tells their schedule from others."""
        if known is not None and known["order"] != order:
            raise ModelError(
                "mergekit has planned the tensors in another order than before, in which random numbers would be drawn "
                "otherwise: begin again with --start-over"
            )
        self._order = order
        self._known = {int(place): states for place, states in (known or {"states": {}})["states"].items()}
        self._states: States | None = None
        self._drew: dict[int, States] = {}

    def before(self, place: int) -> None:
        due = [known for known in sorted(self._known) if known <= place]
        if due:
            set_random_states(self._known[due[-1]])
        for known in due:
            del self._known[known]
        if self._states is None or due:
            self._states = random_states()

    def after(self, place: int) -> bool:
        """Whether the task drew."""
        now = random_states()
        before = self._states
        assert before is not None
        # A device that was not in use before has its state from the seed: it is known without being written down.
        has_drawn = any(before[name] not in (now[name], []) for name in now)
        if has_drawn:
            self._drew[place] = before
        self._states = now
        return has_drawn

    def cut(self, place: int, needed: Callable[[], Iterable[int]]) -> dict[str, Any] | None:
        """What a piece is followed by that ends while the task at ``place`` runs.

        ``needed`` are the tasks before it whose results belong to what follows: they are run again.
        """
        if not self._drew:
            return None
        self._drew = {each: self._drew[each] for each in needed() if each in self._drew}
        return {"order": self._order, "states": {**self._drew, place + 1: random_states()}}
