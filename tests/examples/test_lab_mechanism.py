"""What the laboratory notes of merges and experts beside the scores, and what it says goes with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest

from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options

Lab = Callable[[str], ModuleType]


def tasks_of(case: Any) -> list[TaskMatrices]:
    matrices = [name for name, own in case.base.items() if own.ndim == 2]
    return [TaskMatrices([state[name] for state in case.experts.values()], case.base[name]) for name in matrices]


def test_a_line_has_what_the_reports_say(lab: Lab, open_case: Callable[..., Any], tmp_path: Path) -> None:
    """Beside the method called on every matrix by hand."""
    merging = lab("merging")
    results, case = lab("results").Results(tmp_path / "lines.jsonl", [4, 4]), open_case()
    rows = [merging.Row(name, name) for name in (merging.SUM, "tsvm", "rtsvm", "iso_c")]
    rows.append(merging.Row("tsvm, no floor", "tsvm", {"noise_floor": "off"}))
    case.run(rows, 2, results, lambda _: None)
    said = {row.label: (results.line(case.case, row.label) or {})["reports"] for row in rows}
    assert said[merging.SUM] == {}

    own = {
        name: [parse_options(name, {}).merge(tasks, [1.0] * 3)[1] for tasks in tasks_of(case)]
        for name in ("tsvm", "rtsvm", "iso_c")
    }
    alphas = [max(r.outlier_weights) / max(min(r.outlier_weights), max(r.outlier_weights) / 100) for r in own["rtsvm"]]
    assert said["rtsvm"]["alpha"] == pytest.approx(fmean(alphas), rel=1e-3)  # four digits are noted
    assert said["rtsvm"]["omega"] == pytest.approx(fmean(r.omega for r in own["rtsvm"]), rel=1e-3)
    cut = fmean(rank < report.budget for report in own["tsvm"] for rank in report.ranks)
    assert said["tsvm"]["cut"] == pytest.approx(cut, abs=1e-3)
    assert "cut" not in said["tsvm, no floor"] and "alpha" not in said["tsvm"]
    decided = [report.under_edge for report in own["iso_c"]]
    assert said["iso_c"]["cut"] == pytest.approx(fmean(t is not None and t < 1.4 for t in decided), abs=1e-3)
    assert said["iso_c"]["amplification"] == pytest.approx(
        _geometric([report.amplification for report in own["iso_c"]]), rel=1e-3
    )
    assert said["tsvm"]["condition"] == pytest.approx(
        _geometric([max(report.conditions) for report in own["tsvm"]]), rel=1e-3
    )
    assert "under_edge" in said["iso_c"] and "under_edge" not in said["tsvm"]


def test_every_row_says_what_it_did(lab: Lab, open_case: Callable[..., Any]) -> None:
    """Of whatever method, in numbers that JSON can hold."""
    case = open_case()
    merges = [row for row in lab("rows").rows() if isinstance(row, lab("merging").Row)]
    for row in merges:
        about = row.update(case.base, case.experts).about
        assert row.label == "task_arithmetic" or about["rank"] > 0, row.label
        assert all(isfinite(value) for value in about.values()), row.label


def _geometric(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))


def test_what_is_seen_of_the_experts_has_a_line_of_its_own(
    lab: Lab, open_case: Callable[..., Any], tmp_path: Path
) -> None:
    """Float32 experts have no rounding edge; no table of merges shows the line."""
    seen = {}
    for dtype in ("bf16", "float32"):
        results, case = lab("results").Results(tmp_path / f"{dtype}.jsonl", [4, 4]), open_case(dtype)
        observing = lab("rows").rows()[-2]
        case.run([observing], 2, results, lambda _: None)
        line = results.line(case.case, "observables")
        assert line is not None and "kept" not in line
        seen[dtype] = line["values"]
        tables = lab("report").report(results.lines)
        assert "| observables |" not in tables and f"| {seen[dtype]['overlap']:.3g} |" in tables
    rounded, exact = seen["bf16"], seen["float32"]
    assert rounded["rounding"] > 0 == exact["rounding"]
    assert rounded.keys() - exact.keys() == {"above_edge", "under_edge"}
    assert 0 < rounded["effective_rank"] < 1 < rounded["alpha"]
    assert exact["cosine"] == pytest.approx(rounded["cosine"], abs=0.01)


def points_of(draw: random.Random, slope: float, count: int) -> list[tuple[float, float]]:
    return [(x, slope * x + 0.1 * draw.random()) for x in (draw.random() for _ in range(count))]


def test_a_correlation_says_how_often_chance_has_it(lab: Lab) -> None:
    cell = lab("correlations").cell
    draw = random.Random(1)
    assert cell({0: points_of(draw, 1.0, 3)}) == ""
    assert cell({0: points_of(draw, -1.0, 40)}).startswith("**-0.9")
    assert cell({0: points_of(draw, -1.0, 40)}).endswith("(p < 0.001, 40)**")
    loose = cell({0: points_of(draw, 0.0, 40)})
    assert "**" not in loose and float(loose.split("p = ")[1].split(",")[0]) > 0.01
    # Two groups far apart, nothing within them: shuffled within the groups, they are as far apart.
    apart = {i: [(10 * i + x, 10 * i + y) for x, y in points_of(draw, 0.0, 20)] for i in (0, 1)}
    assert cell(apart).startswith("+0.7") and "**" not in cell(apart)


def test_rank_correlation_is_spearmans(lab: Lab) -> None:
    stats = pytest.importorskip("scipy.stats")
    points = [(1.0, 3.0), (2.0, 1.0), (2.0, 5.0), (4.0, 4.0), (5.0, 9.0), (5.0, 9.0), (0.0, 2.0)]
    expected = stats.spearmanr(*zip(*points, strict=True)).statistic
    assert lab("correlations").rank_correlation(points) == pytest.approx(expected)


def test_rows_seeds_and_cases_are_looked_at_apart(lab: Lab) -> None:
    """Of two cases: a row that only one has counts among rows, not among cases."""
    correlations = lab("correlations")
    samples = [
        ("a", "tsvm", 0, 1.0, 0.1),
        ("a", "tsvm", 1, 3.0, 0.3),
        ("a", "star", 0, 5.0, 0.5),
        ("a", "star", 1, 7.0, 0.5),
        ("b", "tsvm", 0, 10.0, 0.7),
    ]

    def near(points: list[tuple[float, float]]) -> Any:
        return [pytest.approx(point) for point in points]

    assert correlations.over_rows(samples) == {"a": near([(-2.0, -0.15), (2.0, 0.15)]), "b": near([(0.0, 0.0)])}
    assert correlations.over_seeds(samples) == {"a": near([(-1.0, -0.05), (1.0, 0.05)]), "b": near([(0.0, 0.0)])}
    assert correlations.over_cases(samples) == {None: near([(2.0, 0.2), (10.0, 0.7)])}
    assert correlations.over_cases([]) == {None: []}


def test_artefacts_of_rounding_are_measured_from_both_checkpoints(
    lab: Lab, open_case: Callable[..., Any], cache: Path
) -> None:
    """Against the method itself on the same matrices, and the table by hand."""
    artefacts = lab("artefacts")
    cases = {dtype: open_case(dtype, seed=3) for dtype in ("float32", "bf16")}
    line = artefacts.measured(cache, "full_short", 3)
    assert line["row"] == "artefacts" and (line["experts"], line["seed"]) == ("full_short", 3)
    name = sorted(name for name in cases["bf16"].base if ".layers." in name and name.endswith("proj.weight"))[-1]
    for dtype, case in cases.items():
        tasks = TaskMatrices([state[name] for state in case.experts.values()], case.base[name])
        report = parse_options("rtsvm", {"noise_floor": "off"}).merge(tasks, [1.0] * 3)[1]
        assert line["omega"][dtype][-1] == pytest.approx(report.omega, rel=1e-3)  # four digits are noted
        assert line["alpha"][dtype][-1] == pytest.approx(report.outlier_weights, rel=1e-3)
    assert line["omega"]["bf16"] != line["omega"]["float32"] and len(line["omega"]["bf16"]) == 14


def test_what_checkpoints_agree_in(lab: Lab) -> None:
    """Two matrices of two experts: rounding turns the order of the experts round in one of them."""
    line = {
        "row": "artefacts",
        "experts": "full_short",
        "seed": 0,
        "alpha": {"float32": [[0.5, 1.5], [0.8, 1.2]], "bf16": [[1.2, 0.8], [0.4, 1.6]]},
        "omega": {"float32": [0.2, 0.3], "bf16": [0.5, 0.7]},
    }
    cells = lab("agreement").agreement([line])[1]
    # alpha by rank, float32: 0.5 0.8 1.2 1.5, beside 1.2 0.4 1.6 0.8: 3 1 4 2, so 1 - 6 (4 + 1 + 1 + 4) / 60
    assert cells == ("`full_short`", "1", "0.00", "0.55", "2.25", "2.75", "0.50", "1.00", "0.25", "0.60")
    tables = lab("report").report([line])
    assert tables.endswith(" | ".join(cells) + " |") and "**Alpha and Omega, rounded and not**" in tables


def test_artefacts_of_experts_that_are_not_there_are_an_error(lab: Lab, cache: Path) -> None:
    with pytest.raises(SystemExit, match=r"lora_moderate/seed0/helpful-.* not found; .*experts\.py makes experts"):
        lab("artefacts").measured(cache, "lora_moderate", 0)
