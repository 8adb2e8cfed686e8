"""What is measured: dimensions, the metrics of each, and the files and judges that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.records import derived_id
from mergekit_3h.data.sections import Section, parsed
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.judges import Judge, JudgeSettings, backend_from_text, judge_of
from mergekit_3h.evaluation.local_rows import Keep
from mergekit_3h.evaluation.metrics import KINDS, AnyMetric
from mergekit_3h.evaluation.metrics.contract import MetricKind, Surroundings
from mergekit_3h.suggestions import did_you_mean

# A metric's name becomes a column and part of file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class NamedFile(Section):
    """A file that a suite needs and a user brings along."""

    path: str | None = Field(None, description="Where it is; unset: to be given with --file NAME=PATH.")
    about: str = Field("", description="What it is and where it comes from.")


class Suite(Section):
    """Everything that ``mergekit-3h evaluate`` measures."""

    name: str = Field(description="In results and tables.")
    about: str = Field("", description="What the suite is for.")
    seed: int = Field(0, description="Of resampling and of sampled replies.")
    resamples: int = Field(1000, ge=100, description="Of the bootstrap.")
    unscored_limit: float = Field(
        0.05, ge=0.0, le=1.0, description="Share of a metric's items without a score from which the exit status is 3."
    )
    files: dict[str, NamedFile] = Field(default_factory=dict, description="Files by name, for metrics' `data`.")
    judges: dict[str, JudgeSettings] = Field(default_factory=dict, description="Judges by name.")
    dimensions: dict[str, dict[str, AnyMetric]] = Field(min_length=1, description="Metrics by name, by dimension.")
    forgetting: dict[str, AnyMetric] = Field(
        default_factory=dict, description="Metrics of what nobody trained for; in no average."
    )

    @field_validator("files", mode="before")
    @classmethod
    def _a_text_is_a_path(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        named = cast("dict[str, Any]", given)
        return {name: {"path": one} if isinstance(one, str) else one or {} for name, one in named.items()}

    @field_validator("dimensions", "forgetting", mode="before")
    @classmethod
    def _known_kinds(cls, given: Any) -> Any:
        for name, metric in _metrics_in(given):
            kind = metric.get("kind")
            if kind not in KINDS:
                hint = did_you_mean(kind, KINDS)
                message = "metric '{name}': {got}; {hint}"
                got = "it has no kind" if kind is None else f"no kind {kind!r}"
                raise PydanticCustomError("kind", message, {"name": name, "got": got, "hint": hint})
        return given

    @model_validator(mode="after")
    def _unique_names(self) -> Suite:
        seen: set[str] = set()
        for name, _, _ in self.metrics():
            if not _NAME.fullmatch(name):
                raise PydanticCustomError(
                    "metric_name",
                    "metric {name}: expected letters, digits, dots, dashes and underscores",
                    {"name": repr(name)},
                )
            if name in seen:
                raise PydanticCustomError("twice", "two metrics are called {name}", {"name": repr(name)})
            seen.add(name)
        if any(not metrics for metrics in self.dimensions.values()):
            raise PydanticCustomError("empty", "a dimension has no metric; expected at least one")
        return self

    def metrics(self) -> Iterator[tuple[str, str | None, MetricKind]]:
        """Every metric's name, dimension and settings."""
        for dimension, metrics in self.dimensions.items():
            for name, metric in metrics.items():
                yield name, dimension, cast(MetricKind, metric)
        for name, metric in self.forgetting.items():
            yield name, None, cast(MetricKind, metric)


