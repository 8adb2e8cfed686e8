"""The laboratory's merges, results and tables, and the whole of it on a tiny model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "lab_real"


def test_the_scale_is_found_by_as_many_trials_as_any_other(lab: Callable[[str], ModuleType]) -> None:
    merging = lab("merging")
    for best in (0.1, 0.7, 1.0, 3.0, 11.0):
        tried: list[float] = []

        def score(scale: float, best: float = best, tried: list[float] = tried) -> float:
            tried.append(scale)
            return -abs(torch.tensor(scale / best).log().item())

        known = merging.tuned(score, 10)
        assert len(tried) == len(known) == 10 and list(known) == tried
        found = max(known, key=known.__getitem__)
        assert max(found / best, best / found) < 1.2


def test_the_sum_holds_all_of_updates_that_do_not_meet(lab: Callable[[str], ModuleType]) -> None:
    merging = lab("merging")
    base = {"w": torch.zeros(4, 4)}
    experts = {
        "a": {"w": torch.diag(torch.tensor([1.0, 0, 0, 0]))},
        "b": {"w": torch.diag(torch.tensor([0.0, 2, 0, 0]))},
    }
    update = merging.Row(merging.SUM, merging.SUM).update(base, experts).update
    assert merging.surviving(base, experts, update) == {"a": 1.0, "b": 1.0}


@pytest.fixture
def lines(lab: Callable[[str], ModuleType]) -> list[dict[str, Any]]:
    """Two seeds of a base, three experts and two merges with known shares."""
    draw = random.Random(0)
    found: list[dict[str, Any]] = []
    for seed in (0, 1):
        about = {"experts": "full_short", "dtype": "bf16", "seed": seed}
        losses = [2.0 + draw.random() for _ in range(50)]

        def line(
            row: str, less: float, losses: list[float] = losses, about: dict[str, Any] = about, **more: Any
        ) -> dict[str, Any]:
            every = {
                name: [loss - less for loss in losses] for name in (*lab("data").DIMENSIONS, "look-alikes", "everyday")
            }
            return {**about, "row": row, "losses": every, "kept": dict.fromkeys(lab("data").DIMENSIONS, less), **more}

        sizes = {"norm": 1.0, "relative": 0.1}
        experts = [line(f"expert: {name}", 1.0, sizes=sizes) for name in lab("data").DIMENSIONS]
        merges = [line("task_arithmetic", 0.6, scale=0.5), line("tsvm", 0.7 + 0.1 * seed, scale=1.0)]
        found += [line("base", 0.0), *experts, *merges]
    return found


def test_merges_are_compared_seed_by_seed(lab: Callable[[str], ModuleType], lines: list[dict[str, Any]]) -> None:
    report = lab("report")
    (row,) = [row for row in report.report(lines).splitlines() if row.startswith("| tsvm ")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == "0.750 ± 0.050" and cells[6] == "+0.150 ± 0.050" and cells[7] == "1.00"


def test_a_single_seed_is_compared_over_its_questions(
    lab: Callable[[str], ModuleType], lines: list[dict[str, Any]]
) -> None:
    report = lab("report")
    tables = report.report([line for line in lines if line["seed"] == 0])
    assert "+0.100 [+0.100, +0.100]" in tables  # every question agrees, so no draw differs
    assert "(seed 0, 50 test questions a dimension)" in tables


def test_tables_replace_those_of_a_page(lab: Callable[[str], ModuleType]) -> None:
    report = lab("report")
    page = f"Before, `{report.BEGIN}` and `{report.END}`.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n"
    once = report.inserted(page, "new")
    assert once == report.inserted(once, "new")
    assert "old" not in once and "new" in once and once.startswith("Before, ") and once.endswith("After.\n")
    with pytest.raises(SystemExit, match="between which the tables would go"):
        report.inserted("nothing", "new")


def test_the_page_shows_the_stored_results(lab: Callable[[str], ModuleType]) -> None:
    report = lab("report")
    page = (EXAMPLE.parents[1] / "docs" / "lab.md").read_text()
    stored = [json.loads(n) for file in sorted((EXAMPLE / "results").glob("*.jsonl")) for n in file.open()]
    assert stored and report.inserted(page, report.report(stored)) == page


def test_what_is_seen_beforehand_stands_beside_what_is_kept(
    lab: Callable[[str], ModuleType], lines: list[dict[str, Any]]
) -> None:
    """By hand: experts that forget half a nat and add nothing to each other's dimensions, one of them twice as far."""
    report = lab("report")
    norms = iter([1.0, 2.0, 1.0] * 2)
    for line in lines:
        if line["row"].startswith("expert: "):
            own = line["row"].removeprefix("expert: ")
            line["kept"] = {name: float(name == own) for name in lab("data").DIMENSIONS}
            line["losses"]["everyday"] = [loss + 1.5 for loss in line["losses"]["everyday"]]
            line["sizes"] = {"norm": next(norms), "relative": 0.1}
    (row,) = [row for row in report.report(lines).splitlines() if row.startswith("| `full_short`")]
    assert [cell.strip() for cell in row.split("|")][1:7] == ["`full_short`, bf16", "0.1", "2", "0", "0.5", "+0.150"]


