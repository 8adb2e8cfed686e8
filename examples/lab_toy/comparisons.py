"""Tables of merges: of the kind that is looked at closest, and of all kinds side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from board import Board, kept, markdown, worst
from experts import courses
from merging import SUM
from results import Line
from rows import CLOSEST, FLOORED, MAIN, rows
from spread import about
from weights import WEIGHINGS
from world import DIMENSIONS

EXACT = (*DIMENSIONS, "plain")


def merges(board: Board) -> str:
    """Every model of the closest kind, in bf16."""
    own = [row for row in board.rows(CLOSEST) if not row.startswith("training") and row != "observables"]
    order = [*(row.label for row in rows()), *(one.label for one in WEIGHINGS)]
    own.sort(key=lambda row: order.index(row) if row in order else -1)
    head = ["row", "gain kept", "of the worst", "more than the sum", "won", "scale", "at scale 1", "of updates"]
    return markdown([[*head, *(f"{name}, exact" for name in EXACT)], *(_merge(board, row) for row in own)])


def _merge(board: Board, row: str) -> list[str]:
    lines = list(board.seeds(CLOSEST, row).values())
    more = board.differences(CLOSEST, row, SUM) if "left" in lines[0] and row != SUM else []
    return [
        row,
        about([kept(line) for line in lines]),
        about([worst(line) for line in lines]),
        about(more, "+") if more else "",
        f"{sum(gain > 0 for gain in more)} of {len(more)}" if more else "",
        f"{median(line['scale'] for line in lines):.2f}" if "scale" in lines[0] else "",
        about([line["untuned"] for line in lines]) if "untuned" in lines[0] else "",
        f"{mean(line['left'] for line in lines):.2f}" if "left" in lines[0] else "",
        *(f"{mean(line['exact'][name] for line in lines):.2f}" for name in EXACT),
    ]


def by_kind(board: Board) -> str:
    """The sum's gain kept, and what other rows keep more than that."""
    others = [row for row in MAIN if row != SUM]
    cells = [["experts", "seeds", "n", SUM, *others]]
    for kind in board.kinds:
        seeds = board.seeds(kind, SUM)
        differences = [board.mean_difference(kind, row, SUM) for row in others]
        about_kind = [f"`{kind}`", str(len(seeds)), str(len(courses(kind, 0)))]
        cells.append([*about_kind, board.mean_kept(kind, SUM), *differences])
    return markdown(cells)


def scales(board: Board) -> str:
    """The best scale, and what is lost by taking 1 instead."""
    shown = (SUM, "tsvm", "iso_c", "iso_c, power 0.5")
    cells = [["experts", *(f"{row}: {what}" for row in shown for what in ("scale", "lost at 1"))]]
    for kind in board.kinds:
        own = [list(board.seeds(kind, row).values()) for row in shown]
        pairs = [(_middle([line["scale"] for line in lines]), _loss_untuned(lines)) for lines in own]
        cells.append([f"`{kind}`", *(cell for pair in pairs for cell in pair)])
    return markdown(cells)


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _loss_untuned(lines: Sequence[Line]) -> str:
    return about([kept(line) - line["untuned"] for line in lines])


def rounding(board: Board) -> str:
    """What the noise floor adds to merges of rounded experts, and what merging float32 experts would."""
    head = ["experts", "moved by rounding", *(f"floor: {row}" for row in FLOORED)]
    cells = [[*head, *(f"float32: {row}" for row in (SUM, *FLOORED))]]
    for kind in board.kinds:
        seen = [line["values"]["rounding"] for line in board.seeds(kind, "observables").values()]
        floors = [board.mean_difference(kind, row, f"{row}, no floor") for row in FLOORED]
        exact = [board.mean_difference(kind, row, row, ("float32", "bf16")) for row in (SUM, *FLOORED)]
        cells.append([f"`{kind}`", f"{mean(seen):.1%}", *floors, *exact])
    return markdown(cells)


def weights(board: Board) -> str:
    """One scale against one weight an expert, and one an expert and layer."""
    labels = [one.label for one in WEIGHINGS if one.solver == "gradient"]
    cells = [["experts", f"{SUM}, one scale", *labels[:2], "tsvm, one scale", *labels[2:]]]
    shown = [SUM, *labels[:2], "tsvm", *labels[2:]]
    for kind in board.kinds:
        cells.append([f"`{kind}`", *(board.mean_kept(kind, row) for row in shown)])
    passes = [[line["passes"] for kind in board.kinds for line in board.seeds(kind, row).values()] for row in shown]
    cells.append(["passes", *(f"{mean(own):.0f}" for own in passes)])
    return markdown(cells)
