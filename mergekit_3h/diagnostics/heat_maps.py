"""Heat maps of an inspection as PNG files: layers across, types of tensors down, a picture for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit_3h.diagnostics.conclusions import Inspection
from mergekit_3h.diagnostics.measures import MEASURES, Measure, mean_of
from mergekit_3h.diagnostics.rows import TensorMeasures
from mergekit_3h.optional import optional

Grid = list[list[float]]


def draw_heat_maps(inspection: Inspection, folder: Path) -> list[Path]:
    """One file for each measure that any tensor in a layer has; a panel for each expert where it has one each."""
    figures: Any = optional("matplotlib.figure", "plots", "drawing heat maps")
    colors: Any = optional("matplotlib.colors", "plots", "drawing heat maps")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for measure in MEASURES:
        panels = _panels(inspection, measure)
        if not panels:
            continue
        path = folder / f"{measure.name}.png"
        _draw(figures, colors, inspection, measure, panels).savefig(str(path), dpi=110)
        written.append(path)
    return written


def _panels(inspection: Inspection, measure: Measure) -> dict[str, Grid]:
    """Values by title, type and layer: of each expert; pairs as their mean."""
    rows = [row for row in inspection.measured if row.place[0] is not None]
    titles = (
        list(inspection.experts) if measure.of == "expert" else ["mean of all pairs"] * (measure.of == "pair") or [""]
    )
    panels = {title: _grid(rows, measure, i if measure.of == "expert" else None) for i, title in enumerate(titles)}
    return {title: grid for title, grid in panels.items() if any(value == value for line in grid for value in line)}


def _grid(rows: Sequence[TensorMeasures], measure: Measure, which: int | None) -> Grid:
    """NaN where there is no such tensor; the mean where there are several (experts of a mixture)."""
    cells: dict[tuple[str, int], list[float | None]] = {}
    for row in rows:
        layer, kind = row.place
        values = measure.values(row)
        cells.setdefault((kind, layer or 0), []).append(mean_of(values) if which is None else values[which])
    means = {place: mean_of(values) for place, values in cells.items()}
    kinds, layers = _kinds(rows), _layers(rows)
    return [[_or_nan(means.get((kind, layer))) for layer in layers] for kind in kinds]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _kinds(rows: Sequence[TensorMeasures]) -> list[str]:
    return list(dict.fromkeys(row.place[1] for row in rows))


def _layers(rows: Sequence[TensorMeasures]) -> list[int]:
    return sorted({row.place[0] or 0 for row in rows})


def _draw(figures: Any, colors: Any, inspection: Inspection, measure: Measure, panels: dict[str, Grid]) -> Any:
    rows = [row for row in inspection.measured if row.place[0] is not None]
    kinds, layers = _kinds(rows), _layers(rows)
    size = (max(6.0, 2.5 + 0.14 * len(layers)), 0.8 + len(panels) * (0.6 + 0.22 * len(kinds)))
    figure = figures.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    shown = [value for grid in panels.values() for line in grid for value in line if value == value]
    low, high = min(shown), max(shown)
    is_log = measure.is_log and low > 0 and high > low
    norm = (colors.LogNorm if is_log else colors.Normalize)(low, high if high > low else low + 1e-9)
    images: list[Any] = []
    for axis, (title, grid) in zip(axes, panels.items(), strict=True):
        images.append(axis.imshow(grid, aspect="auto", cmap="viridis", norm=norm, interpolation="none"))
        axis.set_yticks(range(len(kinds)), kinds, fontsize=7)
        ticks = range(0, len(layers), max(1, len(layers) // 16))
        axis.set_xticks(list(ticks), [str(layers[i]) for i in ticks], fontsize=7)
        axis.set_title(title, fontsize=8, loc="left")
    axes[-1].set_xlabel("layer")
    figure.suptitle(f"{measure.title}: {measure.meaning}", fontsize=9)
    figure.colorbar(images[-1], ax=list(axes), fraction=0.03)
    return figure
