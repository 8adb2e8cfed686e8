"""A table of models side by side as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

from mergekit_3h.evaluation.gains import GainKept
from mergekit_3h.evaluation.side_by_side import AVERAGE, FORGETTING, ComparedModel, ScoreColumn, SideBySide
from mergekit_3h.tables import Table

_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


@dataclass(frozen=True)
class ComparedCell:
    """One score as text, and how it stands: rank 1, rank 2, and whether it ties with the best."""

    text: str
    rank: int | None = None
    is_tie: bool = False
    half_width: str = ""
    unscored: float = 0.0


def cell_of(table: SideBySide, row: ComparedModel, column: ScoreColumn) -> ComparedCell:
    score = row.scores.get(column.name)
    if score is None or score.score is None:
        return ComparedCell("-")
    half = score.half_width
    return ComparedCell(
        f"{score.score:.{column.digits}f}",
        table.rank_of(row, column),
        column.name in row.ties,
        "" if half is None else f"{half:.{column.digits}f}",
        row.unscored.get(column.name, 0.0),
    )


def heading(column: ScoreColumn) -> str:
    """A column's name; averages say of what."""
    if column.name == AVERAGE:
        return "average"
    if column.name == FORGETTING:
        return "forgotten"
    return f"{column.name} avg" if column.is_average else column.name


def gain_headings(table: SideBySide) -> list[str]:
    found: list[str] = []
    if table.has_gains:
        found += [f"kept {name}" for name in _gained(table)] + ["kept, mean"]
    if table.has_likelihood_gains:
        found += [f"kept {name} (likelihood)" for name in _gained(table)] + ["kept, mean (likelihood)"]
    return found


def gain_cells(table: SideBySide, row: ComparedModel) -> list[str]:
    """The share kept of each dimension's gain; a dash where there is no number."""
    found: list[str] = []
    if table.has_gains:
        found += [gain_text(row.gains.get(name)) for name in _gained(table)] + [_mean_text(table, row, False)]
    if table.has_likelihood_gains:
        found += [gain_text(row.likelihood_gains.get(name)) for name in _gained(table)]
        found.append(_mean_text(table, row, True))
    return found


def gain_text(gain: GainKept | None) -> str:
    return "-" if gain is None or gain.share is None else f"{gain.share:.0%}"


def gain_remarks(table: SideBySide) -> list[str]:
    """Why a share is missing, once for each reason and dimension."""
    found: dict[str, list[str]] = {}
    for row in table.rows:
        for kind, gains in (("", row.gains), (" (likelihood)", row.likelihood_gains)):
            for dimension, gain in gains.items():
                if gain.share is None and gain.why_not not in ("", "not measured"):
                    found.setdefault(f"kept {dimension}{kind}: {gain.why_not}", []).append(row.name)
    return list(found)


def as_text(table: SideBySide) -> str:
    """For a terminal: * the best merge, + the second, ~ not clearly different from the best."""

    def mark(cell: ComparedCell) -> str:
        marks = {1: "*", 2: "+"}.get(cell.rank or 0, "") + ("~" if cell.is_tie else "")
        return cell.text + marks + _share(cell)

    drawn = _drawn(table, mark, _with_role).as_text(ruled=True)
    legend = "* best merge   + second   ~ not clearly different from the best (paired, 95 %)"
    return "\n".join([table.title, drawn, legend, *_remarks(table)])


def as_markdown(table: SideBySide) -> str:
    def mark(cell: ComparedCell) -> str:
        text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank or 0, cell.text)
        return text + (" ≈" if cell.is_tie else "") + _share(cell)

    notes = "\n".join(f"- {note}" for note in _remarks(table))
    legend = "Bold: the best merge, underlined: the second, ≈: not clearly different from the best (paired, 95 %)."
    return f"### {table.title}\n\n{_drawn(table, mark, _with_role).as_markdown()}\n\n{legend}\n" + (
        f"\n{notes}\n" if notes else ""
    )


def as_latex(table: SideBySide) -> str:
    """A ``tabular`` with the rules of booktabs."""

    def mark(cell: ComparedCell) -> str:
        text = cell.text.replace("-", "--") if cell.text == "-" else cell.text
        text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank or 0, text)
        return text + (r"$^{\approx}$" if cell.is_tie else "") + _share(cell)

    drawn = _drawn(table, mark, lambda row: _with_role(row).translate(_LATEX))
    head = " & ".join(header.translate(_LATEX) for header in drawn.headers)
    rows = [" & ".join([row[0], *(cell.replace("%", r"\%") for cell in row[1:])]) for row in drawn.rows]
    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{l{'r' * (len(drawn.headers) - 1)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *[rf"{row} \\" for row in rows],
        r"\bottomrule",
        r"\end{tabular}",
        *[f"% {note}" for note in _remarks(table)],
    ]
    return "\n".join(lines) + "\n"


def as_csv(tables: list[SideBySide]) -> str:
    """Plain numbers; averages as DIMENSION_avg and avg, intervals as NAME_low and NAME_high, notes last."""
    columns = list({column.name: column for table in tables for column in table.columns}.values())
    gains = list(dict.fromkeys(name for table in tables for name in gain_headings(table)))
    names = [_csv_name(column) for column in columns]
    bounds = [f"{name}_{end}" for name in names for end in ("low", "high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "method", "role", *names, *gains, *bounds, "notes"])
    for table in tables:
        for row in table.rows:
            scores = [row.scores.get(column.name) for column in columns]
            kept = dict(zip(gain_headings(table), gain_cells(table, row), strict=True))
            writer.writerow(
                [
                    *(table.title, row.name, row.role),
                    *(_plain(None if score is None else score.score) for score in scores),
                    *(kept.get(name, "") for name in gains),
                    *(_plain(end) for score in scores for end in ((score.low, score.high) if score else (None, None))),
                    "; ".join(row.notes),
                ]
            )
    return out.getvalue()


def _drawn(table: SideBySide, mark: Callable[[ComparedCell], str], name: Callable[[ComparedModel], str]) -> Table:
    headers = ["model", *map(heading, table.columns), *gain_headings(table)]
    rows = [
        [name(row), *(mark(cell_of(table, row, column)) for column in table.columns), *gain_cells(table, row)]
        for row in table.rows
    ]
    return Table(headers, rows)


def _remarks(table: SideBySide) -> list[str]:
    return [*table.notes, *gain_remarks(table)]


def _with_role(row: ComparedModel) -> str:
    return f"{row.name} ({row.role})" if row.role != "merge" else row.name + (" !" if row.notes else "")


def _share(cell: ComparedCell) -> str:
    """The share of the items that a score rests on, where it is not all of them."""
    return f" ({1 - cell.unscored:.0%} scored)" if cell.unscored else ""


def _gained(table: SideBySide) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row.gains))


def _mean_text(table: SideBySide, row: ComparedModel, of_likelihoods: bool) -> str:
    mean, count = row.mean_gain(of_likelihoods=of_likelihoods)
    if mean is None:
        return "-"
    return f"{mean:.0%}" if count == len(_gained(table)) else f"{mean:.0%} of {count}"


def _csv_name(column: ScoreColumn) -> str:
    if column.name == AVERAGE:
        return "avg"
    return f"{column.name}_avg" if column.is_average else column.name


def _plain(value: float | None) -> str:
    return "" if value is None else repr(round(value, 6))
