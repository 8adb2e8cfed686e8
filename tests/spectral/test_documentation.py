"""docs/methods.md says of every option what its declaration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mergekit_3h.spectral.method import ExpertOptions, RunningOptions, SpectralMethod
from mergekit_3h.spectral.registry import method, own_names

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def option_table(*declarations: type[BaseModel], without: type[BaseModel] | None = None) -> str:
    """Markdown of the options, those of ``without`` left out."""
    rows = ["| option | default | what it does |", "|---|---|---|"]
    known = without.model_fields if without else {}
    for declaration in declarations:
        for key, field in declaration.model_fields.items():
            if key not in known:
                shown = _shown(field.default)
                rows.append(f"| `{field.alias or key}` | {shown} | {(field.description or '').replace('|', '/')} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return "unset"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_options_of_every_method_are_listed() -> None:
    assert option_table(SpectralMethod, ExpertOptions, RunningOptions) in PAGE.read_text()


@pytest.mark.parametrize("name", own_names())
def test_the_page_lists_the_options_as_they_are_declared(name: str) -> None:
    """After the heading of the method; on failure the expected table is the one to paste."""
    _, heading, section = PAGE.read_text().partition(f"\n### `{name}`\n")
    assert heading, f"docs/methods.md has no section ### `{name}`"
    assert option_table(method(name), without=SpectralMethod) in section.partition("\n### ")[0]


@pytest.mark.parametrize("name", own_names())
def test_the_overview_names_method_and_paper(name: str) -> None:
    [row] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| [`{name}`](#{name}) |")]
    assert method(name).paper in row