def test_other_numbers_of_experts_have_tables_of_their_own(
    lab: Callable[[str], ModuleType], lines: list[dict[str, Any]]
) -> None:
    """A pair keeps of two dimensions; six have two experts of each, whose mean loss is what a merge is held against."""
    report, results = lab("report"), lab("results")
    pair = [{**line, "together": "pair", "kept": {**line["kept"]}} for line in lines if line["row"] != "expert: honest"]
    for line in pair:
        del line["kept"]["honest"]
    six = [{**line, "together": "six"} for line in lines if line["seed"] == 0]
    for line in [line for line in six if line["row"].startswith("expert: ")]:
        six.append({**line, "row": f"{line['row']}-1"})
        line["row"] += "-0"
    tables = report.report([*six, *lines, *pair]).split("\n\n")
    assert tables[0].startswith("**Experts `full_short` in bf16, six of two seeds** (seed 0, ")
    assert "+0.100 [+0.100, +0.100]" in tables[1]
    (of_pair,) = [i for i, one in enumerate(tables) if "helpful and harmless alone" in one and one.startswith("**")]
    (row,) = [row for row in tables[of_pair + 1].splitlines() if row.startswith("| tsvm ")]
    assert [cell.strip() for cell in row.split("|")][2:6] == ["0.750 ± 0.050", "0.750", "", "0.750"]
    counted = tables[tables.index("**How many experts**") + 1].splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")][2:6] for row in counted] == [
        ["2", "2", "0.600 ± 0.000", "+0.150 ± 0.050"],
        ["3", "2", "0.600 ± 0.000", "+0.150 ± 0.050"],
        ["6", "1", "0.600", "+0.100 [+0.100, +0.100]"],
    ]
    assert results.Case.of(six[0]).members()["honest-1"] == ("honest", 1)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed(public: Path, cache: Path, tmp_path: Path) -> None:
    """The whole of it: experts of either dtype are trained, merged, tuned and measured, and nothing is done twice."""
    results = tmp_path / "results.jsonl"
    where = ("--data", public, "--cache", cache, "--results", results, "--quick")
    done = run(*where, "--rows", "task_arithmetic")
    assert done.returncode == 0, done.stderr
    first = results.read_text()
    done = run(*where)
    assert done.returncode == 0, done.stderr
    assert results.read_text().startswith(first)
    refused = run(*where, "--questions", 8, 8)
    assert "measured on [16, 32] questions" in refused.stderr and refused.returncode == 1
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["row"] for line in lines] == [
        "base",
        "expert: helpful",
        "expert: honest",
        "expert: harmless",
        "task_arithmetic",
        "tsvm",
    ]
    assert [line["kept"][name] for name, line in zip(("helpful", "honest", "harmless"), lines[1:4], strict=True)] == [
        1,
        1,
        1,
    ]
    assert all(
        len(line["tried"]) == 6 and line["scale"] == max(line["tried"], key=lambda t: t[1])[0] for line in lines[4:]
    )
    made = sorted(path.name for path in (cache / "full_short" / "seed0").iterdir())
    assert made == sorted(
        f"{name}-{dtype}" for name in ("helpful", "honest", "harmless") for dtype in ("bf16", "float32")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "gsm8k_train_2500.jsonl"),
        (["--data", ".", "--rows", "ties"], "invalid choice: 'ties'"),
        (["--data", ".", "--together", "seven"], "invalid choice: 'seven'"),
        (
            ["--data", ".", "--together", "pair", "--rows", "training on everything"],
            "--rows: 'training on everything' is what three experts learn",
        ),
        (["--data", ".", "--questions", 8, 0], "--questions: got [8, 0], expected 1 or more of each part"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[object], message: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr
