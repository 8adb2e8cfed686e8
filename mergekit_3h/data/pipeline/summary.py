"""What a run did, for machines (summary.json) and for people (summary.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mergekit_3h import __version__
from mergekit_3h.data.generation.reports import StepReport, listed
from mergekit_3h.data.pipeline.settings import PipelineSettings
from mergekit_3h.tables import Table
from mergekit_3h.writing import write_text_whole


class Summary(BaseModel):
    """The result of a run. It holds no times and no addresses: two equal runs have equal summaries."""

    model_config = ConfigDict(extra="forbid")

    version: str
    seed: int
    state: Literal["complete", "stopped"]
    stopped_by: str | None = Field(default=None, description="The error that stopped the run.")
    steps: list[StepReport]
    notes: list[str] = Field(default_factory=list[str], description="Worth knowing, within the limits.")
    beyond_limits: list[str] = Field(default_factory=list[str], description="What makes the exit status 3.")

    @property
    def good(self) -> bool:
        return self.state == "complete" and not self.beyond_limits


def summarised(settings: PipelineSettings, reports: list[StepReport], stopped: str | None = None) -> Summary:
    """The summary of the parts that were made."""
    limits = settings.limits
    beyond: list[str] = []
    notes: list[str] = []
    for report in reports:
        _judge(report.failed_share, limits.failed, f"{report.step}: requests failed", report.failed, beyond, notes)
        _judge(
            report.unscored_share, limits.unscored, f"{report.step}: replies unscored", report.unscored, beyond, notes
        )
        if report.wanted is not None and report.kept < report.wanted:
            notes.append(f"{report.step}: {report.kept} of the {report.wanted} records asked for")
        if report.kept == 0 and (report.step in ("safety", "domain") or report.wanted):
            beyond.append(f"{report.step}: the result is empty")
    return Summary(
        version=__version__,
        seed=settings.seed,
        state="stopped" if stopped else "complete",
        stopped_by=stopped,
        steps=reports,
        notes=notes,
        beyond_limits=beyond,
    )


def _judge(share: float, limit: float, what: str, reasons: dict[str, int], beyond: list[str], notes: list[str]) -> None:
    if share > 0:
        text = f"{what}: {share:.1%} (limit {limit:.1%}): {listed(reasons)}"
        (beyond if share > limit else notes).append(text)


def write_summary(summary: Summary, folder: Path) -> None:
    """Write both files, each as a whole."""
    write_text_whole(folder / "summary.json", summary.model_dump_json(indent=2) + "\n")
    write_text_whole(folder / "summary.md", as_text(summary) + "\n")


def as_text(summary: Summary) -> str:
    """The summary as Markdown that is also readable as it stands."""
    headers = ("step", "verdicts", "requests", "kept", "dropped", "failed", "unscored")
    table = Table(headers, [_row(report) for report in summary.steps], left=2)
    blocks = [f"# Data pipeline: {_verdict(summary)}", table.as_markdown()]
    for title, items in (
        ("Beyond the limits", summary.beyond_limits),
        ("Dropped", [f"{report.step}: {listed(report.dropped)}" for report in summary.steps if report.dropped]),
        ("Notes", summary.notes),
        ("Reasons in full, the first of each kind", _full_reasons(summary.steps)),
    ):
        if items:
            blocks.append(f"## {title}\n" + "\n".join(f"- {item}" for item in items))
    blocks.append(f"mergekit-3h {summary.version}, seed {summary.seed}")
    return "\n\n".join(blocks)


def _full_reasons(steps: list[StepReport]) -> list[str]:
    first: dict[str, str] = {}
    for report in steps:
        for short, full in report.examples.items():
            first.setdefault(short, f"{report.step}: {full}")
    return list(first.values())


def _verdict(summary: Summary) -> str:
    if summary.state == "stopped":
        return f"stopped: {summary.stopped_by}"
    return "complete" if summary.good else "complete, but beyond the limits"


def _row(report: StepReport) -> tuple[str, ...]:
    wanted = f" of {report.wanted}" if report.wanted is not None else ""
    numbers = (report.dropped, report.failed, report.unscored)
    return (
        report.step,
        listed(report.labels),
        str(report.requests),
        f"{report.kept}{wanted}",
        *(str(sum(counts.values())) for counts in numbers),
    )
