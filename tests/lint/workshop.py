"""A family of tiny models that a test may damage, and configs over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import Family

from mergekit_3h.lint import Finding, lint


@dataclass
class Workshop:
    """A family that a test may damage, and configs over it."""

    folder: Path
    base: Path
    experts: list[Path]

    def config(self, method: str = "ties", parameters: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        options = {"weight": 1.0} if parameters is None else parameters
        models = [{"model": str(path)} for path in self.experts]
        plain = {"merge_method": method, "base_model": str(self.base), "models": models, "parameters": options}
        return {key: value for key, value in {**plain, **changes}.items() if value is not None}

    def write(self, config: dict[str, Any] | str, name: str = "config.yml") -> Path:
        path = self.folder / name
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        return path

    def lint(self, config: dict[str, Any] | str, deep: bool = False) -> list[Finding]:
        return lint(self.write(config), deep=deep)

    def edit_weights(self, model: Path, change: Callable[[dict[str, Any]], None]) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    def edit_json(self, file: Path, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def all_of(findings: list[Finding], rule: str) -> list[Finding]:
    """The findings of that rule; fails if there is none."""
    matching = [finding for finding in findings if finding.rule == rule]
    assert matching, [f"{f.severity} {f.rule}: {f}" for f in findings]
    return matching


def only(findings: list[Finding], rule: str) -> Finding:
    """The single finding of that rule; fails if there is another of it, or none."""
    matching = [finding for finding in findings if finding.rule == rule]
    assert len(matching) == 1, [f"{f.severity} {f.rule}: {f}" for f in findings]
    return matching[0]


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
