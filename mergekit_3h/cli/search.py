"""``mergekit-3h search``: finds merge weights or options, and writes a config that merges with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import click
from pydantic import BaseModel

from mergekit_3h.safety.options import DECLARATIONS
from mergekit_3h.tables import Table

if TYPE_CHECKING:
    from mergekit_3h.search.solution import Solution


def _option_of(name: str, declaration: type[BaseModel]) -> Callable[..., Any]:
    """A declared option as one of the command line; not given means: what the config says."""
    field = declaration.model_fields[name]
    flag = "--" + name.replace("_", "-")
    help_text = f"{field.description}  [default: {'unset' if field.default is None else field.default}]"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    if get_origin(field.annotation) is not None and all(isinstance(arg, str) for arg in get_args(field.annotation)):
        return click.option(flag, name, type=click.Choice(get_args(field.annotation)), help=help_text)
    return click.option(flag, name, metavar="VALUE", help=help_text)


def _with_search_options(command: Callable[..., None]) -> Callable[..., None]:
    for declaration in reversed(DECLARATIONS):
        for name in reversed(declaration.model_fields):
            if name != "report":  # here the output says where everything goes
                command = _option_of(name, declaration)(command)
    return command


@click.command("search")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Config to write.")
@click.option("--resume", is_flag=True, help="Go on where the search that began to write OUTPUT was interrupted.")
@click.option("--force", is_flag=True, help="Replace what an earlier search wrote.")
@click.option("--device", default="cpu", show_default=True, help="Where candidates are evaluated: cpu, cuda, cuda:1.")
@click.option("--lora-merge-cache", type=click.Path(), help="Folder for models made of a base and a LoRA adapter.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the models.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is going on.")
@_with_search_options
def command(config: Path, output: Path, resume: bool, force: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Search the merge weights for CONFIG, a mergekit config, or with --over options of its method.

    CONFIG has merge_method: safety_merge, or any method with a weight for each expert, whose weights are then searched.
    OUTPUT is an ordinary config that merges with what was found, without any data. Beside it are written
    OUTPUT.trace.jsonl (every candidate), OUTPUT.json (losses of all models and of the result) and OUTPUT.png.
    The options below go before those of CONFIG.
    """
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("mergekit_3h").setLevel(logging.INFO)
    from mergekit_3h.methods.safety_host import host_of
    from mergekit_3h.safety.found import search_to

    keys = ("device", "lora_merge_cache", "trust_remote_code")
    how = {"quiet": quiet, **{key: given.pop(key) for key in keys}}
    overrides = {name: value for name, value in given.items() if value is not None}
    solution = search_to(output, lambda: host_of(config, overrides, how), resume=resume, force=force)
    if not quiet:
        _show(solution, output)


def _cost(solution: Solution) -> str:
    """What it took to find options, with what an interrupted search had done before."""
    seconds = sum(m.seconds for m in [*solution.models.values(), *(point.measured for point in solution.points)])
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    models = sum(model.passes for model in solution.models.values())
    merges = "1 merge" if solution.merges == 1 else f"{solution.merges} merges"
    return f"{solution.passes} forward passes over the data, {models} more for the single models; {merges}; {time}"


def _show(solution: Solution, output: Path) -> None:
    names = list(solution.best.measured.losses)
    rows = {label: model.losses for label, model in solution.models.items()}
    if solution.uniform is not None:
        rows["start" if solution.layout.options else "uniform merge"] = solution.uniform.measured.losses
    if solution.held is not None:
        rows["result, as searched"] = solution.held.measured.losses
    rows["result"] = solution.best.measured.losses
    cells = [[f"{losses[name]:.4f}" if name in losses else "failed" for name in names] for losses in rows.values()]
    table = Table(["loss", *names], [[label, *row] for label, row in zip(rows, cells, strict=True)])
    click.echo(table.as_text())
    for group, values in solution.layout.by_group(solution.coefficients).items():
        prefix = "weights" if len(solution.layout.groups) == 1 else group
        click.echo(f"{prefix}: " + ", ".join(f"{expert} {value:.4g}" for expert, value in values.items()))
    if solution.layout.options:
        click.echo("options: " + ", ".join(f"{name} {value:.4g}" for name, value in solution.option_values().items()))
        click.echo(_cost(solution))
    click.echo(f"{solution.stopped} after {len(solution.points)} evaluations; wrote {output}")
    if not solution.best.satisfies:
        click.echo("No candidate keeps min_safety; this is the best compromise.", err=True)
