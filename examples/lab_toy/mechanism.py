"""Tables of what merges do to the updates: what is kept of them, and who gains where one has heavy tails."""

from __future__ import annotations

from statistics import fmean

from board import Board, markdown
from experts import courses
from merging import SUM
from spread import about

RANKED = ("tsvm", "tsvm, no floor", "rtsvm", "iso_c", "iso_c, no floor", "swudi")
MEASURED = ("alpha", "omega", "kurtosis")
WEIGHED = (SUM, "tsvm", "rtsvm, no outlier weights", "rtsvm")
HEAVY = "heavy_tailed"
LEFT = (SUM, "ties", "tsvm", "rtsvm", "iso_c", "swudi")


def mechanism(board: Board) -> str:
    """Directions kept of all experts together over the smaller side, and <M, D_i> / |D_i|^2 before M is scaled."""
    head = ["experts", "one expert's above the edge", *(f"kept by {row}" for row in RANKED)]
    cells = [[*head, *(f"left by {row}" for row in LEFT)]]
    for kind in board.kinds:
        above = fmean(line["values"]["above_edge"] for line in board.seeds(kind, "observables").values())
        kept = [fmean(line["rank"] for line in board.seeds(kind, row).values()) for row in RANKED]
        left = [fmean(line["left"] for line in board.seeds(kind, row).values()) for row in LEFT]
        cells.append([f"`{kind}`", *(f"{value:.2f}" for value in (above, *kept, *left))])
    return markdown(cells)


def artefacts(board: Board) -> str:
    """What the paper's weights and ranks go by, of rounded experts and of the same ones in float32."""
    dtypes = ("bf16", "float32")
    cells = [["experts", *(f"{name}, {dtype}" for name in MEASURED for dtype in dtypes)]]
    for kind in board.kinds:
        lines = {dtype: board.seeds(kind, "observables", dtype).values() for dtype in dtypes}
        means = [fmean(line["values"][name] for line in lines[dtype]) for name in MEASURED for dtype in dtypes]
        cells.append([f"`{kind}`", *(f"{value:.3g}" for value in means)])
    return markdown(cells)


def heavy_tails(board: Board) -> str:
    """The gain kept by the dimension whose expert's update has heavy tails, and by the two others, in either kind."""
    cells = [["row", "heavy-tailed", "the others", "the same dimension without", "the others without"]]
    for row in WEIGHED:
        cells.append([row, *(cell for kind in (HEAVY, "full_dpo") for cell in _by_tail(board, kind, row))])
    return markdown(cells)


def _by_tail(board: Board, kind: str, row: str) -> tuple[str, str]:
    own: list[float] = []
    others: list[float] = []
    for seed in board.seeds(HEAVY, row):
        chosen = next(name for name, course in courses(HEAVY, seed).items() if course.weights == "few")
        kept = board.seeds(kind, row)[seed]["kept"]
        own.append(kept[chosen])
        others.append(fmean(value for name, value in kept.items() if name != chosen))
    return about(own), about(others)
