"""Both plots as one picture in a file, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sin
from pathlib import Path
from typing import Any

from mergekit_3h.drawings import Point
from mergekit_3h.evaluation.point_labels import NEAR, grouped, placed_labels
from mergekit_3h.evaluation.radars import radar_axes, radar_rows, share_of_radius
from mergekit_3h.evaluation.result import ScoreWithInterval
from mergekit_3h.evaluation.side_by_side import ScoreColumn, SideBySide
from mergekit_3h.evaluation.trade_offs import TradeOff, kind_of, pareto_set, trade_offs, two_dimensions
from mergekit_3h.optional import optional


def save_picture(table: SideBySide, place: Path) -> None:
    """Both plots and the numbered names in one picture (PNG, SVG or PDF, by the file's name)."""
    pyplot = optional("matplotlib.figure", "plots", "drawing plots")
    figure = pyplot.Figure(figsize=(14, max(5.2, 0.22 * len(table.rows) + 1)), layout="constrained")
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=(5, 5, 3))
    axes, rows = radar_axes(table), radar_rows(table)
    if axes:
        _plot_radar(figure.add_subplot(left, projection="polar"), table, axes, rows)
    points, pair = trade_offs(table), two_dimensions(table)
    scatter = figure.add_subplot(middle) if points and pair is not None else None
    if scatter is not None and pair is not None:
        _plot_trade_offs(scatter, points, pair)
    names = figure.add_subplot(right)
    names.axis("off")
    listed = "\n".join(f"{place}  {row.name}" for place, row in enumerate(table.rows, start=1))
    names.text(0.0, 1.0, listed, va="top", fontsize=8, transform=names.transAxes)
    figure.suptitle(table.title)
    if scatter is not None:
        figure.draw_without_rendering()  # only then is it known where the points are
        _number_points(scatter, points)
    figure.savefig(place, dpi=150)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3b8fc4")
_MARKERS = ("o", "^", "s", "D", "v", "P")


def _plot_radar(plot: Any, table: SideBySide, axes: Sequence[ScoreColumn], rows: Sequence[Any]) -> None:
    angles = [2 * pi * axis / len(axes) for axis in range(len(axes))]
    plot.set_theta_offset(pi / 2)
    plot.set_theta_direction(-1)
    for order, (_, row) in enumerate(rows):
        values = [share_of_radius(table, row, column) for column in axes]
        plot.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=_COLOURS[order % 6],
            marker=_MARKERS[order % 6],
            markersize=4,
            label=row.name,
        )
    plot.set_xticks(angles, [column.name for column in axes])
    for label, angle in zip(plot.get_xticklabels(), angles, strict=True):
        across = sin(angle)
        label.set_horizontalalignment("center" if abs(across) < 0.2 else "left" if across > 0 else "right")
    plot.set_yticks([0.25, 0.625, 1.0], ["", "", ""])
    plot.set_ylim(0, 1.0)
    plot.set_title("inner ring: lowest shown, outer ring: highest", fontsize=8, pad=24)
    plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8)


def _plot_trade_offs(plot: Any, points: Sequence[TradeOff], pair: tuple[str, str]) -> None:
    for point in points:
        kind = kind_of(point.row)
        (across, up) = point.at
        plot.errorbar(
            across,
            up,
            xerr=_bar(point.across),
            yerr=_bar(point.up),
            color=_COLOURS[kind],
            marker=_MARKERS[kind],
            linewidth=0.8,
        )
    best = [point.at for point in pareto_set(points)]
    plot.plot(*zip(*best, strict=True), color="grey", linestyle="--", linewidth=1, zorder=0)
    plot.set_xlabel(pair[0])
    plot.set_ylabel(pair[1])
    plot.grid(alpha=0.3)


def _number_points(plot: Any, points: Sequence[TradeOff]) -> None:
    """The numbers of the table's rows beside the points, none upon another."""
    corner, end = plot.bbox.corners()[0], plot.bbox.corners()[3]
    unit = plot.figure.dpi / 72.0
    width, height = ((end - corner) / unit).tolist()

    def place_of(across: float, up: float) -> Point:
        x, y = (plot.transData.transform((across, up)) - corner) / unit
        return float(x), float(height - y)

    every = [place_of(*point.at) for point in points]
    at = dict(zip(every, (point.at for point in points), strict=True))
    places, names = grouped(every, [point.place for point in points])
    bars = [(place_of(*first), place_of(*last)) for point in points for first, last in point.bars()]
    labels = placed_labels(places, names, (0.0, 0.0, width, height), bars)
    for name, (x, y), place in zip(names, places, labels, strict=True):
        if place is not None:
            offset = (place[0] - x, y - place[1])
            arrow = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5} if max(map(abs, offset)) > NEAR else None
            plot.annotate(name, at[x, y], xytext=offset, textcoords="offset points", fontsize=8, arrowprops=arrow)


def _bar(score: ScoreWithInterval) -> list[list[float]] | None:
    if score.score is None or score.low is None or score.high is None:
        return None
    return [[score.score - score.low], [score.high - score.score]]
