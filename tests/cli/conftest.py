"""Copies of the tiny models that one test may damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.workshop import Workshop
from tiny_models import Family


@pytest.fixture
def workshop(absolute: Path, family: Callable[..., Family]) -> Callable[..., Workshop]:
    def build(architecture: str = "llama", **choices: Any) -> Workshop:
        made = family(architecture, experts=2, **choices)
        base = shutil.copytree(made.base, absolute / "base")
        experts = [shutil.copytree(path, absolute / path.name) for path in made.experts]
        return Workshop(absolute, base, experts)

    return build


@pytest.fixture
def llamas(workshop: Callable[..., Workshop]) -> Workshop:
    return workshop("llama")