@dataclass(frozen=True)
class ReadySuite:
    """A suite with everything it needs in its place."""

    suite: Suite
    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
    """Paths of the suite's named files, as given by the user."""
    judges: Mapping[str, Judge] = field(default_factory=dict)
    keep: Keep | None = None
    runs_code: bool = False
    """Whether the user allows tasks that run what a model writes."""

    def around(self) -> Surroundings:
        return Surroundings(self.path_of, self.judges, self.suite.seed, self.keep, self.runs_code)

    def path_of(self, data: str) -> Path:
        """One of the suite's files by its name, or a path beside the suite's file."""
        if data in self.suite.files:
            named = self.suite.files[data]
            given = self.files.get(data)
            if given is not None:
                return Path(given).expanduser().resolve()
            if named.path is None:
                about = f" ({named.about})" if named.about else ""
                raise OptionError(
                    f"the suite {self.suite.name} needs the file {data!r}{about}; pass --file {data}=PATH"
                )
            data = named.path
        return (self.folder / Path(data).expanduser()).resolve()

    def require_ready(self) -> None:
        """Raise, in one line, for the first thing that is missing; no model is loaded."""
        around = self.around()
        for name, _, metric in self.suite.metrics():
            metric.require_ready(name, around)

    def keys(self) -> dict[str, str]:
        """A digest for each metric of all that its numbers depend on, the model aside."""
        around = self.around()
        return {
            name: derived_id(_settings_of(metric), metric.depends_on(around), self.suite.seed)
            for name, _, metric in self.suite.metrics()
        }

    def close(self) -> None:
        for judge in self.judges.values():
            judge.close()


def _settings_of(metric: MetricKind) -> Any:
    """What a metric is, without its weight, which changes no number, and without defaults, which later ones join."""
    return cast(Any, metric).model_dump(mode="json", exclude={"weight"}, exclude_defaults=True)


def read_suite(
    given: str,
    files: Mapping[str, str] | None = None,
    judges: Mapping[str, str] | None = None,
    keep: Keep | None = None,
    runs_code: bool = False,
) -> ReadySuite:
    """A suite by its file or the name of a shipped one, with the user's own files and judges."""
    text, place, folder = _suite_text(given)
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise OptionError(f"{place}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(content, dict):
        raise OptionError(f"{place}: got {type(content).__name__}, expected a mapping with name and dimensions")
    suite = parsed(Suite, content, place)
    for kind, mine, known in (("file", files, suite.files), ("judge", judges, suite.judges)):
        for name in mine or {}:
            if name not in known:
                raise OptionError(
                    f"--{kind} {name}: the suite {suite.name} has no such {kind}; {did_you_mean(name, known)}"
                )
    opened = {name: judge_of(name, _with_backend(name, one, judges or {})) for name, one in suite.judges.items()}
    return ReadySuite(suite, folder, files or {}, opened, keep, runs_code)


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(file.name[:-4] for file in _shipped().iterdir() if file.name.endswith(".yml"))


def _shipped() -> Path:
    return Path(str(files("mergekit_3h.evaluation.suites")))


def _with_backend(name: str, settings: JudgeSettings, given: Mapping[str, str]) -> JudgeSettings:
    if name not in given:
        return settings
    content = {**settings.model_dump(), "backend": backend_from_text(given[name])}
    return parsed(JudgeSettings, content, f"--judge {name}={given[name]}")


def _suite_text(given: str) -> tuple[str, str, Path]:
    """The suite's text, what to call it in errors, and the folder its paths start from."""
    path = Path(given).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path), path.resolve().parent
    if given in shipped_suites():
        return (_shipped() / f"{given}.yml").read_text(encoding="utf-8"), given, _shipped()
    found = "a folder" if path.is_dir() else "no such file"
    raise OptionError(f"suite {given!r}: {found}, and no shipped suite; {did_you_mean(given, shipped_suites())}")


def _metrics_in(given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that ought to be a metric, one or two levels down."""
    for name, inner in cast("dict[str, Any]", given).items() if isinstance(given, dict) else ():
        if not isinstance(inner, dict):
            continue
        metric = cast("dict[str, Any]", inner)
        if "kind" in metric or not all(isinstance(value, dict) for value in metric.values()):
            yield name, metric
        else:
            yield from _metrics_in(metric)
