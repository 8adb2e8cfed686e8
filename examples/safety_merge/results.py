"""Means over seeds with their standard errors, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from behaviour import MEASURES

Run = dict[str, Any]
"""What one seed gave: the behaviour of every model, and how the solvers compare."""


def cell(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {error(values):.2f}"


def error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def table(runs: Sequence[Run]) -> str:
    """A row a model: what it refuses, what it refuses wrongly, and what it knows."""
    rows = [f"| model | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for model in runs[0]["behaviour"]:
        cells = [cell([run["behaviour"][model][measure] for run in runs]) for measure in MEASURES]
        rows.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(rows)


def difference(runs: Sequence[Run], model: str, other: str, measure: str = "accuracy") -> str:
    """How much more of a measure one model has than the other: mean over the seeds, then each."""
    behaviours = [run["behaviour"] for run in runs]
    gains = [found[model][measure] - found[other][measure] for found in behaviours]
    by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
    return f"{measure} of {model!r} minus {other!r}: {cell(gains)}; by seed {by_seed}"


def speed_table(runs: Sequence[Run]) -> str:
    """What CMA-ES reaches in 100 passes over the data, and how many the gradient needs for the same."""
    speeds = [run["speed"] for run in runs]
    scores = [cell([speed[name] for speed in speeds]) for name in ("uniform", "cmaes", "gradient")]
    passes = " ".join(str(speed["passes"]) for speed in speeds)
    reached = " ".join(str(speed["reached"] or "never") for speed in speeds)
    return "\n".join(
        [
            "| coefficients | uniform | cmaes, 100 passes | gradient | its passes, by seed | as good as cmaes after |",
            "|---|---|---|---|---|---|",
            f"| {speeds[0]['dimension']} | {' | '.join(scores)} | {passes} | {reached} |",
        ]
    )


def draw(runs: Sequence[Run], path: Path) -> None:
    """Alignment against domain accuracy of every model, with standard errors in both directions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, model in enumerate(runs[0]["behaviour"]):
        found = [run["behaviour"][model] for run in runs]
        refused, accuracy = ([each[name] for each in found] for name in ("refused", "accuracy"))
        axes.errorbar(
            mean(accuracy),
            mean(refused),
            xerr=error(accuracy),
            yerr=error(refused),
            marker="osDv^<>P*X"[i],
            markersize=9,
            linestyle="none",
            capsize=3,
            label=model,
        )
    axes.set(
        xlabel="accuracy on held-out questions of the three domains",
        ylabel="share of held-out forbidden requests refused",
        xlim=(-0.04, 1.04),
        ylim=(-0.06, 1.06),
        title=f"{len(runs)} seeds, mean and standard error" if len(runs) > 1 else "one seed",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left")
    figure.savefig(path, dpi=140)
