"""``mergekit-3h inspect``: shows what ``mergekit_3h.diagnostics`` measures and concludes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mergekit_3h.diagnostics.conclusions import Conclusion, Inspection
    from mergekit_3h.diagnostics.subjects import InspectedModels
    from mergekit_3h.losses.objective import Objective
    from mergekit_3h.losses.options import LossOptions

_MARKS = {
    "fine": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "error": ("error", "red"),
}


@click.command("inspect")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--base", help="The base model, where there is no CONFIG.")
@click.option("--expert", "experts", multiple=True, help="An expert; may be given several times.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for page, pictures and measures.")
@click.option(
    "--sample", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the layers."
)
@click.option("--data", help="JSONL files with records, separated by commas: compares the experts' loss gradients too.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
@click.option(
    "--record",
    type=click.Path(file_okay=False, path_type=Path),
    help="What a merge of these experts left (its option record). Unset: the CONFIG's own, if it is there.",
)
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Heat maps as PNG files in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    config: Path | None,
    base: str | None,
    experts: tuple[str, ...],
    out: Path | None,
    sample: float,
    data: str | None,
    device: str,
    record: Path | None,
    pictures: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """What the experts' updates look like before they are merged, and what speaks against merging them.

    CONFIG is any mergekit config with a base model; --base and --expert do without one. Every tensor is read once, one
    at a time. With --out, a run that was stopped goes on where it was, and one with --sample can be completed. Exit
    status: 0, or 1 if something found is an error.
    """
    subject = _subject(config, base, experts)
    _require_device(device)
    recorded, objective = _recorded(subject, record), _objective(subject, data)  # before hours are spent on the pass
    inspection = replace(_inspected(subject, out, sample, device, quiet), record=recorded)
    if objective is not None:
        inspection = _with_gradients(inspection, subject, objective, device)
    from mergekit_3h.diagnostics.conclusions import conclusions
    from mergekit_3h.diagnostics.summary import as_json as whole

    found = conclusions(inspection)
    if out is not None:
        _write(inspection, found, subject, out, pictures)
    if as_json:
        click.echo(json.dumps(whole(inspection, found, subject.experts), indent=2))
    else:
        _show(inspection, found, subject.experts)
    raise SystemExit(1 if any(conclusion.verdict == "error" for conclusion in found) else 0)


def _subject(config: Path | None, base: str | None, experts: Sequence[str]) -> InspectedModels:
    from mergekit_3h.diagnostics.subjects import subject_of_config, subject_of_models

    if config is not None:
        if base or experts:
            raise click.UsageError("give either CONFIG, or --base and --expert")
        return subject_of_config(config)
    if not base or not experts:
        raise click.UsageError("expected a CONFIG, or --base MODEL and at least one --expert MODEL")
    return subject_of_models(base, experts)


def _require_device(device: str) -> None:
    from mergekit_3h.inspection.devices import device_problem

    problem = device_problem(device)
    if problem:
        raise click.BadParameter(problem, param_hint="--device")


def _inspected(subject: InspectedModels, out: Path | None, sample: float, device: str, quiet: bool) -> Inspection:
    from mergekit_3h.diagnostics.conclusions import Inspection
    from mergekit_3h.diagnostics.survey import options_of, survey
    from mergekit_3h.kernels.memory import return_large_blocks_when_freed

    return_large_blocks_when_freed()
    options = options_of(subject.config)
    rows = survey(subject, options, folder=out, sample=sample, device=device, quiet=quiet)
    return Inspection(
        base=subject.base,
        experts=subject.labels,
        rows=rows,
        settings=options.settings(),
        method=subject.method,
        findings=subject.findings,
        tied=subject.tied,
    )


def _recorded(subject: InspectedModels, folder: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """What a merge left, in the folder or where the config says; empty where there is nothing."""
    from mergekit_3h.diagnostics.record import RECORD, record_of

    named = (subject.config.parameters or {}).get("record")
    if folder is None and isinstance(named, str) and (Path(named).expanduser() / RECORD).is_file():
        folder = Path(named).expanduser()
    return {} if folder is None else record_of(folder, subject.experts)


def _objective(subject: InspectedModels, data: str | None) -> Objective | None:
    from mergekit_3h.diagnostics.gradients import objective_of
    from mergekit_3h.losses.records import located_records
    from mergekit_3h.safety.options import data_files

    return None if data is None else objective_of(subject, located_records(data_files(data)), _precise())


def _with_gradients(inspection: Inspection, subject: InspectedModels, objective: Objective, device: str) -> Inspection:
    from mergekit_3h.diagnostics.gradients import gradient_cosines

    found = gradient_cosines(subject, objective, _precise(), device)
    return replace(inspection, gradients=found, asked_for_gradients=True)


def _precise() -> LossOptions:
    from mergekit_3h.losses.options import LossOptions

    return LossOptions.model_validate({"dtype": "float32"})


def _write(
    inspection: Inspection, found: Sequence[Conclusion], subject: InspectedModels, out: Path, pictures: bool
) -> None:
    from mergekit_3h.diagnostics.page import inspection_page
    from mergekit_3h.writing import write_text_whole

    write_text_whole(out / "index.html", inspection_page(inspection, found, subject.experts))
    if pictures:
        _draw(inspection, out / "heat_maps")


def _draw(inspection: Inspection, folder: Path) -> None:
    from mergekit_3h.diagnostics.heat_maps import draw_heat_maps
    from mergekit_3h.optional import MissingExtraError

    try:
        draw_heat_maps(inspection, folder)
    except MissingExtraError as error:
        click.echo(f"no heat maps as PNG files, the page has them too: {error}", err=True)


def _show(inspection: Inspection, found: Sequence[Conclusion], models: Sequence[str]) -> None:
    from mergekit_3h.diagnostics.summary import suggested_config, table_by_type

    click.echo(f"base {inspection.base}; experts {', '.join(inspection.experts)}\n")
    asked = ""
    for conclusion in found:
        if conclusion.question != asked:
            click.echo(click.style(conclusion.question, bold=True))
            asked = conclusion.question
        label, colour = _MARKS.get(conclusion.verdict, ("-", "white"))
        click.echo(f"  {click.style(f'{label:7}', fg=colour)} {conclusion.text} [{conclusion.rule}]")
        if conclusion.advice:
            click.echo(f"          -> {conclusion.advice}")
        if conclusion.verdict not in ("fine", "unknown"):
            click.echo(click.style(f"          known how: {conclusion.basis}", dim=True))
    click.echo(f"\nMedians by type of tensor (experts' and pairs' means):\n{table_by_type(inspection.rows).as_text()}")
    config = suggested_config(inspection, found, models)
    if config:
        click.echo(f"\nSuggested by the above, not validated by any merge:\n\n{config.rstrip()}")
