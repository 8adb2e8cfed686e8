"""``mergekit-3h check``: shows what ``mergekit_3h.lint`` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mergekit_3h.lint import Finding, LintReport
    from mergekit_3h.lint.estimate import Estimate
    from mergekit_3h.safety.estimate import SearchEstimate

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command("check")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--deep", is_flag=True, help="Read all weights: look for NaN and Inf, and for what no expert changes.")
@click.option("--strict", is_flag=True, help="Exit with status 1 for warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
@click.option("--estimate/--no-estimate", default=True, help="Estimate size, memory and time.", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Device whose speed the estimate takes.")
def command(config: Path, deep: bool, strict: bool, as_json: bool, estimate: bool, device: str) -> None:
    """Lint CONFIG (of mergekit-yaml, mergekit-multi or mergekit-pytorch) before hours are spent on it.

    Any registered merge method. Nothing is downloaded. Exit status: 0 when there are no errors, 1 for errors, 2 for
    a wrong command line.
    """
    try:
        from mergekit_3h.inspection.devices import device_problem
        from mergekit_3h.kernels.memory import return_large_blocks_when_freed
        from mergekit_3h.lint import examine
        from mergekit_3h.methods.search_estimate import estimated_searches
    except ImportError as error:
        raise click.ClickException(f"mergekit does not start: {error}; `mergekit-3h doctor` says what to do") from error

    problem = device_problem(device) if estimate else None
    if problem:
        raise click.BadParameter(problem, param_hint="--device")
    return_large_blocks_when_freed()  # as a merge does, whose time is estimated
    report = examine(config, deep=deep, estimate=estimate, device=device)
    searches = estimated_searches(config, device) if estimate and not report.of("error") else []
    if as_json:
        found = {**report.as_dict(), "searches": [search.as_dict() for search in searches]}
        click.echo(json.dumps({"config": str(config), **found}, indent=2))
    else:
        _show(config, report, deep)
        for search in searches:
            click.echo(_search_text(search))
    raise SystemExit(1 if report.of("error") or (strict and report.of("warning")) else 0)


def _show(config: Path, report: LintReport, deep: bool) -> None:
    for severity, colour in _COLOURS.items():
        for finding in report.of(severity):  # type: ignore[arg-type]
            label = click.style(f"{severity:7}", fg=colour, bold=True)
            click.echo(f"{label} {_place(config, finding)}: {finding.message} [{finding.rule}]")
            if finding.advice:
                click.echo(f"        -> {finding.advice}")
    found = {severity: len(report.of(severity)) for severity in _COLOURS}  # type: ignore[arg-type]
    counts = [f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in found.items() if count]
    read = "config, headers and all weights" if deep else "config and headers (--deep reads the weights too)"
    click.echo(f"{config}: {', '.join(counts) or 'nothing found'}; read {read}")
    for estimate in report.estimates:
        click.echo(_estimate_text(estimate))


def _place(config: Path, finding: Finding) -> str:
    line = f":{finding.line}" if finding.line else ""
    return f"{config}{line}" + (f" {finding.where}" if finding.where else "")


def _estimate_text(estimate: Estimate) -> str:
    return (
        f"Estimate, not a promise: {_bytes(estimate.output_bytes)} written "
        f"({estimate.parameters:,} parameters in {estimate.tensors:,} tensors), {_bytes(estimate.read_bytes)} read, "
        f"peak memory {_bytes(estimate.peak_bytes)} of its own ({_parts(estimate)}; and up to "
        f"{_bytes(estimate.mapped_bytes)} of mapped weight files, which the system drops when it needs the space), "
        f"{_on_device(estimate)}"
        f"{_duration(estimate.seconds)} on "
        f"{estimate.device} ({_duration(estimate.compute_seconds)} of it computing); {estimate.basis}."
    )


def _on_device(estimate: Estimate) -> str:
    if estimate.device_bytes is None:
        return ""
    return f"at least {_bytes(estimate.device_bytes)} of the memory of {estimate.device}, "


def _parts(estimate: Estimate) -> str:
    """What the peak is made of, and what lowers it."""
    group, collected = estimate.at_once, _bytes(estimate.collected_bytes)
    merged = f"{_bytes(group.own)} for the tensor that takes most"
    if estimate.device_bytes is not None and group.allowed is not None:
        on_the_way = (
            f"{group.tensors} tensors on their way to {estimate.device} and back within {_bytes(group.allowed)}"
        )
        merged = f"{_bytes(group.own)} for {on_the_way}, which memory_gb lowers"
    elif group.tensors > 1 and group.allowed is not None:
        beside = f"{group.tensors} tensors merged at once within {_bytes(group.allowed)}"
        merged = f"{_bytes(group.own)} for {beside}, which memory_gb lowers"
    return f"{merged}; {collected} for output before it is written, which --out-shard-size lowers"


def _search_text(search: SearchEstimate) -> str:
    merges = {0: "", 1: f"{_duration(search.seconds_merge)} to decompose or merge all tensors once, "}.get(
        search.merges, f"{_duration(search.seconds_merge)} for each of about {search.merges} merges of all tensors, "
    )
    return (
        f"The search before it, in {search.dtype} on {search.device}: {_duration(search.seconds_models)} for the "
        f"single models, {merges}{_duration(search.seconds_each)} for each of at most {search.evaluations} evaluations "
        f"({search.records} records, {search.tokens:,} tokens with padding), {_duration(search.seconds_most)} at most; "
        f"peak memory {_bytes(search.peak_bytes)}."
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
