"""One picture of the results: what merges keep of every kind of experts."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from board import Board, kept
from merging import SUM

from mergekit_3h.optional import optional

SHOWN = {
    SUM: ("o", "tab:gray"),
    "tsvm": ("s", "tab:blue"),
    "rtsvm": ("D", "tab:red"),
    "iso_c, power 0.5": ("v", "tab:green"),
    f"{SUM}, weights by layer": ("o", "black"),
    "tsvm, weights by layer": ("s", "tab:purple"),
}
"""Marker and colour of the rows; the sum and tsvm keep theirs where they are weighed by layer."""


def plot(board: Board, path: Path) -> None:
    """A column a kind, a mark a row, with its standard error over the seeds."""
    figure = optional("matplotlib.figure", "plots", "a picture").Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, (row, (marker, colour)) in enumerate(SHOWN.items()):
        for place, kind in enumerate(board.kinds):
            values = [kept(line) for line in board.seeds(kind, row).values()]
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            label = row if place == 0 else None
            across = place + 0.12 * (i - (len(SHOWN) - 1) / 2)
            axes.errorbar(across, mean(values), error, fmt=marker, color=colour, label=label, markersize=5, capsize=2)
    axes.axhline(1, color="lightgray", zorder=0)
    axes.set_xticks(range(len(board.kinds)), board.kinds, rotation=20, ha="right")
    axes.set_ylabel("gain kept")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    figure.savefig(str(path), dpi=110)
