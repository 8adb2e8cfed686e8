"""What is compared: the sum, the spectral family with its options, weights found by a search, and no merge at all;
and what is seen of the experts beforehand."""

from __future__ import annotations

from typing import Any

from experiment import AnyRow, Mixed, Observing
from merging import SUM, Row
from weights import WEIGHINGS

from mergekit_3h.spectral.registry import names, option_names

VARIANTS: dict[str, dict[str, Any]] = {
    "iso_c, power 0.5": {"power": 0.5},
    "tsvm, tau 1": {"decorrelation": 1.0},
    "tsvm, output side": {"decorrelation_sides": "output"},
}
"""Options that are compared with a method's defaults. The method is what stands before the comma."""

FLOORED = ("tsvm", "iso_c", "iso_c, power 0.5")
QUICK = (SUM, "tsvm")
EVERYTHING = Mixed("training on everything")


def rows() -> list[AnyRow]:
    """Those that tell most come first; a spectral method that another package brings has its own, too."""
    found = [Row(SUM, SUM), *(Row(name, name) for name in names())]
    found += [Row(label, label.split(",")[0], options) for label, options in VARIANTS.items()]
    found += [_without_floor(row) for row in found if row.label in FLOORED]
    found += [
        Row(f"{name}, no outlier weights", name, {"outlier_weighting": "none"})
        for name in names()
        if "outlier_weighting" in option_names(name)
    ]
    return [*found, *WEIGHINGS, Observing("observables"), EVERYTHING]


def _without_floor(row: Row) -> Row:
    return Row(f"{row.label}, no floor", row.method, {**row.options, "noise_floor": "off"})
