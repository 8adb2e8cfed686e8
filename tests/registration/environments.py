"""Throw-away virtual environments: real interpreters, real pip, real wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "stand_in" / "mergekit"


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.folder / "lib").glob("python*/site-packages"))

    def pip(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", "-q"]
        _checked([*command, *arguments])

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", *wheels)

    def run(
        self, code: str, *flags: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run code in a fresh process, which must succeed."""
        return self.start(*flags, "-c", textwrap.dedent(code), cwd=cwd, **variables)

    def start(self, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MERGEKIT_3H", "COV"))
        }
        return _checked([self.python, *arguments], cwd=cwd or self.folder, env=inherited | variables)

    def answer(self, code: str, *flags: str, **variables: str) -> Any:
        """What the code writes as JSON on its last line; nothing may appear on stderr."""
        done = self.run(code, *flags, **variables)
        assert done.stderr == "", done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def copy(self, folder: Path) -> Environment:
        return Environment(Path(shutil.copytree(self.folder, folder, symlinks=True)))


def create_environment(python: Path, folder: Path) -> Environment:
    _checked([python, "-m", "venv", "--without-pip", folder])
    return Environment(folder)


def find_python(version: str) -> Path | None:
    """The executable of a Python such as ``3.12``, be it this one, one on PATH or one of pyenv's."""
    candidates = [
        Path(getattr(sys, "_base_executable", sys.executable)),
        *Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"),
    ]
    if on_path := shutil.which(f"python{version}"):
        candidates.append(Path(on_path))
    for candidate in candidates:
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return candidate
    return None


def unpack_source_distribution(folder: Path) -> Path:
    """Build the source distribution of this project, from which a release builds its wheel."""
    _checked([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=REPOSITORY)
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def build_wheel(project: Path) -> Path:
    _checked([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", project / "dist"], cwd=project)
    return next((project / "dist").glob("*.whl"))


def write_project(
    folder: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, str],
    group: str = "mergekit.merge_methods",
) -> Path:
    """A package ``name`` as anybody may write it, which declares entry points of a group."""
    declared = "\n".join(f'{key} = "{value}"' for key, value in entry_points.items())
    text = f"""
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "{name}"
        version = "1.0"
        [tool.hatch.build.targets.wheel]
        packages = ["{name}"]
        [project.entry-points."{group}"]
    """
    (folder / name).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(textwrap.dedent(text) + declared + "\n")
    for module, source in {"__init__": "", **modules}.items():
        (folder / name / f"{module}.py").write_text(textwrap.dedent(source))
    return folder


def _checked(
    command: list[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done
