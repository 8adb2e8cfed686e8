"""Pages are whole documents that need nothing else, and text in them is text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mergekit_3h.drawings import Scale, drawing, marker, scale_of, text
from mergekit_3h.pages import Html, PageSection, figure, html, page, paragraph, strong, table

_VOID = {"meta", "path"}


class _Nesting(HTMLParser):
    """Every element that is opened is closed, the last one first."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def _sample() -> str:
    shapes = [marker((10, 10), number, title=f"<{number}>") for number in range(6)] + [text((5, 5), "a & b")]
    parts = [
        paragraph("<script>alert(1)</script>", "warning"),
        table(["model", "score"], [["a <b>", strong("1")]]),
        figure(drawing(20, 20, shapes, label='a "drawing"'), "what & why"),
    ]
    return page("A <title>", [PageSection("One", parts)], summary="1 < 2")


def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    document = _sample()
    parser = _Nesting()
    parser.feed(document)
    assert parser.open == []
    assert re.findall(r"(?:src|href)=|url\(|@import|<script|<link", document) == []
    assert "prefers-color-scheme:dark" in document and 'name="viewport"' in document


def test_text_is_escaped_and_html_is_not() -> None:
    document = _sample()
    assert "&lt;script&gt;alert(1)" in document and "a &lt;b&gt;" in document and "<strong>1</strong>" in document
    assert 'aria-label="a &quot;drawing&quot;"' in document
    assert html(Html("<b>")) == "<b>" and html("<b>") == "&lt;b&gt;"


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-2.0, 7.0], [float("nan"), 5.0], [], [1e-9, 2e-9]])
def test_a_scale_holds_its_values_and_has_ticks_within(values: list[float]) -> None:
    scale = scale_of(values, 0.0, 100.0)
    for value in values:
        assert value != value or 0.0 <= scale(value) <= 100.0
    assert scale.low < scale.high
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_ticks_are_round_numbers() -> None:
    assert Scale(0.0, 10.0, 0.0, 1.0).ticks(5) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert Scale(57.1, 64.9, 0.0, 1.0).ticks(4) == [58.0, 60.0, 62.0, 64.0]
