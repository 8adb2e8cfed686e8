"""The tiny models on disk, made once a session: a base, and two experts that differ from it in every entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import Tensor, nn

from .families import FAMILIES, Tiny, write_models

WEIGHTS = (0.3, 0.5)


@dataclass(frozen=True)
class Made:
    """A family on disk, and what transformers loads from it."""

    name: str
    tiny: Tiny
    base: Path
    experts: list[Path]
    states: dict[Path, dict[str, Tensor]] = field(default_factory=dict)

    def reload(self, folder: Path) -> nn.Module:
        """As a user loads it; fails if anything of it had to be made up."""
        model, info = self.tiny.loader.from_pretrained(str(folder), output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], (info, folder)
        return model

    def state(self, folder: Path) -> dict[str, Tensor]:
        """The tensors of one of the family's own models."""
        if folder not in self.states:
            self.states[folder] = self.reload(folder).state_dict()
        return self.states[folder]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """``made("deepseek-v3")``: its base and experts."""
    done: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in done:
            done[name] = Made(name, FAMILIES[name], *write_models(tmp_path_factory.mktemp(name), name))
        return done[name]

    return get
