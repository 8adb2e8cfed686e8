"""``mergekit-3h data``: make, import, divide, look at safety and domain data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

BEYOND_LIMITS = 3
"""Exit status of a run that is complete but failed or left unscored more than its limits allow."""

_STEPS = {
    "questions": "Step 1: a generator writes questions that ought to be refused.",
    "answer": "Step 2: every model of the pool answers every question.",
    "label": "Step 3: a guard or judge gives its verdict on every answer.",
    "domain": "Step 4: experts write questions of their domain, and answers.",
    "build": "Step 5: safety.jsonl and domain.jsonl from the other steps.",
}


class _Group(click.Group):
    """Wraps the commands' short texts where the terminal is narrow; click would cut them off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in self.commands.items()])


@click.group(name="data", cls=_Group)
def command() -> None:
    """Make the safety and domain data that safety-aware merging needs.

    CONFIG is the YAML file of a pipeline (docs/data_generation.md). Whatever is interrupted goes on where it was when
    the same command is called again.
    """


def _pipeline_command(function: Callable[..., None]) -> Callable[..., None]:
    decorators = (
        click.argument("config", type=click.Path(path_type=Path)),
        click.option("--retry-failed", is_flag=True, help="Ask again what failed in an earlier run."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary."),
        click.option("-v", "--verbose", is_flag=True, help="Say what is going on, retries included."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def _run(config: Path, steps: tuple[str, ...] | None, retry_failed: bool, quiet: bool, verbose: bool) -> None:
    from mergekit_3h.data.pipeline.parts import STEPS
    from mergekit_3h.data.pipeline.run import run_pipeline
    from mergekit_3h.data.pipeline.settings import read_settings
    from mergekit_3h.data.pipeline.summary import as_text

    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("mergekit_3h").setLevel(logging.INFO)
    settings = read_settings(config)
    chosen: Any = steps or STEPS
    summary = run_pipeline(settings, chosen, retry_failed=retry_failed, quiet=quiet)
    if not quiet:
        click.echo(as_text(summary))
    if not summary.good:
        for problem in summary.beyond_limits if quiet else ():
            click.echo(f"Beyond the limits: {problem}", err=True)
        raise click.exceptions.Exit(BEYOND_LIMITS)


@command.command(short_help="The whole pipeline: all five steps.")
@_pipeline_command
def run(config: Path, retry_failed: bool, quiet: bool, verbose: bool) -> None:
    """The whole pipeline: questions, answers, verdicts, domain data, and the two sets.

    Exit status: 0 all within the limits, 1 stopped by an error, 3 complete but beyond the limits of the config.
    """
    _run(config, None, retry_failed, quiet, verbose)


def _add_step(name: str, text: str) -> None:
    @_pipeline_command
    def step(config: Path, retry_failed: bool, quiet: bool, verbose: bool) -> None:
        _run(config, (name,), retry_failed, quiet, verbose)

    command.command(name=name, help=text)(step)


for _name, _text in _STEPS.items():
    _add_step(_name, _text)


@command.command(short_help="Counts, and the refusal rate of every model.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--chart", type=click.Path(path_type=Path), help="Save a bar chart of the refusal rates here (.png, .svg)."
)
@click.option("--style", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
@click.option("--skip-invalid", is_flag=True, help="Leave bad lines out instead of stopping at them.")
def stats(files: tuple[Path, ...], chart: Path | None, style: Any, skip_invalid: bool) -> None:
    """Counts by set, category and label, and the refusal rate of every model in FILES."""
    from itertools import chain

    from mergekit_3h.data.presentation import as_table, save_bar_chart
    from mergekit_3h.data.reading import Reader
    from mergekit_3h.data.records import Record
    from mergekit_3h.data.statistics import statistics

    counted = statistics(chain.from_iterable(Reader(file, Record, skip_invalid) for file in files))
    click.echo(as_table(counted, style))
    if chart is not None:
        save_bar_chart(counted, chart)


@command.command()
@click.argument("name", required=False)
@click.option("--folder", type=click.Path(path_type=Path), help="Your own prompts, as in the option prompts.")
def prompts(name: str | None, folder: Path | None) -> None:
    """List the prompts, or show the one called NAME.

    A file NAME.txt in a folder of your own, named by prompts: in the config, takes its place.
    """
    from mergekit_3h.data.prompts import prompt_names, prompt_text

    if name is not None:
        click.echo(prompt_text(name, folder), nl=False)
        return
    for known in prompt_names():
        is_own = folder is not None and (folder / f"{known}.txt").is_file()
        click.echo(f"{known}  ({folder})" if is_own else known)


@command.command(name="import", short_help="Records from published data sets, or from any table.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="JSONL file to write (.gz packs).")
@click.option("--format", "format_name", default="auto", show_default=True, help="Known format; auto goes by columns.")
@click.option("--set", "set_name", type=click.Choice(["safety", "domain", "overrefusal"]), help="Set of the records.")
@click.option("--source", help="What the records say about where they come from.")
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Own mapping, for other tables.")
@click.option("--skip-invalid", is_flag=True, help="Leave bad rows out instead of stopping at them.")
@click.option("--unique", is_flag=True, help="Drop records that ask the same as an earlier one.")
@click.option(
    "--near", type=click.FloatRange(0, 1, min_open=True), help="With --unique: drop near duplicates from here."
)
@click.option("--force", is_flag=True, help="Replace the output file.")
def import_files(
    files: tuple[Path, ...], output: Path, force: bool, unique: bool, near: float | None, **given: Any
) -> None:
    """Records from JSONL, CSV or Parquet FILES: published data sets, or any table with --column."""
    from itertools import chain

    from mergekit_3h.data.duplicates import deduplicated
    from mergekit_3h.data.importers import Import
    from mergekit_3h.data.records import DataError
    from mergekit_3h.data.store import write_records

    if output.exists() and not force:
        raise DataError(f"{output}: is there already; choose another name or replace it with --force")
    if any(output.exists() and file.exists() and output.samefile(file) for file in files):
        raise DataError(f"{output}: is one of the files to import; choose another name for the records")
    if near is not None and not unique:
        raise DataError("--near: drops nothing without --unique; give both")
    given["format"] = given.pop("format_name")
    given["mapping"] = _mapping(given.pop("columns"))
    imports = [Import(file, **given) for file in files]
    found = chain.from_iterable(imports)
    result = deduplicated(list(found), near) if unique else None
    written = write_records(output, result.kept if result else found)
    for one in imports:
        click.echo(f"{one.path}: {one.summary()}")
    if result:
        click.echo(f"duplicates left out: {result.counts()['exact']} exact, {result.counts()['near']} near")
    click.echo(f"{output}: {_counted(written)}")


@command.command(short_help="Parts of records, as train, validation and test.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for a JSONL file a part.")
@click.option(
    "--shares",
    default="train=0.8,validation=0.1,test=0.1",
    show_default=True,
    metavar="NAME=SHARE,...",
    help="Parts, and how much of the records each gets.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed divides otherwise.")
@click.option(
    "--by",
    type=click.Choice(["hash", "exact"]),
    default="hash",
    show_default=True,
    help="hash: a record's part follows from its id, the shares are met on average. exact: they are met in every set "
    "and category.",
)
@click.option(
    "--near",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Prompts at least so similar stay in one part.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave bad lines out instead of stopping at them.")
@click.option("--force", is_flag=True, help="Replace parts that are there.")
def split(
    files: tuple[Path, ...],
    output: Path,
    shares: str,
    seed: int,
    by: Any,
    near: float,
    skip_invalid: bool,
    force: bool,
) -> None:
    """Divide the records of FILES into parts, the same way every time.

    No question is in two parts: records with the same prompt stay together, so do conversations that open with the same
    question, and near duplicates.
    """
    from mergekit_3h.data.reading import read_records
    from mergekit_3h.data.records import DataError
    from mergekit_3h.data.split_files import parse_shares, part_files, write_parts
    from mergekit_3h.data.splits import split

    wanted = parse_shares(shares)
    places = part_files(output, wanted, files, replace=force)
    records = [record for file in files for record in read_records(file, skip_invalid)]
    if not records:
        raise DataError(f"{', '.join(map(str, files))}: no records, so there is nothing to divide")
    parts = split(records, wanted, seed, by, near_duplicates=near)
    write_parts(parts, places)
    for name, place in places.items():
        click.echo(f"{place}: {_counted(len(parts[name]))}, {len(parts[name]) / len(records):.1%}")


def _counted(records: int) -> str:
    return f"{records} record{'' if records == 1 else 's'}"


def _mapping(columns: tuple[str, ...]) -> dict[str, str] | None:
    from mergekit_3h.data.records import DataError

    for column in columns:
        if "=" not in column:
            raise DataError(f"--column: got {column!r}, expected FIELD=COLUMN, such as prompt=question")
    return dict(column.split("=", 1) for column in columns) or None
