"""Making the parts: what is finished stays, what was begun goes on, and the summary tells what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mergekit_3h.data.generation.asking import Outcome
from mergekit_3h.data.generation.labels import VerdictLine
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.pipeline.domain_parts import domain_parts, domain_set_part
from mergekit_3h.data.pipeline.markers import Marker, digests, read_marker
from mergekit_3h.data.pipeline.opened_models import PipelineModels
from mergekit_3h.data.pipeline.parts import STEPS, PipelinePart, Step, Workplace
from mergekit_3h.data.pipeline.safety_parts import answer_parts, label_parts, questions_part, safety_part
from mergekit_3h.data.pipeline.settings import PipelineSettings, check
from mergekit_3h.data.pipeline.summary import Summary, summarised, write_summary
from mergekit_3h.data.reading import Reader
from mergekit_3h.data.records import DataError
from mergekit_3h.data.store import write_records
from mergekit_3h.errors import ThreeHError
from mergekit_3h.writing import keep_others_out

log = logging.getLogger(__name__)


def run_pipeline(
    settings: PipelineSettings,
    steps: Sequence[Step] = STEPS,
    *,
    retry_failed: bool = False,
    quiet: bool = False,
) -> Summary:
    """Make every part of ``steps`` that is not there yet. The summary also says when something stopped the run."""
    check(settings)
    folder = Path(settings.output)
    parts = all_parts(settings, folder)
    with _alone_in(folder), PipelineModels(settings.models) as models:
        _remove_unfinished_files(parts, folder)
        reports: list[StepReport] = []
        try:
            for part in parts:
                if part.step in steps:
                    reports.append(_made(part, folder, models, retry_failed, quiet))
        except ThreeHError as error:
            write_summary(summarised(settings, _with_earlier(parts, folder, reports), stopped=str(error)), folder)
            raise
        summary = summarised(settings, _with_earlier(parts, folder, reports))
        write_summary(summary, folder)
        return summary


def all_parts(settings: PipelineSettings, folder: Path) -> list[PipelinePart]:
    """Every part in the order in which they can be made."""
    parts = [
        questions_part(settings, folder),
        *answer_parts(settings, folder),
        *label_parts(settings, folder),
    ]
    if settings.domain is None:
        return [*parts, safety_part(settings, folder)]
    experts = domain_parts(settings, settings.domain, folder)
    return [*parts, *experts, safety_part(settings, folder), domain_set_part(settings.domain, folder)]


def _made(part: PipelinePart, folder: Path, models: PipelineModels, retry_failed: bool, quiet: bool) -> StepReport:
    """The report of a part, made now unless it is finished."""
    _require_inputs(part)
    if retry_failed:
        _forget_failures(part, folder)
    marker_file = part.marker(folder)
    marker = read_marker(marker_file)
    inputs = digests(part.inputs, folder)
    if marker and part.output.is_file() and (marker.settings, marker.inputs) == (part.depends_on, inputs):
        log.info("%s: finished before", part.name)
        return marker.report
    if marker:
        log.info("%s: made again, its %s changed", part.name, _what_changed(marker, part, inputs))
    report = StepReport(step=part.name)
    with _progress(part.name, quiet) as (expect, done):
        records = part.make(Workplace(part.journal(folder), models, expect, done), report)
    write_records(part.output, records)
    write_records(marker_file, [Marker(settings=part.depends_on, inputs=inputs, report=report)])
    return report


def _require_inputs(part: PipelinePart) -> None:
    missing = [path for path in part.inputs if not path.is_file()]
    if missing:
        step = {"answer": "questions", "label": "answer", "build": "label (and domain)", "domain": "domain"}
        raise DataError(
            f"step {part.step!r}: {missing[0]} is not there; run the step {step.get(part.step)!r} of this file first, "
            "or all of them with `mergekit-3h data run`"
        )


def _what_changed(marker: Marker, part: PipelinePart, inputs: dict[str, str]) -> str:
    old, new = {**marker.settings, **marker.inputs}, {**part.depends_on, **inputs}
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(changed) or "result"


def _forget_failures(part: PipelinePart, folder: Path) -> None:
    """Take the failed requests out of a part's journal, so that they are asked again."""
    journal = part.journal(folder)
    if not journal.is_file():
        return
    model = VerdictLine if part.step == "label" else Outcome
    lines = list(Reader(journal, model, growing=True))
    kept = [line for line in lines if not _is_failure(line)]
    if len(kept) < len(lines):
        log.info("%s: %d failed requests are asked again", part.name, len(lines) - len(kept))
        part.marker(folder).unlink(missing_ok=True)
        write_records(journal, kept)


def _is_failure(line: Outcome | VerdictLine) -> bool:
    if isinstance(line, Outcome):
        return line.failure is not None
    return line.label == "unscored" and (line.reason or "").startswith("the request failed")


def _with_earlier(parts: list[PipelinePart], folder: Path, reports: list[StepReport]) -> list[StepReport]:
    """The reports of this run and of parts finished in earlier ones, in the order of the parts."""
    known = {report.step: report for report in reports}
    for part in parts:
        marker = read_marker(part.marker(folder)) if part.name not in known else None
        if marker:
            known[part.name] = marker.report
    return [known[part.name] for part in parts if part.name in known]


def _remove_unfinished_files(parts: list[PipelinePart], folder: Path) -> None:
    """Remove what a killed run left of files it was about to put in place."""
    for part in parts:
        for path in (part.output, part.marker(folder), part.journal(folder)):
            for leftover in path.parent.glob(f".{path.stem}.*"):
                leftover.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """Keep a second run out of the folder. The system frees the lock even when this process is killed."""
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    with (folder / "journal" / "lock").open("w") as lock:
        keep_others_out(lock.fileno(), f"{folder}: another run is at work in this folder; wait for it or stop it")
        yield


@contextmanager
def _progress(name: str, quiet: bool) -> Generator[tuple[Callable[[int], object], Callable[[int], object]]]:
    """A progress bar, silent unless there is a terminal to show it: functions to expect and to count requests."""
    from tqdm import tqdm

    with tqdm(total=0, desc=name, unit="request", disable=True if quiet else None, leave=True) as bar:

        def expect(count: int) -> None:
            bar.total = (bar.total or 0) + count
            bar.refresh()

        yield expect, bar.update
