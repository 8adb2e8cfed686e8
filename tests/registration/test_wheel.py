"""What a release consists of: every file that the packages need at run time, and every package that they import."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from registration.environments import REPOSITORY

from mergekit_3h.spectral.registry import own_names

PACKAGES = ("mergekit_3h", "fusion_bench_ext")
BROUGHT = {
    "mergekit": {"click", "pyyaml", "safetensors", "tqdm", "transformers", "typing-extensions"},
    "pydantic": {"pydantic-core"},
    "torch": {"jinja2"},
    "cma": {"numpy"},
}
"""What declared packages cannot do without."""
BROUGHT_FOR_FUSION_BENCH = {"hydra-core", "omegaconf"}


@pytest.fixture(scope="module")
def archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as opened:
        yield opened


def metadata_file(archive: zipfile.ZipFile, name: str) -> str:
    [file] = [file for file in archive.namelist() if file.endswith(f".dist-info/{name}")]
    return archive.read(file).decode()


def test_no_file_of_the_packages_is_left_out(archive: zipfile.ZipFile) -> None:
    folders = [REPOSITORY / package for package in PACKAGES]
    files = {path for folder in folders for path in folder.rglob("*") if path.suffix not in ("", ".pyc")}
    expected = {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert {"fusion_bench_ext/config/method/mergekit.yaml", "mergekit_3h/data/prompts/wildguard.txt"} <= expected
    assert expected - set(archive.namelist()) == set()


def test_what_lies_beside_the_packages(archive: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in archive.namelist()}
    others = {name for name in top if not name.endswith(".dist-info")} - set(PACKAGES)
    assert others == {"mergekit_3h.pth", "mergekit_3h.start", "_mergekit_3h_autoload.py", "hydra_plugins"}
    # With an __init__.py it would be a package of ours, and hide the plugins of others from Hydra.
    assert [name for name in archive.namelist() if name.startswith("hydra_plugins/")] == [
        "hydra_plugins/mergekit_3h.py"
    ]
    assert archive.read("mergekit_3h.pth") == (REPOSITORY / "startup" / "mergekit_3h.pth").read_bytes()
    assert metadata_file(archive, "licenses/LICENSE") == (REPOSITORY / "LICENSE").read_text()


def test_every_entry_point_names_something_in_the_wheel(archive: zipfile.ZipFile) -> None:
    declared = configparser.ConfigParser()
    declared.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    declared.read_string(metadata_file(archive, "entry_points.txt"))
    assert dict(declared["console_scripts"]) == {"mergekit-3h": "mergekit_3h.cli:main"}
    assert set(declared["mergekit.merge_methods"]) == {*own_names(), "safety_merge"}
    assert dict(declared["hydra.plugins"]) == {"mergekit-3h": "hydra_plugins.mergekit_3h:MergeKit3HSearchPath"}
    names = archive.namelist()
    for group in declared.sections():
        for value in declared[group].values():
            module, _, attribute = value.partition(":")
            file = module.replace(".", "/")
            [source] = [name for name in (f"{file}.py", f"{file}/__init__.py") if name in names]
            is_method = module == "mergekit_3h.methods.spectral" and f"mergekit_3h/spectral/{attribute}.py" in names
            text = archive.read(source).decode()
            named = rf"^(def |class )?{attribute}\b|^    if name == \"{attribute}\":"  # or made on first use
            assert is_method or re.search(named, text, re.MULTILINE), value


def imported(source: str) -> Iterator[str]:
    """Names of the modules that a file imports anywhere, also those that it only names to ``import_module``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))


def test_what_the_packages_import_is_declared(archive: zipfile.ZipFile) -> None:
    lines = metadata_file(archive, "METADATA").splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    declared = {canonicalize_name(requirement.name) for requirement in required}
    of_module = packages_distributions()
    undeclared: dict[str, str] = {}
    for package in PACKAGES:
        known = declared.union(*BROUGHT.values())
        known |= BROUGHT_FOR_FUSION_BENCH if package == "fusion_bench_ext" else set()
        for file in (name for name in archive.namelist() if name.startswith(f"{package}/") and name.endswith(".py")):
            for module in imported(archive.read(file).decode()):
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in PACKAGES:
                    continue
                names = {canonicalize_name(name) for name in of_module.get(top, [top])}
                if not names & known:
                    undeclared[module] = file
    assert undeclared == {}
