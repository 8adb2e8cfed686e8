"""The toy laboratory's tables: they are those of the stored results, and their statistics are what they say."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "lab_toy"
PAGES = (ROOT / "docs" / "lab.md", EXAMPLE / "README.md")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of the example; other examples have files of the same names."""
    for path in EXAMPLE.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)  # a folder of tests, or another example's file
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(EXAMPLE)):
            del sys.modules[name]


Toy = Callable[[str], ModuleType]


def test_the_pages_show_the_stored_results(toy: Toy) -> None:
    board = toy("board").Board(toy("results").read_lines(sorted((EXAMPLE / "results").glob("*.jsonl"))))
    for page in PAGES:
        assert toy("report").inserted(page, page.read_text(), board) == page.read_text()


def test_stored_results_are_small() -> None:
    assert sum(file.stat().st_size for file in (EXAMPLE / "results").glob("*.jsonl")) < 1_000_000


def test_what_the_quick_run_asserts_holds_by_a_wide_margin_in_every_stored_seed() -> None:
    lines = [json.loads(line) for line in (EXAMPLE / "results" / "full_dpo.jsonl").read_text().splitlines()]
    kept = {(line["seed"], line["row"], line["dtype"]): mean(line["kept"].values()) for line in lines if "kept" in line}
    seeds = {seed for seed, _, _ in kept}
    assert len(seeds) >= 5
    for seed in seeds:
        experts = [value for (own, row, _), value in kept.items() if own == seed and row.startswith("expert: ")]
        assert kept[seed, "task_arithmetic", "bf16"] > max(experts) + 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A page\n", "it has no line like '<!-- table merges of examples/lab_toy/report.py -->'"),
        ("<!-- table prices of examples/lab_toy/report.py -->\n<!-- end of the table -->\n", "no table 'prices'"),
        (
            "<!-- table safety of examples/lab_toy/report.py -->\n<!-- end of the table -->\n",
            "the results are not enough for the table 'safety'",
        ),
    ],
)
def test_a_page_that_cannot_be_filled_is_refused(toy: Toy, text: str, message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        toy("report").inserted(Path("page.md"), text, toy("board").Board([]))


def test_missing_results_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "report.py"), "--results", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none.jsonl" in done.stderr and "run.py makes results" in done.stderr


def test_rank_correlation_is_spearmans(toy: Toy) -> None:
    stats = pytest.importorskip("scipy.stats")
    points = [(1.0, 3.0), (2.0, 1.0), (2.0, 5.0), (4.0, 4.0), (5.0, 9.0), (5.0, 9.0), (0.0, 2.0)]
    expected = stats.spearmanr(*zip(*points, strict=True)).statistic
    assert toy("spread").rank_correlation(points) == pytest.approx(expected)


def test_a_correlation_that_one_group_makes_is_not_trusted(toy: Toy) -> None:
    """Groups are drawn again as wholes: many points in one of them are no evidence about others."""
    flat = {name: [(0.0, 0.0), (0.0, 0.1), (0.1, 0.0)] for name in "abcd"}
    low, high = toy("spread").interval({**flat, "e": [(float(i), float(i)) for i in range(2, 9)]})
    assert low < 0 < high


def test_an_unfinished_line_is_cut_off(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = {"row": "tsvm", "kind": "pair", "seed": 3, "dtype": "bf16"}
    path.write_text(json.dumps(line) + '\n{"row":"rtsvm","ki')
    results = toy("results").Results(path)
    assert results.lines == [line]
    results.add({**line, "row": "rtsvm"})
    assert [json.loads(one)["row"] for one in path.read_text().splitlines()] == ["tsvm", "rtsvm"]


@pytest.mark.parametrize(
    "text", ["not JSON\n", '{"row": "tsvm", "experts": "full_short"}\n', "[1]\n", "not even a line"]
)
def test_a_file_of_something_else_is_named_and_left_alone(toy: Toy, tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"results.jsonl, line 1: no line that examples/lab_toy/run.py wrote"):
        toy("results").Results(path)
    assert path.read_text() == text


@pytest.mark.parametrize("weights", ["all", "lora", "few"])
def test_only_what_a_course_frees_learns(toy: Toy, weights: str) -> None:
    experts, models, world = toy("experts"), toy("models"), toy("world")
    school = experts.School(models.Size(hidden=16, layers=1, base_steps=2), 0)
    course = experts.Course("honest", steps=3, rate=1e-2, weights=weights)
    base, expert = school.base.model.state_dict(), school.expert(course).state_dict()
    assert base.keys() == expert.keys()
    name = "model.layers.0.mlp.gate_proj.weight"
    delta = expert[name] - base[name]
    changed = (delta != 0).float().mean().item()
    if weights == "few":
        assert 0.01 < changed < 0.1
    else:
        assert changed > 0.9
    rank = int(torch.linalg.matrix_rank(delta, rtol=1e-5))
    assert (rank == toy("training").LORA_RANK) is (weights == "lora")
    assert len(course.lessons()) == len(world.pairs("honest", world.TRAIN))


def test_courses_go_round_with_the_seed(toy: Toy) -> None:
    courses = toy("experts").courses
    assert len(courses("halves", 0)) == 6
    assert [sorted(courses("pair", seed)) for seed in range(3)] == [
        ["harmless", "honest"],
        ["harmless", "helpful"],
        ["helpful", "honest"],
    ]
    heavy = [name for seed in range(3) for name, one in courses("heavy_tailed", seed).items() if one.weights == "few"]
    assert heavy == ["helpful", "honest", "harmless"]


def test_a_seed_whose_expert_gains_nothing_is_left_out(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of nothing would stand in every table."""
    size = toy("models").Size(hidden=16, layers=1, base_steps=2)
    experts, experiment, studies = toy("experts"), toy("experiment"), toy("studies")
    idle = {name: experts.Course(name, steps=2, rate=0.0) for name in ("helpful", "honest")}  # it learns nothing
    experiment.courses = experiment.specialists = lambda kind, seed: idle
    assert list(studies.Plan(size, ("full_dpo",), ("bf16",), ("merges",), is_quick=True)(3)) == []
    assert capsys.readouterr().out == "full_dpo, seed 3, bf16: left out, its helpful expert gained nothing\n"
