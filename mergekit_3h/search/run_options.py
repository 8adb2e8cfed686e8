"""Options of a whole ``safety_merge`` run, declared once for every host beside those of its search."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mergekit_3h.errors import OptionError
from mergekit_3h.options import checked
from mergekit_3h.search.options import SearchOptions, parse_search_options


class RunOptions(BaseModel):
    """Where a run takes its data from and leaves its report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(
        "",
        description="JSONL files with the records of the safety and domain sets, separated by commas. Required.",
    )
    report: str | None = Field(
        None,
        description="Folder for the report: losses, coefficients, trace, plot, and static.yml, which reproduces the "
        "merge without data. Unset: in FusionBench the log directory, elsewhere none is written.",
    )

    def files(self) -> list[Path]:
        """The data files, each of which exists."""
        return data_files(self.data)

    def folder(self) -> Path | None:
        """The report's folder, if there is to be one."""
        if not self.report:
            return None
        folder = Path(self.report).expanduser()
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"option 'report': {folder} is a file; expected a folder, or a path that is free")
        return folder


def data_files(given: str) -> list[Path]:
    """The files that the option ``data`` names."""
    paths = [Path(part.strip()).expanduser() for part in given.split(",") if part.strip()]
    if not paths:
        raise OptionError(
            "option 'data' is required: name the JSONL files of the safety and domain sets, separated by commas "
            "(mergekit-3h data makes them)"
        )
    for path in paths:
        if not path.is_file():
            raise OptionError(f"option 'data': there is no file {path} (looked for in {Path.cwd()})")
    return paths


REQUIRED = ("data",)
DECLARATIONS: tuple[type[BaseModel], ...] = (RunOptions, SearchOptions)


def run_option_names() -> list[str]:
    """Every option of ``safety_merge``, those of the run first."""
    return [name for declaration in DECLARATIONS for name in declaration.model_fields]


def parse_run_options(given: Mapping[str, Any]) -> tuple[RunOptions, SearchOptions]:
    """Both kinds of options from plain values; the error names the option, its value and what it may be."""
    known = run_option_names()
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
            raise OptionError(f"safety_merge has no option {name!r}; {hint}")
    own = {name: checked(RunOptions, name, given[name]) for name in given if name in RunOptions.model_fields}
    search = {name: value for name, value in given.items() if name in SearchOptions.model_fields}
    return RunOptions(**own), parse_search_options(search)
