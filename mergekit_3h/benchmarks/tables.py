"""Results of a comparison as lines of text."""

from __future__ import annotations

from mergekit_3h.benchmarks.contenders import FULL_SVD, FUSION_BENCH, OUR_TSVM, OURS
from mergekit_3h.benchmarks.machine import Machine
from mergekit_3h.benchmarks.problems import WEIGHT_RMS, is_told_from_unrounded
from mergekit_3h.benchmarks.results import Comparison, ContenderResult, Spread
from mergekit_3h.tables import Table

TITLES = {OURS: "mergekit-3h", FUSION_BENCH: "FusionBench", FULL_SVD: "full SVD, float32", OUR_TSVM: "our TSVM"}
NOT_MEASURED = "-"


def machine_lines(machine: Machine, threads: int) -> list[str]:
    memory = f", {machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return [
        f"{machine.processor}, {machine.cores} cores ({threads} used){memory}, {machine.system}",
        *([machine.gpu] if machine.gpu else []),
        f"Python {machine.python}, torch {machine.torch}, {machine.blas}; {packages}",
    ]


def comparison_lines(comparison: Comparison, *, markdown: bool) -> list[str]:
    """The whole report, ready to be printed."""
    chosen = comparison.settings
    options = "".join(f", {name}: {value}" for name, value in chosen["options"].items())
    lines = [
        *machine_lines(comparison.machine, chosen["threads"]),
        f"{chosen['method']}{options}; n = {chosen['experts']}, {chosen['dtype']} on {chosen['device']}, "
        f"updates: {chosen['update']}"
        + (f", weights: {chosen['weights']:g}" if chosen["weights"] != WEIGHT_RMS else ""),
        "",
    ]
    for table in (_times(comparison), _accuracy(comparison)):
        lines += [table.as_markdown() if markdown else table.as_text(), ""]
    if chosen["method"] != "tsvm" and FUSION_BENCH in _peers(comparison):
        lines += [f"Beside {chosen['method']} stands FusionBench's TSVM, with its time and its error as a TSVM.", ""]
    lines += _left_out_lines(comparison) + _total_lines(comparison)
    return lines


def _peers(comparison: Comparison) -> list[str]:
    return list(comparison.measurements[0].ratios)


def _times(comparison: Comparison) -> Table:
    peers = _peers(comparison)
    headers = ["matrix", "count", TITLES[OURS]]
    for peer in peers:
        headers += [TITLES[peer], "times as fast (quartiles)"]
    rows = [
        [
            measurement.name,
            str(measurement.count),
            seconds_text(measurement.contenders[OURS].seconds.median),
            *(
                cell
                for peer in peers
                for cell in (
                    seconds_text(measurement.contenders[peer].seconds.median),
                    spread_text(measurement.ratios[peer].paired),
                )
            ),
            f"{measurement.gemm_bound.ratio:.1f}" if measurement.gemm_bound else NOT_MEASURED,
        ]
        for measurement in comparison.measurements
    ]
    return Table([*headers, "x GEMM bound"], rows)


def _accuracy(comparison: Comparison) -> Table:
    contenders = [OURS, *_peers(comparison)]
    has_unrounded = is_told_from_unrounded(comparison.settings["update"], comparison.settings["dtype"])
    headers = ["matrix", "ranks"]
    for contender in contenders:
        headers.append(f"error, {TITLES[contender]}")
        headers += [f"off unrounded, {TITLES[contender]}"] if has_unrounded else []
        headers.append(f"extra memory, {TITLES[contender]}")
    rows: list[list[str]] = []
    for measurement in comparison.measurements:
        row = [measurement.name, _ranks(measurement.contenders[OURS])]
        for contender in contenders:
            result = measurement.contenders[contender]
            row.append(_error(result.error))
            row += [_error(result.error_unrounded)] if has_unrounded else []
            row.append(f"{result.extra_relative:.2f}x, {result.extra_bytes / 1e6:.0f} MB")
        rows.append(row)
    return Table(headers, rows)


def _ranks(ours: ContenderResult) -> str:
    if not ours.ranks:  # a method without ranks
        return NOT_MEASURED
    low, high = min(ours.ranks), max(ours.ranks)
    how = "" if ours.decompositions == ["exact"] else f" ({', '.join(ours.decompositions)})"
    return (str(low) if low == high else f"{low}-{high}") + how


def _error(error: float | None) -> str:
    return NOT_MEASURED if error is None else f"{error:.1e}"


def _left_out_lines(comparison: Comparison) -> list[str]:
    if not comparison.left_out:
        return []
    named = ", ".join(
        f"{missing.shape.name} (needs {duration_text(missing.needed_seconds)})" for missing in comparison.left_out
    )
    return [f"Left out, beyond the budget of {duration_text(comparison.settings['budget_seconds'])}: {named}", ""]


def _total_lines(comparison: Comparison) -> list[str]:
    total = comparison.total
    if total is None:
        return []
    part = (
        f"ESTIMATE, {100 * total.estimated_share:.0f} % of our time extrapolated" if comparison.left_out else "measured"
    )
    times = ", ".join(f"{TITLES[name]} {duration_text(seconds)}" for name, seconds in total.seconds.items())
    lines = [f"All matrices by their counts ({part}): {times}"]
    for peer, (low, middle, high) in total.ratios.items():
        lines.append(f"  {middle:.2f} times as fast as {TITLES[peer]} (quartiles {low:.2f} to {high:.2f})")
    if total.gemm_bound_ratio is not None:
        part = " of the measured shapes" if comparison.left_out else ""
        lines.append(f"  {total.gemm_bound_ratio:.1f} times the GEMM bound{part}")
    return lines


def spread_text(spread: Spread) -> str:
    low, high = spread.quartiles
    return f"{spread.median:.2f} ({low:.2f}-{high:.2f})"


def seconds_text(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def duration_text(seconds: float) -> str:
    if seconds < 120:
        return seconds_text(seconds)
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
