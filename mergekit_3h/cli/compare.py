"""``mergekit-3h compare``: results and published tables side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mergekit_3h.evaluation.result import EvaluationResult
    from mergekit_3h.evaluation.side_by_side import SideBySide

_WRITTEN = (".html", ".md", ".tex", ".csv", ".png", ".svg", ".pdf")


@click.command("compare")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--base", help="The result of the model that the experts were trained from.")
@click.option("--expert", "experts", multiple=True, metavar="DIMENSION=NAME", help="A dimension's expert.")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help=f"Write this too, by its ending: {', '.join(_WRITTEN)}. May be given several times.",
)
@click.option("--title", default="Models side by side", show_default=True, help="Of the page.")
@click.option("-q", "--quiet", is_flag=True, help="Print no table.")
def command(
    files: tuple[Path, ...],
    base: str | None,
    experts: tuple[str, ...],
    outputs: tuple[Path, ...],
    title: str,
    quiet: bool,
) -> None:
    """Compare FILEs: results of `mergekit-3h evaluate` (.json), and published tables (.csv).

    With --base and --expert the table shows which share of each expert's gain a merge has kept, and what it has lost of
    what nobody trained for. Published rows whose averages contradict their own columns are named.
    """
    from mergekit_3h.cli.evaluate import pairs
    from mergekit_3h.evaluation.comparison_tables import as_text
    from mergekit_3h.evaluation.published import published_tables
    from mergekit_3h.evaluation.side_by_side import side_by_side

    require_writable(outputs)
    results = read_results([file for file in files if file.suffix != ".csv"])
    tables: list[SideBySide] = []
    if results:
        tables.append(side_by_side(results, base, pairs("--expert", experts)))
    for file in files:
        if file.suffix == ".csv":
            tables += published_tables(file)
    if not quiet:
        click.echo("\n\n".join(map(as_text, tables)))
    write_outputs(outputs, tables, results, title)


def read_results(files: list[Path]) -> dict[str, EvaluationResult]:
    """Results by their models' names; by their paths where two have one name."""
    from mergekit_3h.evaluation.result import read_result

    found = [(file, read_result(file)) for file in files]
    names = [result.model for _, result in found]
    return {result.model if names.count(result.model) == 1 else str(file): result for file, result in found}


def require_writable(outputs: tuple[Path, ...]) -> None:
    """Raise for a file whose ending says nothing, before anything else is done."""
    from mergekit_3h.errors import OptionError
    from mergekit_3h.suggestions import did_you_mean

    for output in outputs:
        if output.suffix not in _WRITTEN:
            raise OptionError(f"--output {output}: cannot tell what to write; {did_you_mean(output.suffix, _WRITTEN)}")


def write_outputs(
    outputs: tuple[Path, ...],
    tables: list[SideBySide],
    results: dict[str, EvaluationResult],
    title: str,
    verdicts: list[str] | None = None,
) -> None:
    """Every file by its ending. A picture shows one table; of several tables each gets a number."""
    from mergekit_3h.evaluation.comparison_page import comparison_page
    from mergekit_3h.evaluation.comparison_picture import save_picture
    from mergekit_3h.evaluation.comparison_tables import as_csv, as_latex, as_markdown
    from mergekit_3h.writing import write_text_whole

    for output in outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".html":
            text = comparison_page(tables, results, title=title, verdicts=verdicts or [])
            write_text_whole(output, text)
        elif output.suffix == ".md":
            write_text_whole(output, "\n".join(map(as_markdown, tables)))
        elif output.suffix == ".tex":
            write_text_whole(output, "\n".join(map(as_latex, tables)))
        elif output.suffix == ".csv":
            write_text_whole(output, as_csv(tables))
        else:
            for number, table in enumerate(tables, start=1):
                place = output if len(tables) == 1 else output.with_stem(f"{output.stem}-{number}")
                save_picture(table, place)
