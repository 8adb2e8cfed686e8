"""Tables of what was done instead of merging, and of merges with safety data."""

from __future__ import annotations

from statistics import mean

from board import Board, kept, markdown, worst
from merging import SUM
from rows import CLOSEST
from safety import KIND as SAFETY
from spread import about
from world import DIMENSIONS

MERGES = (SUM, "tsvm", "rtsvm", "tsvm, weights", "tsvm, weights by layer")


def mixtures(board: Board) -> str:
    """Trainings on the seeds that have them, and merges of the same seeds."""
    trainings = [row for row in board.rows(CLOSEST) if row.startswith("training")]
    seeds = board.seeds(CLOSEST, trainings[0])
    cells = [["row", "gain kept", "of the worst", "more than tsvm", *(f"{d}, exact" for d in (*DIMENSIONS, "plain"))]]
    for row in (*trainings, *MERGES):
        lines = [line for seed, line in board.seeds(CLOSEST, row).items() if seed in seeds]
        others = board.seeds(CLOSEST, "tsvm")
        more = [kept(line) - kept(others[line["seed"]]) for line in lines if line["seed"] in others]
        cells.append(
            [
                row,
                about([kept(line) for line in lines]),
                about([worst(line) for line in lines]),
                about(more, "+") if row != "tsvm" else "",
                *(f"{mean(line['exact'][name] for line in lines):.2f}" for name in (*DIMENSIONS, "plain")),
            ]
        )
    return markdown(cells)


def safety(board: Board) -> str:
    """Refusals, look-alikes answered, dishes: shares of test questions answered word for word, and losses."""
    shown = ("refusals", "look-alikes", "dishes", "plain")
    cells = [["row", *shown, "loss of refusals", "loss of dishes", "weights", "passes"]]
    for row in board.rows(SAFETY):
        lines = list(board.seeds(SAFETY, row).values())
        weights = [line["weights"] for line in lines if len(line.get("weights", [])) == 2]
        cells.append(
            [
                row,
                *(f"{mean(line['exact'][name] for line in lines):.2f}" for name in shown),
                *(about([line["loss"][name] for line in lines]) for name in ("refusals", "dishes")),
                ", ".join(f"{mean(own):.2f}" for own in zip(*weights, strict=True)),
                f"{mean(line['passes'] for line in lines):.0f}" if "passes" in lines[0] else "",
            ]
        )
    return markdown(cells)
