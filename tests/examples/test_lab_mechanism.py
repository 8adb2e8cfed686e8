"""What the laboratory notes of merges and experts beside the scores, and what it says goes with them."""

from __future__ import annotations

import random
from collections.abc import Callable
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
