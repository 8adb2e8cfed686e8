"""Copies of tiny models in which a test may plant a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lint.workshop import Workshop
from tiny_models import Family


@pytest.fixture
def trio(absolute: Path, family: Callable[..., Family]) -> Callable[..., Workshop]:
    """A base and three sound experts in bfloat16, with updates of five percent of the base."""

    def build(architecture: str = "llama", **choices: Any) -> Workshop:
        made = family(architecture, **{"experts": 3, "update": 1e-3, "dtype": torch.bfloat16, **choices})
        base = shutil.copytree(made.base, absolute / "base")
        return Workshop(absolute, base, [shutil.copytree(path, absolute / path.name) for path in made.experts])

    return build
