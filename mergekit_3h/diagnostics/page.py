"""One self-contained HTML page of an inspection: questions on top, heat maps, and each tensor's spectra on a click."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mergekit_3h.diagnostics.conclusions import Conclusion, Inspection
from mergekit_3h.diagnostics.measures import MEASURES
from mergekit_3h.diagnostics.rows import TensorMeasures, all_pairs, sampled_places
from mergekit_3h.diagnostics.summary import suggested_config, table_by_type
from mergekit_3h.pages import Html, PageSection, html, page, paragraph, table

_HERE = Path(__file__).parent

MOST_SPECTRA = 3000
"""Spectra of single experts that a page holds; a megabyte or less. Of mixtures with more of them those of the first
matrix of each tensor are shown."""

_WORDS = {"fine": "fine", "note": "note", "warning": "warning", "error": "error", "unknown": "not known"}


def inspection_page(
    inspection: Inspection, found: Sequence[Conclusion], models: Sequence[str], title: str = "Before the merge"
) -> str:
    """The whole document. ``models`` are the experts as a config names them."""
    experts = ", ".join(inspection.experts)
    summary = f"{experts} against {inspection.base}, {len(inspection.rows)} tensors measured"
    config = suggested_config(inspection, found, models)
    proposal = [
        paragraph("What the answers propose, as a piece of a mergekit config. No merge has validated it."),
        Html(f"<pre>{html(config)}</pre>"),
    ]
    by_type = table_by_type(inspection.rows)
    sections = [
        PageSection("Questions", [_answers(found), *(proposal if config else [])]),
        PageSection("Layer by layer", [_interactive(inspection)]),
        PageSection(
            "By type of tensor", [table(by_type.headers, by_type.rows, caption="Medians over the tensors of a type.")]
        ),
    ]
    return page(title, sections, summary=summary)


def _answers(found: Sequence[Conclusion]) -> Html:
    parts: list[str] = []
    for question, group in groupby(found, key=lambda conclusion: conclusion.question):
        for conclusion in group:
            parts += [f'<li class="{conclusion.verdict}"><h3>{html(question)}</h3>', *_told(conclusion), "</li>"]
    return Html('<ul class="answers">' + "".join(parts) + "</ul>")


def _told(conclusion: Conclusion) -> list[str]:
    verdict = f'<span class="verdict">{_WORDS[conclusion.verdict]}.</span>'
    lines = [f"<p>{verdict} {html(conclusion.text)}</p>"]
    if conclusion.advice:
        lines.append(f"<p>{html(conclusion.advice)}</p>")
    if conclusion.basis:
        lines.append(f'<p class="faint">Known how: {html(conclusion.basis)}.</p>')
    return lines


def _interactive(inspection: Inspection) -> Html:
    """The heat map, drawn by the script from the data beside it."""
    data = json.dumps(page_data(inspection), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    style, script = (_HERE.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return Html(
        f"<style>{style}</style>"
        "<p>Point at a cell for its value; click it for the tensor's spectra and numbers, or a layer's number for all "
        "of its spectra. The arrow keys move from cell to cell.</p>"
        '<div class="choices"><label>measure <select id="measure"></select></label>'
        '<label>of <select id="whose"></select></label></div>'
        '<div class="scroll" tabindex="0"><div class="map" id="map"></div></div>'
        '<div class="legend"><span id="low"></span><span class="bar" id="bar"></span><span id="high"></span></div>'
        '<div id="hover" role="tooltip" hidden></div><div id="detail" aria-live="polite"></div>'
        "<noscript><p>The heat map needs JavaScript; the answers above and the table below do not.</p></noscript>"
        f'<script type="application/json" id="inspection">{data}</script><script>{script}</script>'
    )


def page_data(inspection: Inspection) -> dict[str, Any]:
    """What the script draws from."""
    rows = inspection.rows
    shown = _with_spectra(rows)
    spectra = [expert.spectrum for row in rows for expert in row.experts if expert.spectrum is not None]
    layers = sorted({layer for layer, _ in (row.place for row in rows) if layer is not None})
    return {
        "experts": list(inspection.experts),
        "pairs": list(all_pairs(len(inspection.experts))),
        "layers": layers,
        "kinds": list(dict.fromkeys(row.place[1] for row in rows)),
        "measures": [
            {"name": m.name, "title": m.title, "meaning": m.meaning, "of": m.of, "form": m.form, "is_log": m.is_log}
            for m in MEASURES
        ],
        "places": {count: sampled_places(count) for count in {spectrum.count for spectrum in spectra}},
        "rows": [_row(row, row.tensor in shown, inspection.record.get(row.tensor)) for row in rows],
        "record": RECORDED,
    }


RECORDED = {
    "expert": [
        ("surviving", "survives", "share of the expert's update that is in the merge: 1 is all of it", ".2f"),
        ("ranks", "rank", "singular values that the merge kept", ".0f"),
        ("outlier_weights", "alpha", "R-TSVM's outlier weight", ".2f"),
        ("weights", "weight", "the weight that the merge was given", ".2f"),
        ("decompositions", "decomposed", "how the singular vectors were found", ""),
        ("residuals", "residual", "bound on the error of the found subspace", ".1e"),
        ("perturbations", "perturbed", "nearest update that it is exact for, in shares of the noise edge", ".1%"),
    ],
    "tensor": [
        ("budget", "budget", "rank that each expert might have had", ".0f"),
        ("omega", "Omega", "sparsity, Eq. 9", ".2f"),
        ("condition_output", "condition, output", "of [U_1 .. U_n]: noise is magnified by as much", ".0f"),
        ("condition_input", "condition, input", "of [V_1 .. V_n]", ".0f"),
        ("changed", "changed", "weights that are not the base's", ".1%"),
        ("rounded_away", "rounded away", "weights that the merge changed and rounding gave back", ".1%"),
        ("rounding_distance", "rounded", "how far rounding the result moved the merged update", ".1%"),
        ("seconds", "seconds", "time of merging this tensor", ".2f"),
    ],
}
"""What the page shows of a record's line: its key, a short title, the meaning, the form."""


