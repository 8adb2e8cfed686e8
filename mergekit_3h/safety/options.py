"""Every option of ``safety_merge`` in every host: those of a whole run, of its search, and of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from mergekit_3h.cluster.options import ClusterOptions, parse_cluster_options
from mergekit_3h.errors import OptionError
from mergekit_3h.options import checked, require_known
from mergekit_3h.search.options import SearchOptions, parse_search_options


class RunOptions(BaseModel):
    """Where a run takes its data from, where candidates are evaluated, and where the report is left."""

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
    runner: Literal["local", "ray"] = Field(
        "local",
        description="Where candidates are evaluated. local: in this process. ray: on the workers of a Ray cluster, "
        "with the same result.",
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
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OptionError(f"option 'report': nothing can be written in {existing}; name another folder")
        return folder


_RAY = "ray_"
_ray_fields: dict[str, Any] = {
    f"{_RAY}{name}": (field.annotation, deepcopy(field)) for name, field in ClusterOptions.model_fields.items()
}
RayOptions: type[BaseModel] = create_model("RayOptions", __config__=ConfigDict(extra="forbid"), **_ray_fields)
"""The options of ``ClusterOptions``, with ``ray_`` before their names."""

REQUIRED = ("data",)
DECLARATIONS: tuple[type[BaseModel], ...] = (RunOptions, SearchOptions, RayOptions)


@dataclass(frozen=True)
class SafetyMergeOptions:
    """All of them, parsed."""

    run: RunOptions
    search: SearchOptions
    cluster: ClusterOptions

    @property
    def worker_device(self) -> str:
        """The device of a worker of the cluster: Ray shows it the GPU that it reserves for it, or none."""
        return "cuda" if self.cluster.gpus_per_worker else "cpu"

    def by_name(self) -> dict[str, Any]:
        """Every option under the name that users write."""
        ray = {f"{_RAY}{name}": value for name, value in self.cluster.model_dump().items()}
        return {**self.run.model_dump(), **self.search.model_dump(), **ray}


def safety_merge_option_names() -> list[str]:
    """Every option, those of the run first."""
    return [name for declaration in DECLARATIONS for name in declaration.model_fields]


def parse_safety_merge_options(given: Mapping[str, Any]) -> SafetyMergeOptions:
    """Options from plain values; the error names the option, its value and what it may be."""
    known = safety_merge_option_names()
    for name in given:
        require_known("safety_merge", name, known)
    run = {name: checked(RunOptions, name, value) for name, value in given.items() if name in RunOptions.model_fields}
    ray = {name: checked(RayOptions, name, value) for name, value in given.items() if name in RayOptions.model_fields}
    search = {name: value for name, value in given.items() if name in SearchOptions.model_fields}
    try:
        cluster = parse_cluster_options({name.removeprefix(_RAY): value for name, value in ray.items()})
    except OptionError as error:
        raise OptionError(str(error).replace("option '", f"option '{_RAY}")) from None
    return SafetyMergeOptions(RunOptions(**run), parse_search_options(search), cluster)


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
