"""What R-TSVM's weights and sparsities of rounded experts have to do with those of the same experts unrounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from board import Line
from correlations import rank_correlation
from mechanism import spread

ROW = "artefacts"
ROUNDED, EXACT = "bf16", "float32"

HEAD = (
    "experts",
    "seeds",
    "alpha: rank correlation",
    "mean difference",
    "largest over smallest, float32",
    "bf16",
    "same order of the experts",
    "Omega: rank correlation",
    "mean, float32",
    "bf16",
)


def agreement(lines: Sequence[Line]) -> list[Sequence[str]]:
    """Rows of a table: what the two checkpoints agree in, means over the seeds."""
    rows: list[Sequence[str]] = [HEAD]
    for kind in dict.fromkeys(line["experts"] for line in lines):
        own = [line for line in lines if line["experts"] == kind]
        seeds = [[*_of_alpha(line["alpha"]), *_of_omega(line["omega"])] for line in own]
        rows.append((f"`{kind}`", str(len(own)), *(f"{fmean(each):.2f}" for each in zip(*seeds, strict=True))))
    return rows


def _of_alpha(alpha: Mapping[str, Sequence[Sequence[float]]]) -> list[float]:
    """Over all experts of all matrices, but the order, which is within a matrix."""
    pairs = [
        (exact, rounded)
        for two in zip(alpha[EXACT], alpha[ROUNDED], strict=True)
        for exact, rounded in zip(*two, strict=True)
    ]
    orders = [[_order(own) for own in two] for two in zip(alpha[EXACT], alpha[ROUNDED], strict=True)]
    return [
        rank_correlation(pairs),
        fmean(abs(exact - rounded) for exact, rounded in pairs),
        *(fmean(spread(own) for own in alpha[dtype]) for dtype in (EXACT, ROUNDED)),
        fmean(exact == rounded for exact, rounded in orders),
    ]


def _order(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: values[i])


def _of_omega(omega: Mapping[str, Sequence[float]]) -> list[float]:
    pairs = list(zip(omega[EXACT], omega[ROUNDED], strict=True))
    return [rank_correlation(pairs), *(fmean(omega[dtype]) for dtype in (EXACT, ROUNDED))]
