"""Models side by side as one self-contained page: tables, plots, and the items on which models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_3h.evaluation.comparison_tables import (
    ComparedCell,
    cell_of,
    gain_cells,
    gain_headings,
    gain_remarks,
    heading,
)
from mergekit_3h.evaluation.radars import radar_drawing, radar_rows
from mergekit_3h.evaluation.result import EvaluationResult
from mergekit_3h.evaluation.side_by_side import ComparedModel, SideBySide
from mergekit_3h.evaluation.trade_offs import trade_off_drawing, trade_offs, two_dimensions
from mergekit_3h.pages import (
    Html,
    PageSection,
    columns,
    faint,
    figure,
    folded,
    html,
    listing,
    page,
    paragraph,
    strong,
    table,
    underlined,
)

_MOST_EXAMPLES = 3
_LONGEST_EXCERPT = 600


def comparison_page(
    tables: Sequence[SideBySide],
    results: Mapping[str, EvaluationResult] | None = None,
    *,
    title: str = "Models side by side",
    verdicts: Sequence[str] = (),
    more: Sequence[PageSection] = (),
) -> str:
    """``verdicts``: sentences that stand above all tables; ``more``: sections that follow them."""
    sections = [PageSection("In short", [listing(verdicts)])] if verdicts else []
    sections += [section for one in tables for section in _sections(one)]
    sections += more
    if results:
        sections.append(PageSection("Items", _items(results)))
        sections.append(PageSection("How it was measured", _facts(results)))
    models = sum(len(one.rows) for one in tables)
    return page(title, sections, summary=f"{models} models, {len(tables)} table{'s' if len(tables) > 1 else ''}")


def _sections(one: SideBySide) -> list[PageSection]:
    parts: list[Html] = [_scores(one)]
    parts.append(
        paragraph(
            "Bold: the best merge; underlined: the second; ≈: not clearly different from the best (paired, 95 %). "
            "± is half the 95 % interval."
        )
    )
    if one.has_gains:
        parts += _gains(one)
    remarks = [*one.notes, *gain_remarks(one)]
    if remarks:
        parts.append(listing(remarks, "warning" if any(row.notes for row in one.rows) else "note"))
    drawn = [part for part in (_radar(one), _trade_off(one)) if part is not None]
    if drawn:
        parts.append(columns(drawn))
    return [PageSection(one.title, parts)]


def _scores(one: SideBySide) -> Html:
    headers = ["", "model", *map(heading, one.columns)]
    rows = [
        [str(place), _name(row), *(_cell(cell_of(one, row, column)) for column in one.columns)]
        for place, row in enumerate(one.rows, start=1)
    ]
    # The name is what stays in sight when a wide table is scrolled, so it comes first.
    return table([headers[1], headers[0], *headers[2:]], [[row[1], row[0], *row[2:]] for row in rows], left=2)


def _gains(one: SideBySide) -> list[Html]:
    headers = gain_headings(one)
    rows = [[_name(row), *gain_cells(one, row)] for row in one.rows if row.role != "base"]
    told = faint("Share of the gain kept: (model - base) / (expert - base), by each dimension's own expert")
    return [paragraph(told), table(["model", *headers], rows)]


def _name(row: ComparedModel) -> Html:
    role = faint(f" {row.role}") if row.role != "merge" else ""
    return Html(f"{breakable_name(row.name)}{role}{faint(' !') if row.notes else ''}")


def breakable_name(name: str) -> Html:
    """On a narrow screen a long name goes on below after an underscore, not within a word."""
    return Html(html(name).replace("_", "_<wbr>"))


def _cell(cell: ComparedCell) -> Html:
    shown = strong(cell.text) if cell.rank == 1 else underlined(cell.text) if cell.rank == 2 else html(cell.text)
    tie = " ≈" if cell.is_tie else ""
    width = faint(f" ±{cell.half_width}") if cell.half_width else ""
    share = faint(f" {1 - cell.unscored:.0%} scored") if cell.unscored else ""
    return Html(f"{shown}{tie}{width}{share}")


def _radar(one: SideBySide) -> Html | None:
    drawn = radar_drawing(one)
    if drawn is None:
        return None
    rows = radar_rows(one)
    legend = Html(
        " ".join(
            f'<span style="white-space:nowrap;color:var(--s{order % 8})">● {html(row.name)}</span>'
            for order, (_, row) in enumerate(rows)
        )
    )
    caption = "Each axis runs from the lowest score shown (inner ring) to the highest (outer ring). "
    return figure(drawn, Html(f"{html(caption)}{legend}"))


def _trade_off(one: SideBySide) -> Html | None:
    drawn, pair = trade_off_drawing(one), two_dimensions(one)
    if drawn is None or pair is None:
        return None
    intervals = ", with 95 % intervals" if any(point.bars() for point in trade_offs(one)) else ""
    roles = {row.role for row in one.rows}
    shapes = " Circles are merges, triangles experts, the square is the base." if roles != {"merge"} else ""
    return figure(
        drawn,
        f"{pair[1]} against {pair[0]}{intervals}. Numbers are those of the table; the dashed line joins the models "
        f"that no other beats in both.{shapes}",
    )


def _items(results: Mapping[str, EvaluationResult]) -> list[Html]:
    """Items on which the models' values differ most, folded by metric."""
    first = next(iter(results.values()))
    parts: list[Html] = []
    for name in first.metrics:
        having = {label: result for label, result in results.items() if name in result.metrics}
        shown = _most_different(name, having)
        if shown:
            title = f"{name}: items on which the models differ"
            parts.append(folded(title, [_item(name, item, having) for item in shown]))
    return parts or [paragraph("The models differ on no item.")]


