"""What a search did, as pictures: losses by evaluation, the Pareto front, and coefficients by group of layers."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

from mergekit_3h.optional import optional
from mergekit_3h.search.solution import Solution


def plot_solution(solution: Solution, path: str | Path) -> None:
    """Write one picture (PNG, SVG or PDF, by the name's ending), with a heat map if there are groups of layers."""
    figures = optional("matplotlib.figure", "plots", "a plot")
    panels = 3 if len(solution.layout.groups) > 1 else 2
    figure = figures.Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    _progress(axes[0], solution)
    _front(axes[1], solution)
    if panels == 3:
        _heat_map(figure, axes[2], solution)
    figure.savefig(str(path), dpi=150)


def _progress(axes: Any, solution: Solution) -> None:
    """The score of every candidate by the passes it took to get there, and the best until then."""
    passes = list(accumulate(point.measured.passes for point in solution.points))
    scored = [i for i, point in enumerate(solution.points) if not point.measured.failure]
    scores = [solution.points[i].score for i in scored]
    axes.plot([passes[i] for i in scored], scores, ".", color="tab:gray", label="candidate")
    axes.step([passes[i] for i in scored], list(accumulate(scores, min)), where="post", label="best so far")
    if solution.uniform is not None and not solution.uniform.measured.failure:
        axes.axhline(solution.uniform.score, linestyle=":", color="tab:orange", label="uniform merge")
    axes.set(xlabel="passes over the data", ylabel="score", title=solution.options.solver)
    axes.legend()


def _front(axes: Any, solution: Solution) -> None:
    """Two losses against each other: safety, and the other set with the greatest weight."""
    names = list(solution.best.measured.losses)
    weights = solution.options.set_weights()
    others = sorted((name for name in names if name != "safety"), key=lambda name: -weights[name])
    across, up = ("safety", others[0]) if "safety" in names and others else (names[0], names[-1])

    def draw(losses: list[dict[str, float]], *style: Any, **how: Any) -> None:
        axes.plot([each[across] for each in losses], [each[up] for each in losses], *style, **how)

    draw([point.measured.losses for point in solution.points if not point.measured.failure], ".", color="tab:gray")
    front = sorted((point.measured.losses for point in solution.pareto()), key=lambda losses: losses[across])
    draw(front, "o-", markersize=4, label="Pareto front")
    draw([solution.best.measured.losses], "*", markersize=14, label="result")
    for label, model in solution.models.items():
        axes.annotate(label, (model.losses[across], model.losses[up]))
        draw([model.losses], "x", color="black")
    if solution.scoring.safety_limit is not None and across == "safety":
        axes.axvline(solution.scoring.safety_limit, linestyle=":", color="tab:red", label="safety limit")
    axes.set(xlabel=f"{across} loss", ylabel=f"{up} loss")
    axes.legend()


def _heat_map(figure: Any, axes: Any, solution: Solution) -> None:
    groups = solution.layout.by_group(solution.coefficients)
    values = [[of_group[expert] for of_group in groups.values()] for expert in solution.layout.columns]
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(values)), solution.layout.columns)
    axes.set_xticks(range(len(groups)), list(groups), rotation=90, fontsize=6)
    figure.colorbar(image, ax=axes, label="coefficient")
