"""Tables of stored results, in Markdown.

python examples/lab_toy/report.py                                              # of examples/lab_toy/results
python examples/lab_toy/report.py --results run/results.jsonl
python examples/lab_toy/report.py --write docs/lab.md examples/lab_toy/README.md  # into pages, between their marks
python examples/lab_toy/report.py --plot docs/images/lab_toy.png               # a picture of all kinds
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from board import Board
from comparisons import by_kind, merges, rounding, scales, weights
from correlations import between_kinds, observables, within_kinds
from mechanism import HEAVY, artefacts, heavy_tails, mechanism
from merging import SUM
from other_ways import mixtures, safety
from plots import plot
from results import Line, read_lines
from rows import CLOSEST
from safety import KIND as SAFETY

HERE = Path(__file__).parent
TABLES: dict[str, Callable[[Board], str]] = {
    "merges": merges,
    "kinds": by_kind,
    "scales": scales,
    "rounding": rounding,
    "weights": weights,
    "mixtures": mixtures,
    "safety": safety,
    "mechanism": mechanism,
    "artefacts": artefacts,
    "heavy tails": heavy_tails,
    "observables": observables,
    "between kinds": between_kinds,
    "within kinds": within_kinds,
}
"""By the name that a page's mark gives."""

BEGIN, END = "<!-- table {} of examples/lab_toy/report.py -->", "<!-- end of the table -->"
_MARKED = re.compile(rf"{re.escape(BEGIN).replace(re.escape('{}'), '(.+?)')}.*?{re.escape(END)}", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", help="files of JSON lines")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="PAGE", help="pages with marks")
    parser.add_argument(
        "--plot", type=Path, metavar="PICTURE", help="where the picture of all kinds goes; needs matplotlib"
    )
    arguments = parser.parse_args()
    files = arguments.results or sorted((HERE / "results").glob("*.jsonl"))
    missing = [str(file) for file in [*files, *arguments.write] if not file.is_file()]
    if missing or not files:
        parser.error(f"there is no {', '.join(missing) or HERE / 'results'}; examples/lab_toy/run.py makes results")
    lines = read_lines(files)
    for page in arguments.write:
        page.write_text(inserted(page, page.read_text(), Board(lines)))
    if arguments.plot:
        plot(Board(lines), arguments.plot)
    if not arguments.write and not arguments.plot:
        print(tables(lines))


def tables(lines: Sequence[Line]) -> str:
    """Every table that these results are enough for."""
    board = Board(lines)
    return "\n\n".join(f"**{name}**\n\n{TABLES[name](board)}" for name in _possible(board))


def inserted(page: Path, text: str, board: Board) -> str:
    """The page with other tables between its marks."""
    marked = _MARKED.findall(text)
    unknown = [name for name in marked if name not in TABLES]
    if unknown or not marked:
        why = f"there is no table {unknown[0]!r}" if unknown else f"it has no line like {BEGIN.format('merges')!r}"
        sys.exit(f"--write {page}: {why}; tables are {', '.join(TABLES)}, and each ends with {END!r}")
    lacking = [name for name in marked if name not in _possible(board)]
    if lacking:
        sys.exit(f"--write {page}: the results are not enough for the table {lacking[0]!r}; run.py --help says more")
    return _MARKED.sub(lambda found: f"{BEGIN.format(found[1])}\n\n{TABLES[found[1]](board)}\n\n{END}", text)


def _possible(board: Board) -> list[str]:
    """A quick run has merges of one kind alone."""
    there = {line["row"] for line in board.lines}
    needs = {
        "merges": bool(board.seeds(CLOSEST, SUM)),
        "kinds": bool(board.kinds),
        "scales": bool(board.kinds),
        "rounding": any(line["dtype"] == "float32" for line in board.lines),
        "artefacts": any(line["dtype"] == "float32" for line in board.lines),
        "weights": "tsvm, weights" in there,
        "mixtures": "training on everything" in there,
        "safety": any(line["kind"] == SAFETY for line in board.lines),
        "mechanism": bool(board.kinds),
        "heavy tails": HEAVY in board.kinds and CLOSEST in board.kinds,
        "observables": bool(board.kinds),
    }
    return [name for name in TABLES if needs.get(name, len(board.kinds) > 2)]


if __name__ == "__main__":
    main()