def _most_different(name: str, results: Mapping[str, EvaluationResult]) -> list[str]:
    values = [result.metrics[name].values for result in results.values()]
    shared = sorted(set.intersection(*(set(one) for one in values))) if values else []
    spread = {item: max(one[item] for one in values) - min(one[item] for one in values) for item in shared}
    different = [item for item in shared if spread[item] > 0]
    return sorted(different, key=lambda item: (-spread[item], item))[:_MOST_EXAMPLES]


def _item(name: str, item: str, results: Mapping[str, EvaluationResult]) -> Html:
    rows: list[list[str]] = []
    prompt = ""
    for label, result in results.items():
        found = next(one for one in result.metrics[name].items if one.id == item)
        prompt = found.prompt
        value = "-" if found.value is None else f"{found.value:.3g}"
        rows.append([label, value, found.verdict or "", _excerpt(found.reply or "")])
    cells = "".join(
        f'<tr><td class="name">{html(row[0])}</td><td>{html(row[1])}</td><td class="name">{html(row[2])}</td>'
        f'<td class="name" style="white-space:pre-wrap;min-width:16rem">{html(row[3])}</td></tr>'
        for row in rows
    )
    return Html(
        f'<pre style="white-space:pre-wrap">{html(_excerpt(prompt))}</pre><div class="scroll" tabindex="0"><table>'
        f'<thead><tr><th class="name">model</th><th>value</th><th class="name">verdict</th>'
        f'<th class="name">reply</th></tr></thead><tbody>{cells}</tbody></table></div>'
    )


def _excerpt(content: str) -> str:
    return content if len(content) <= _LONGEST_EXCERPT else content[:_LONGEST_EXCERPT] + " …"


def _facts(results: Mapping[str, EvaluationResult]) -> list[Html]:
    rows = [
        [
            label,
            result.suite,
            result.device,
            result.dtype,
            f"{result.seconds:.0f} s",
            "-" if result.peak_memory_bytes is None else f"{result.peak_memory_bytes / 1e9:.2f} GB",
            result.model_identity,
        ]
        for label, result in results.items()
    ]
    headers = ["model", "suite", "device", "type", "time", "peak memory", "digest"]
    first = next(iter(results.values()))
    versions = ", ".join(f"{name} {found}" for name, found in first.versions.items())
    return [table(headers, rows), paragraph(f"{versions}; seed {first.seed}, {first.resamples} resamples.")]
