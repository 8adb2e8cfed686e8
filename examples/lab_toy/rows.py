"""The merges that are compared: the sum, mergekit's, and the spectral family with its options."""

from __future__ import annotations

from typing import Any

from merging import SUM, Row

from mergekit_3h.spectral.registry import names, option_names

MERGEKIT: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
}
WEIGHTED: dict[str, Any] = {"weight": 1.0, "lambda": 1.0, "normalize": False, "int8_mask": False}
POWERS = (0.25, 0.5)

VARIANTS: dict[str, dict[str, Any]] = {
    "tsvm, tau 1": {"decorrelation": 1.0},
    "tsvm, output side": {"decorrelation_sides": "output"},
    "tsvm, core dc": {"core": "dc", "core_keep": 0.1},  # the default share keeps four entries of a matrix this small
    "tsvm, core score": {"core": "score"},
    "rtsvm, inverse outlier weights": {"outlier_weighting": "inverse"},
    "rtsvm, preset paper": {"preset": "paper"},
    **{f"iso_c, power {power}": {"power": power} for power in POWERS},
    "svc, of tsvm": {"combine": "tsvm"},
}
"""Options that are compared with a method's defaults. The method is what stands before the comma."""


def rows() -> list[Row]:
    """Every row; a spectral method that another package brings has its own, too."""
    found = [Row(SUM, SUM)]
    found += [Row(name, name, WEIGHTED | options, is_spectral=False) for name, options in MERGEKIT.items()]
    found.append(Row("model_stock", "model_stock", {"filter_wise": False}, is_spectral=False))
    for name in names():
        found.append(Row(name, name))
        if "outlier_weighting" in option_names(name):
            found.append(Row(f"{name}, no outlier weights", name, {"outlier_weighting": "none"}))
    found += [Row(label, label.split(",")[0], options) for label, options in VARIANTS.items()]
    return found + [_without_floor(row) for row in found if row.label in FLOORED]


def rows_of(kind: str, dtype: str, quick: bool) -> list[Row]:
    """All of them for the kind that is looked at closest; of float32 experts, which have no rounding to leave out, and
    of the other kinds those that tell most."""
    found = rows()
    if quick or kind != CLOSEST:
        return [row for row in found if row.label in (MAIN if dtype != "float32" else UNROUNDED)]
    return found if dtype != "float32" else [row for row in found if row.label in (*UNROUNDED, *names())]


CLOSEST = "full_dpo"
FLOORED = ("tsvm", "iso_c", "iso_c, power 0.5")
UNROUNDED = (SUM, *FLOORED)
MAIN = (
    *UNROUNDED,
    *(f"{label}, no floor" for label in FLOORED),
    "ties",
    "swudi",
    "rtsvm",
    "rtsvm, no outlier weights",
)
"""Rows of the other kinds, and of a quick run."""


def _without_floor(row: Row) -> Row:
    return Row(f"{row.label}, no floor", row.method, {**row.options, "noise_floor": "off"})
