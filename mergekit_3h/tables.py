"""Tables of text: columns lined up for a terminal, Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """The first ``left`` columns hold names and are lined up to the left, the others numbers, to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def as_text(self, *, ruled: bool = False) -> str:
        """Columns two spaces apart; ``ruled``: dashes under the headers."""
        rule = [["-" * width for width in self._widths()]] if ruled else []
        return "\n".join(self.line(row) for row in [self.headers, *rule, *self.rows])

    def line(self, row: Sequence[str]) -> str:
        """One row, lined up with the headers and the rows of the table: for rows that are shown as they come."""
        return "  ".join(self._padded(row, self._widths())).rstrip()

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]

    def as_markdown(self) -> str:
        """Readable as it stands, too: the cells are lined up."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.headers, *self.rows]]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * width if i < self.left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join(f"| {' | '.join(self._padded(row, widths))} |" for row in [cells[0], rule, *cells[1:]])

    def _padded(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if column < self.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
