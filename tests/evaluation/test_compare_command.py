"""``mergekit-3h compare`` writes every format, checks published tables, and its page is legible in a real browser."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from mergekit_3h.evaluation.point_labels import grouped, placed_labels
from mergekit_3h.evaluation.published import published_tables
from mergekit_3h.evaluation.trade_offs import pareto_set, trade_offs

from .browser import browser_layout
from .conftest import DIMENSIONS

METRICS = {
    "helpful": ["math", "gsm8k", "arc_e", "arc_c", "mmlu", "mbpp_plus", "humaneval_plus", "mt_bench"],
    "honest": ["halueval_wild"],
    "harmless": ["salad_bench", "or_bench"],
}


@pytest.fixture(scope="module")
def results(experts, questions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the base and the three experts, in one folder."""
    from click.testing import CliRunner

    from mergekit_3h.cli import main

    from .conftest import tiny_suite, with_more_items, write_suite

    folder = tmp_path_factory.mktemp("compared")
    suite = write_suite(folder / "suite.yml", with_more_items(tiny_suite(questions)))
    arguments = ["evaluate", *map(str, experts.values()), "--suite", str(suite), "-o", str(folder), "-q"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def compared(mergekit_3h, results: Path, tmp_path: Path) -> tuple[Path, str]:
    roles = [part for name in DIMENSIONS for part in ("--expert", f"{name}={name}")]
    files = [results / f"{name}.json" for name in ("base", *DIMENSIONS)]
    outputs = [part for end in ("html", "md", "tex", "csv", "png") for part in ("-o", tmp_path / "out" / f"t.{end}")]
    said = mergekit_3h("compare", *files, "--base", "base", *roles, *outputs).output
    return tmp_path / "out", said


def test_every_format_says_the_same(compared: tuple[Path, str]) -> None:
    out, said = compared
    rows = list(csv.DictReader((out / "t.csv").open()))
    assert [(row["method"], row["role"]) for row in rows] == [
        ("base", "base"),
        ("helpful", "expert"),
        ("honest", "expert"),
        ("harmless", "expert"),
    ]
    assert rows[1]["helpful_avg"] == "100.0" and rows[1]["kept helpful (likelihood)"] == "100%"
    assert rows[1]["kept helpful"] == "-", "two items of multiple choice"
    average = f"{float(rows[1]['avg']):.2f}"
    markdown, latex = (out / "t.md").read_text(), (out / "t.tex").read_text()
    for shown in (said, markdown, latex, (out / "t.html").read_text()):
        assert average in shown
        assert "kept helpful: too few items (2, of at least 6)" in shown
    assert "| helpful (expert)" in markdown and markdown.count("\n| ") == 6
    assert latex.count(r"\\") == 5 and r"100\%" in latex and r"\begin{tabular}{l" in latex
    assert not re.search(r"(?<!\\)[%&_#]", re.sub(r"^%.*$| & ", "", latex, flags=re.MULTILINE)), "all escaped"
    assert (out / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_and_shows_where_models_differ(compared: tuple[Path, str]) -> None:
    page = (compared[0] / "t.html").read_text()
    assert not re.search(r'(?:src|href)="|@import|<script|https?://(?!www\.w3\.org)', page)
    assert page.count("<svg") == 2 and "items on which the models differ" in page
    assert "capital of france" in page and "paris" in page, "the items themselves"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_lays_the_page_out_without_overflow(compared: tuple[Path, str], width: int) -> None:
    """Asks Chromium itself for the width of the page and the places of all labels of the drawings."""
    scroll, client, overlaps, tiny, labels = browser_layout(compared[0] / "t.html", width)
    assert scroll <= client == width, "the page itself does not scroll sideways"
    assert overlaps == 0 and tiny == 0 and labels > 10


def published(path: Path, **changes: float) -> Path:
    """A table with one row whose averages are right but for ``changes``."""
    scores = {name: 10.0 + number for number, name in enumerate(n for names in METRICS.values() for n in names)}
    averages = {f"{dimension}_avg": sum(scores[n] for n in names) / len(names) for dimension, names in METRICS.items()}
    averages["avg"] = sum(averages.values()) / 3
    row = {"method": "Ours", **scores, **{name: round(value, 2) for name, value in averages.items()}, **changes}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows([row, {**row, "method": "Theirs", "mmlu": row["mmlu"] + 0.04}])
    return path


def test_a_consistent_table_is_reproduced(mergekit_3h, tmp_path: Path) -> None:
    (table,) = published_tables(published(tmp_path / "table.csv"))
    assert table.notes == [] and [row.name for row in table.rows] == ["Ours", "Theirs"]
    assert table.rows[0].value("helpful") == pytest.approx(13.5) and table.rows[0].value("average") == pytest.approx(
        (13.5 + 18.0 + 19.5) / 3
    )
    mergekit_3h("compare", tmp_path / "table.csv", "-q", "-o", tmp_path / "again.csv")
    (again,) = published_tables(tmp_path / "again.csv")
    for before, after in zip(table.rows, again.rows, strict=True):
        assert [score.score for score in after.scores.values()] == pytest.approx(
            [score.score for score in before.scores.values()], abs=1e-6
        )
    assert again.notes == []


@pytest.mark.parametrize(
    ("column", "by", "says"),
    [
        ("helpful_avg", 0.05, "Ours: helpful_avg is printed as 13.55, but its 8 columns give 13.50"),
        ("harmless_avg", 3.0, "Ours: harmless_avg is printed as 22.5, but its 2 columns give 19.50"),
        ("avg", 0.1, "Ours: avg is printed as 17.1, but the mean of its printed averages is 17.00"),
    ],
)
def test_rows_that_contradict_themselves_are_named(
    mergekit_3h, tmp_path: Path, column: str, by: float, says: str
) -> None:
    right = {"helpful_avg": 13.5, "harmless_avg": 19.5, "avg": 17.0}[column]
    file = published(tmp_path / "table.csv", **{column: right + by})
    assert says in mergekit_3h("compare", file).output
    # What rounding and cutting off explain is none.
    file = published(tmp_path / "table.csv", **{column: right - 0.01})
    assert "printed" not in mergekit_3h("compare", file).output


def test_wrong_inputs_are_explained(mergekit_3h, results: Path, tmp_path: Path) -> None:
    base = results / "base.json"

    def said(*arguments: object) -> str:
        return mergekit_3h("compare", *arguments, status=1).output

    assert "t.htm: cannot tell what to write; did you mean '.html'?" in said(base, "-o", tmp_path / "t.htm")
    assert "nowhere.json: No such file or directory" in said(tmp_path / "nowhere.json")
    (tmp_path / "x.json").write_text("{}")
    assert "x.json: no result of mergekit-3h evaluate: it has no metrics" in said(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(base.read_text().replace('"format": 1', '"format": 9'))
    assert "has the format 9, this version reads 1" in said(tmp_path / "x.json")
    (tmp_path / "t.csv").write_text("method,maths\na,1\n")
    assert "t.csv: there is no column 'math'; did you mean 'maths'?" in said(tmp_path / "t.csv")
    content = published(tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(content.replace("14.0", "n/a", 1))
    assert "table.csv, row 2: mmlu is 'n/a'; expected a number" in said(tmp_path / "table.csv")


def test_names_are_placed_where_nothing_else_is() -> None:
    points = [(100.0 + 3 * (i % 4), 100.0 + 3 * (i // 4)) for i in range(12)]
    names = [str(i) for i in range(12)]
    places = placed_labels(points, names, (0.0, 0.0, 400.0, 300.0))
    found = [place for place in places if place is not None]
    assert len(found) >= 10
    for i, (x, y) in enumerate(found):
        assert all(abs(x - a) > 7 or abs(y - b) > 11 for a, b in found[i + 1 :])


def test_names_are_clear_of_the_intervals_where_there_is_room() -> None:
    """A point on the lower edge, as of a model that gets nothing right, with an interval in each dimension."""
    bars = [((60.0, 280.0), (300.0, 280.0)), ((100.0, 30.0), (100.0, 280.0))]
    (place,) = placed_labels([(100.0, 280.0)], ["1, 2, 4 +1"], (52.0, 0.0, 400.0, 286.0), bars)
    assert place is not None and place[0] - 1 > 100.0 and place[1] + 2 < 280.0
    crowded = [((10.0, float(height)), (390.0, float(height))) for height in range(0, 300, 5)]
    assert placed_labels([(100.0, 100.0)], ["1"], (0.0, 0.0, 400.0, 300.0), crowded) != [None]


def test_points_at_one_place_share_a_name() -> None:
    places, names = grouped([(5.0, 5.0), (80.0, 5.0), (5.5, 5.0), (5.0, 6.0), (6.0, 5.5)], [1, 2, 3, 4, 5])
    assert places == [(5.0, 5.0), (80.0, 5.0)] and names == ["1, 3, 4 +1", "2"]


def test_the_pareto_set(tmp_path: Path) -> None:
    table = published_tables(published(tmp_path / "table.csv"))[0]
    assert [point.row.name for point in pareto_set(trade_offs(table))] == ["Theirs"]
