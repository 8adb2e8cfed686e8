"""Imports run downward in the table of docs/architecture.md: drawn from the source, with those inside functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
"""From the ground up, as the page lists them."""

OUTSIDE = ("__init__", "__main__", "__version__")
"""The package itself, which loads its public names on first use, and starting its command."""

ASK_MERGEKIT = (
    "methods/",
    "lint/host_plan.py",
    "benchmarks/profiled_merge.py",
    "benchmarks/staged_merge.py",
    "fusion_bench_ext/",
)
ASK_FUSION_BENCH = ("benchmarks/contenders.py", "fusion_bench_ext/")


def imported(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in the source, under its full name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "mergekit_3h":
            yield from (f"mergekit_3h.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room_of(module: str) -> str | None:
    """The room that a module of ours is in."""
    package, _, rest = module.partition(".")
    if package == "fusion_bench_ext":
        return package
    first = rest.partition(".")[0]
    return first if package == "mergekit_3h" and first and first not in OUTSIDE else None


def upward(room: str, source: str) -> list[str]:
    """Modules of rooms above this one that the source imports."""
    others = [(module, room_of(module)) for module in imported(source)]
    return [module for module, other in others if other and ROOMS.index(other) > ROOMS.index(room)]


def sources() -> dict[str, str]:
    """Every file of both packages with its text."""
    files = [file for package in ("mergekit_3h", "fusion_bench_ext") for file in (REPOSITORY / package).rglob("*.py")]
    return {str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8") for file in files}


def room_of_file(file: str) -> str | None:
    return room_of(file.removesuffix(".py").replace("/", "."))


def test_every_room_is_on_the_page() -> None:
    assert {room_of_file(file) for file in sources()} - {None} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_runs_upward(room: str) -> None:
    found = {file: upward(room, text) for file, text in sources().items() if room_of_file(file) == room}
    assert {file: modules for file, modules in found.items() if modules} == {}


def test_an_import_that_runs_upward_is_seen() -> None:
    inside = "def f():\n    from mergekit_3h.search.options import SearchOptions\n"
    assert upward("losses", inside) == ["mergekit_3h.search.options"]
    assert upward("losses", "from mergekit_3h import safety") == ["mergekit_3h.safety"]
    assert upward("search", "import mergekit_3h.losses.answers") == []


def test_only_the_roof_and_one_file_of_the_lint_import_the_hosts() -> None:
    for file, text in sources().items():
        hosts = {module.partition(".")[0] for module in imported(text)} & {"mergekit", "fusion_bench"}
        place = file.removeprefix("mergekit_3h/")
        assert "mergekit" not in hosts or place.startswith(ASK_MERGEKIT), file
        assert "fusion_bench" not in hosts or place.startswith(ASK_FUSION_BENCH), file


def test_no_two_classes_bear_one_name() -> None:
    places: dict[str, list[str]] = {}
    for file, text in sources().items():
        for name in re.findall(r"^class (\w+)", text, re.MULTILINE):
            places.setdefault(name, []).append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
