"""``mergekit-3h bench``: measures with ``mergekit_3h.benchmarks`` and shows the tables."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mergekit_3h.benchmarks.families import MatrixShape

_LARGEST_SENSIBLE_N = 1000
_MOST_CORES = 1024


@click.command("bench")
@click.option("--model", help="Family whose matrices are measured: llama-3-8b, mistral-7b, qwen2.5-1.5b, tiny.")
@click.option("--shape", "shapes", multiple=True, metavar="ROWSxCOLUMNS", help="A matrix instead, as 1024x4096.")
@click.option("-n", "--experts", type=click.IntRange(2, _LARGEST_SENSIBLE_N), default=3, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Of the checkpoints.  [default: float32; bfloat16 with --end-to-end]",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the cores this process may use]")
@click.option("--method", default="tsvm", show_default=True, help="Any spectral method (docs/methods.md).")
@click.option("--set", "options", multiple=True, metavar="OPTION=VALUE", help="Option of the method, as gamma=0.5.")
@click.option(
    "--update",
    type=click.Choice(["flat", "decaying", "lora"]),
    default="decaying",
    show_default=True,
    help="Spectrum of the synthetic updates: flat (Gaussian), decaying (heavy tail, a part shared by the experts), "
    "lora (rank 16, merged into the weights and rounded).",
)
@click.option(
    "--weights",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Root mean square of the base's weights; those of small trained models are near 0.2, and their last digits "
    "in 16 bits larger than most of an update.",
)
@click.option(
    "--peer",
    type=click.Choice(["auto", "fusion-bench", "full-svd", "both", "tsvm", "none"]),
    default="auto",
    show_default=True,
    help="What to compare with: FusionBench's TSVM function, the literal algorithm by float32 SVDs in torch, both, or "
    "our own TSVM; auto takes FusionBench where it is installed.",
)
@click.option("--budget", default="2m", show_default=True, help="Time for measuring, as 90s, 2m, 1h30m.")
@click.option("--all-matrices", is_flag=True, help="All matrices of the model as one stream; compares whole passes.")
@click.option("--memory-only", is_flag=True, help="One run of each: memory and a rough time, no rounds, no errors.")
@click.option("--growth", is_flag=True, help="How our time grows with rows, columns and experts, beside its bounds.")
@click.option("--end-to-end", is_flag=True, help="Whole mergekit-yaml runs of linear, tsvm and rtsvm instead.")
@click.option("--cores", metavar="1,2,16", help="A whole merge on so many cores; replayed on more than there are.")
@click.option(
    "--memory-gb", type=float, help="What --cores merges at once may take.  [default: a quarter of what is free]"
)
@click.option("--parameters", help="Size of the random model for --end-to-end.  [default: 0.1b]")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all numbers here."
)
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
def command(json_file: Path | None, markdown: bool, device: str, threads: int | None, **given: Any) -> None:
    """Measure the kernels on this machine: time, accuracy and memory, beside FusionBench's and the literal algorithm.

    The budget counts from when everything is imported, which takes about ten seconds. What does not fit into it is
    left out and estimated, and the report says so. docs/performance.md explains the columns.
    """
    from mergekit_3h.benchmarks.contenders import Recipe
    from mergekit_3h.inspection.devices import device_problem

    problem = device_problem(device)
    if problem:
        raise click.BadParameter(problem, param_hint="--device")
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise click.BadParameter(f"the folder {json_file.parent} does not exist", param_hint="--json")
    given["recipe"] = Recipe(given.pop("method"), _options(given.pop("options")))
    given["recipe"].spectral()  # an option that cannot be is an error before anything is measured
    kinds = {"--end-to-end": _end_to_end, "--growth": _growth}
    chosen = [name for name in kinds if given.pop(name.strip("-").replace("-", "_"))]
    cores, memory_gb = given.pop("cores"), given.pop("memory_gb")
    if cores is not None:
        chosen.append("--cores")
        kinds["--cores"] = partial(_scaling, cores=cores, memory_gb=memory_gb)
    elif memory_gb is not None:
        raise click.UsageError("--memory-gb goes with --cores")
    if len(chosen) > 1:
        raise click.UsageError(f"give {' or '.join(chosen)}, not both")
    measure = kinds[chosen[0]] if chosen else _kernels
    result, lines = measure(device=device, threads=threads or _cores(), markdown=markdown, **given)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    for line in lines:
        click.echo(line)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _kernels(
    *, markdown: bool, shapes: tuple[str, ...], peer: str, parameters: str | None, memory_only: bool, **given: Any
) -> tuple[dict[str, Any], list[str]]:
    from mergekit_3h.benchmarks.budget import FEWEST_ROUNDS, parse_budget
    from mergekit_3h.benchmarks.comparison import compare
    from mergekit_3h.benchmarks.contenders import chosen_peers
    from mergekit_3h.benchmarks.plans import ComparisonPlan
    from mergekit_3h.benchmarks.tables import comparison_lines

    if parameters is not None:
        raise click.UsageError("--parameters goes with --end-to-end")
    plan = ComparisonPlan(
        shapes=tuple(_shapes(given.pop("model"), shapes)),
        peers=tuple(chosen_peers(peer)),
        dtype=given.pop("dtype") or "float32",
        budget=parse_budget(given.pop("budget")),
        as_one_stream=given.pop("all_matrices"),
        fewest_rounds=0 if memory_only else FEWEST_ROUNDS,
        **given,
    )
    comparison = compare(plan, _say)
    return comparison.as_dict(), comparison_lines(comparison, markdown=markdown)


def _growth(*, markdown: bool, **given: Any) -> tuple[dict[str, Any], list[str]]:
    from mergekit_3h.benchmarks.budget import parse_budget
    from mergekit_3h.benchmarks.growth import growth_lines, measure_growth
    from mergekit_3h.benchmarks.plans import ComparisonPlan

    foreign = ("model", "shapes", "all_matrices", "memory_only", "parameters")
    if any(given.pop(name) for name in foreign) or given.pop("peer") != "auto":
        raise click.UsageError(
            "--growth has matrices of its own and measures our kernel alone; leave out --model, --shape, --peer, "
            "--all-matrices, --memory-only and --parameters"
        )
    recipe = given["recipe"]
    if recipe.method != "tsvm" or recipe.options or given["update"] == "lora":
        raise click.UsageError("--growth counts the products of tsvm on full ranks; leave out --method, --set and lora")
    dtype, budget = given.pop("dtype") or "float32", parse_budget(given.pop("budget"))
    plan = ComparisonPlan(shapes=(), peers=(), dtype=dtype, budget=budget, as_one_stream=True, **given)
    table = measure_growth(plan, _say)
    return table.as_dict(), growth_lines(table, markdown=markdown)


def _scaling(
    *, markdown: bool, cores: str, memory_gb: float | None, shapes: tuple[str, ...], **given: Any
) -> tuple[dict[str, Any], list[str]]:
    from mergekit_3h.benchmarks.plans import ComparisonPlan
    from mergekit_3h.benchmarks.scaling import measure_scaling, scaling_lines
    from mergekit_3h.kernels.room import allowed_bytes
    from mergekit_3h.options import checked
    from mergekit_3h.spectral.method import RunningOptions

    foreign = ("all_matrices", "memory_only", "parameters")
    if any(given.pop(name) for name in foreign) or given.pop("peer") != "auto":
        raise click.UsageError(
            "--cores measures all matrices of a model with our kernel; leave out --peer, --all-matrices, --memory-only "
            "and --parameters"
        )
    given.pop("budget")  # what is measured is measured once
    plan = ComparisonPlan(
        shapes=tuple(_shapes(given.pop("model"), shapes)),
        peers=(),
        dtype=given.pop("dtype") or "float32",
        budget=0.0,
        as_one_stream=True,
        **given,
    )
    memory = allowed_bytes(checked(RunningOptions, "memory_gb", memory_gb))
    scaling = measure_scaling(plan, _counts(cores), memory, _say)
    return scaling.as_dict(), scaling_lines(scaling, markdown=markdown)


def _counts(text: str) -> list[int]:
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not counts or min(counts) < 1 or max(counts) > _MOST_CORES:
        raise click.BadParameter(
            f"got {text!r}, expected numbers from 1 to {_MOST_CORES}, as 1,2,16", param_hint="--cores"
        )
    return counts


def _end_to_end(*, markdown: bool, **given: Any) -> tuple[dict[str, Any], list[str]]:
    from mergekit_3h.benchmarks.budget import parse_budget
    from mergekit_3h.benchmarks.checkpoints import parse_parameters
    from mergekit_3h.benchmarks.end_to_end import EndToEndPlan, end_to_end_lines, run_end_to_end

    foreign = ("model", "shapes", "all_matrices", "memory_only")
    if any(given[name] for name in foreign) or given["peer"] != "auto":
        raise click.UsageError(
            "--end-to-end makes a model of its own (--parameters) and compares mergekit's methods; leave out --model, "
            "--shape, --peer, --all-matrices and --memory-only"
        )
    recipe = given["recipe"]
    plan = EndToEndPlan(
        parameters=parse_parameters(given["parameters"] or "0.1b"),
        experts=given["experts"],
        dtype=given["dtype"] or "bfloat16",
        update=given["update"],
        weights=given["weights"],
        device=given["device"],
        threads=given["threads"],
        budget=parse_budget(given["budget"]),
        options={recipe.method: recipe.options},
    )
    result = run_end_to_end(plan, _say)
    return result.as_dict(), end_to_end_lines(result, markdown=markdown)


def _shapes(model: str | None, shapes: tuple[str, ...]) -> list[MatrixShape]:
    from mergekit_3h.benchmarks.families import family_named, parse_shape

    if model and shapes:
        raise click.UsageError("give --model or --shape, not both")
    if shapes:
        parsed = {shape.name: shape for shape in map(parse_shape, shapes)}
        return list(parsed.values())
    return family_named(model or "tiny").shapes()


def _options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Values as YAML would read them: numbers where they are numbers."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"got {pair!r}, expected OPTION=VALUE such as gamma=0.5", param_hint="--set")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
