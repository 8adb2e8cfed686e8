"""The page of an inspection in a real browser: from a file, without a network, light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, needs_browser
from diagnostics.invented import invented_inspection, invented_line

from mergekit_3h.diagnostics.conclusions import conclusions
from mergekit_3h.diagnostics.heat_maps import draw_heat_maps
from mergekit_3h.diagnostics.page import inspection_page

LARGEST_PAGE = 5_000_000
MIDDLE = "model.layers.3.mlp.up_proj.weight"
CELL = f'#map button[data-tensor="{MIDDLE}"]'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inspection = invented_inspection(layers=8, experts=3)
    inspection = replace(inspection, record={row.tensor: invented_line(3) for row in inspection.rows})
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(inspection_page(inspection, conclusions(inspection), inspection.experts))
    return file


def test_page_of_eighty_layers_is_small() -> None:
    inspection = invented_inspection(layers=80, experts=10)
    text = inspection_page(inspection, conclusions(inspection), inspection.experts)
    assert len(text.encode()) < LARGEST_PAGE
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


def test_mixture_of_many_experts_keeps_a_spectrum_for_each_tensor() -> None:
    inspection = invented_inspection(layers=3, experts=3, matrices=350)
    text = inspection_page(inspection, conclusions(inspection), inspection.experts)
    assert len(text.encode()) < LARGEST_PAGE
    rows = json.loads(text.partition('id="inspection">')[2].partition("</script>")[0])["rows"]
    with_spectra = {row["tensor"] for row in rows if "spectra" in row}
    assert {row["tensor"].partition("[")[0] for row in rows if "up_proj" in row["tensor"]} <= {
        name.partition("[")[0] for name in with_spectra
    }


def test_names_cannot_break_out_of_the_page() -> None:
    inspection = invented_inspection(layers=2, experts=2, names=["</script><b>x", '"><img src=x>'])
    text = inspection_page(inspection, conclusions(inspection), inspection.experts)
    assert text.count("</script>") == 2 and "<img" not in text


def test_heat_maps_are_pictures(tmp_path: Path) -> None:
    files = draw_heat_maps(invented_inspection(layers=4, experts=2), tmp_path / "heat_maps")
    assert len(files) == 15 and {file.name for file in files} >= {"relative_size.png", "omega.png", "overlap.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.fixture(params=["light", "dark", "narrow"])
def browser(request: pytest.FixtureRequest, page: Path) -> Iterator[Browser]:
    size = (390, 800) if request.param == "narrow" else (1200, 900)
    with Browser(*size, dark=request.param == "dark") as opened:
        opened.open(page)
        yield opened


@needs_browser
@pytest.mark.slow
def test_page_in_a_browser(browser: Browser, page: Path) -> None:
    assert browser.requests == [page.as_uri()], "one file, nothing else asked for"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page itself never scrolls sideways"
    assert browser.run("document.querySelectorAll('#map .cell').length") == 8 * 9 + 3
    assert _contrast(browser, ".answers p") > 7 and _contrast(browser, ".answers .faint") > 4.5
    _hovers(browser)
    _shows_a_tensor(browser)
    _shows_a_layer(browser)
    _changes_the_measure(browser)
    assert browser.complaints == []


def _hovers(browser: Browser) -> None:
    assert browser.run("document.getElementById('hover').hidden")
    browser.point_at(CELL)
    shown = browser.run("document.getElementById('hover').innerText")
    assert shown.startswith(MIDDLE) and "update" in shown and "helpful: " in shown
    box = browser.run("(b => [b.left, b.right, b.top])(document.getElementById('hover').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= browser.run("innerWidth") and box[2] >= 0
    browser.point_at("h1")
    assert browser.run("document.getElementById('hover').hidden")
    browser.run(f"document.querySelector('{CELL}').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.dataset.tensor") == MIDDLE.replace("3", "4")


def _shows_a_tensor(browser: Browser) -> None:
    browser.click(CELL)
    assert browser.run("document.querySelector('#detail h3').innerText") == MIDDLE
    assert browser.run("document.querySelectorAll('#detail svg .edge').length") == 3
    assert browser.run("document.querySelectorAll('#detail svg .cut').length") == 3
    text = browser.run("document.getElementById('detail').innerText")
    assert "eff. rank" in text and "helpful / honest" in text and "STI/S" in text
    assert "What the merge did" in text and "0.25" in text and "condition, output" in text


def _shows_a_layer(browser: Browser) -> None:
    browser.click('#map button[aria-label="layer 5"]')
    names = browser.run("[...document.querySelectorAll('#detail h3')].map(each => each.innerText)")
    assert len(names) == 7 and all("layers.5." in name for name in names)
    assert browser.run("document.querySelectorAll('#detail .spectra svg[role=img]').length") == 7


def _changes_the_measure(browser: Browser) -> None:
    colours = "[...document.querySelectorAll('#map .cell')].map(each => each.style.background).join()"
    before = browser.run(colours)
    _select(browser, "measure", "cosine")
    assert browser.run(colours) != before
    assert browser.run("document.querySelectorAll('#whose option').length") == 4  # all, and three pairs
    _select(browser, "whose", "1")
    browser.point_at(CELL)
    assert "cosine" in browser.run("document.getElementById('hover').innerText")
    _select(browser, "measure", "omega")
    assert browser.run("document.getElementById('whose').disabled")


def _select(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change')); }})(document.getElementById('{name}'))"
    )


def _contrast(browser: Browser, selector: str) -> float:
    """Contrast of an element's text with what is behind it, by the formula of WCAG."""
    ink, paper = (
        [int(part) for part in browser.run(script).removeprefix("rgb(").removesuffix(")").split(",")]
        for script in (
            f"getComputedStyle(document.querySelector('{selector}')).color",
            f"getComputedStyle(document.querySelector('{selector}').closest('li')).backgroundColor",
        )
    )
    brighter, darker = sorted((_luminance(ink), _luminance(paper)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: list[int]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
