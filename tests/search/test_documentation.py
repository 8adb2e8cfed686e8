"""The page about the search lists every option as it is declared."""

from __future__ import annotations

from pathlib import Path

from mergekit_3h.search import SearchOptions
from mergekit_3h.search.solvers import SOLVERS

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


def test_every_option_with_its_default_and_description() -> None:
    for name, field in SearchOptions.model_fields.items():
        assert f"| `{name}` | {shown(field.default)} | {field.description} |" in PAGE


def shown(default: object) -> str:
    """A default as YAML writes it."""
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    return "1/6" if default == 1 / 6 else str(default)


def test_every_solver() -> None:
    for name in SOLVERS:
        assert f"| `{name}` | " in PAGE
