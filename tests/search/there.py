"""Searches and inspections on the pretended device, in a process of their own: torch keeps the device for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pretended_device import pretended

from mergekit_3h.diagnostics.subjects import subject_of_models
from mergekit_3h.diagnostics.survey import survey
from mergekit_3h.search import SearchOptions, open_problem
from mergekit_3h.search.components import ConstantFamily, Dense, Difference, Factors, LinearFamily
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tsvm import TSVM


def losses_are_the_same(base: Path, experts: Mapping[str, Path], data: Path, options: Mapping[str, Any]) -> bool:
    """Of a candidate, whose merge is computed there, and of a single model. Raises where places are mixed."""

    def losses(device: str | torch.device) -> list[float]:
        problem = open_problem(base, experts, data, SearchOptions(**options), device=device)
        runner = problem.local_runner()
        (candidate,) = runner.evaluate([[0.5] * problem.layout.dimension], gradient=False)
        (single,) = runner.evaluate_models(list(experts)[:1])
        assert candidate.losses is not None and single.losses is not None
        return [*candidate.losses.values(), *single.losses.values()]

    here = losses("cpu")
    with pretended() as device:
        there = losses(device)
    # Factors of the components come of another order of sums in float64, and are rounded to float32.
    return len(here) == 4 and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(here, there, strict=True))


def derivatives_are_the_same() -> bool:
    """By the coefficients, of components on the device and of those that its memory had no room for."""
    torch.manual_seed(0)
    base, expert, gradient = (torch.randn(6, 8, dtype=torch.float64) for _ in range(3))
    parts = (Dense(expert), Difference(expert.bfloat16(), 0.5), Factors(torch.randn(6, 2), torch.randn(2, 8)))
    families = [LinearFamily(base, parts), ConstantFamily(base, 3)]
    here = [[float(each) for each in family.inner_products(gradient)] for family in families]
    with pretended() as device:
        moved = gradient.to(device)
        for place in (torch.device("cpu"), device):
            for family, expected in zip(families, here, strict=True):
                found = torch.stack(family.moved(place).inner_products(moved))
                if found.device != device or found.cpu().tolist() != expected:
                    return False
    return True


def inspection_is_the_same(base: Path, experts: list[Path]) -> bool:
    """The measures of every tensor, but for the order of sums in float64."""
    subject = subject_of_models(str(base), [str(expert) for expert in experts])
    options = parse_options("tsvm", {})
    assert isinstance(options, TSVM)
    here = survey(subject, options, quiet=True)
    with pretended() as device:
        there = survey(subject, options, device=str(device), quiet=True)
    first, second = ([each.model_dump(exclude={"seconds"}) for each in measured] for measured in (here, there))
    return len(first) > 20 and _alike(first, second)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-9)  # spectra are written with five digits
    return bool(one == other)
