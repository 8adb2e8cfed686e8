"""Pictures are written for every kind of search."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_3h.search import SearchOptions, solve

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("groups", "width"), [(1, 1560), (4, 2340)])
def test_a_picture_with_a_panel_for_layers_if_there_are_any(quadratic, tmp_path: Path, groups: int, width: int) -> None:
    from matplotlib.image import imread

    from mergekit_3h.search.plots import plot_solution

    runner = quadratic(2, groups, fails_beyond=1.5)
    granularity = 0 if groups == 1 else 1
    options = SearchOptions(solver="grid", layer_granularity=granularity, max_evaluations=30, min_safety=0.9)
    plot_solution(solve(runner, runner.layout, options), tmp_path / "search.png")
    picture = imread(tmp_path / "search.png")
    assert picture.shape[:2] == (630, width)
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[-1])[::7].tolist()}) > 20