def _recorded(line: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key for each in RECORDED.values() for key, *_ in each}
    output, input_ = line.get("conditions") or (None, None)
    content = {key: value for key, value in line.items() if key in shown}
    return {**content, "condition_output": output, "condition_input": input_}


def _with_spectra(rows: Sequence[TensorMeasures]) -> set[str]:
    """Names of the tensors whose spectra the page holds."""
    matrices = [row for row in rows if row.matrix is not None]
    if sum(len(row.experts) for row in matrices) <= MOST_SPECTRA:
        return {row.tensor for row in matrices}
    first = {row.place: row.tensor for row in reversed(matrices)}
    return set(first.values())


def _row(row: TensorMeasures, has_spectra: bool, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    layer, kind = row.place
    measures = {m.name: [_short(value) for value in m.values(row)] for m in MEASURES} if not row.problem else {}
    content: dict[str, Any] = {
        "tensor": row.tensor,
        "layer": layer,
        "kind": kind,
        "shape": row.shape,
        "dtypes": row.dtypes,
        "measures": {name: values for name, values in measures.items() if any(value is not None for value in values)},
    }
    if row.problem:
        content["problem"] = row.problem
    if recorded is not None:
        content["record"] = _recorded(recorded)
    if has_spectra:
        content["spectra"] = [
            {"values": s.values, "count": s.count, "edge": _short(s.noise_edge), "rank": s.rank}
            for s in (expert.spectrum for expert in row.experts)
            if s is not None
        ]
    return content


def _short(value: float | None) -> float | None:
    """Four digits, which is more than a picture shows."""
    return None if value is None else float(f"{value:.4g}")
