"""Values that mergekit accepts and then computes nonsense with, or stops at: the ranges of its own methods' options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.planned import ResolvedTensor

_PRUNING = ("task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties")
_DELLA = ("della", "della_linear")
# option: the methods that take it, and the smallest and the largest value that means something to them
_SHARES: dict[str, tuple[Sequence[str], float, float]] = {
    "density": ((*_PRUNING, *_DELLA), 0.0, 1.0),
    "gamma": (("breadcrumbs", "breadcrumbs_ties"), 0.0, 1.0),
    "epsilon": (_DELLA, 0.0, 0.5),
    "select_topk": (("sce",), 0.0, 1.0),
}
# method: the option that makes it divide by the sum of the weights
_NORMALIZING = {"linear": "normalize", "multislerp": "normalize_weights"}
_CANCELLED = 1e-6
"""A sum of weights below this share of their sizes is one that was meant to be 0, as 0.1 + 0.2 - 0.3 is not quite."""


def share_of(method: str, option: str) -> tuple[float, float] | None:
    """Between which values an option of one of mergekit's methods means something, where it is a share."""
    methods, low, high = _SHARES.get(option, ((), 0.0, 0.0))
    return (low, high) if method in methods else None


def meaningless(method: str, option: str, value: Any) -> str:
    """Why this value makes no sense although mergekit takes it; empty if it does."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if not math.isfinite(value):
        return f"{option}: got {value!r}, expected a finite number; every tensor it applies to would be NaN"
    share = share_of(method, option)
    if share is not None and not share[0] <= value <= share[1]:
        low, high = share
        return f"{option}: got {value!r}, expected a share between {low:g} and {high:g}, which mergekit does not check"
    return ""


def resolved_findings(method: str, tensors: Sequence[ResolvedTensor]) -> Iterator[Finding]:
    """What only shows when filters, gradients and defaults have become one value for each tensor."""
    for text, advice, is_hit in (
        (
            f"the weights sum up to 0, and {method} divides by their sum: NaN or infinity",
            f"set {_NORMALIZING.get(method)}: false, or other weights",
            _divides_by_zero,
        ),
        (
            f"density and epsilon of a model do not go together: {method} needs density - epsilon above 0 and "
            "density + epsilon below 1, or density 1, and stops in the middle of the merge",
            "choose a smaller epsilon (its default is 0.15)",
            _leaves_the_unit_interval,
        ),
    ):
        yield from _of_all(method, tensors, text, advice, is_hit)


def _of_all(
    method: str, tensors: Sequence[ResolvedTensor], text: str, advice: str, is_hit: Callable[[str, Any], bool]
) -> Iterator[Finding]:
    hit = [tensor for tensor in tensors if is_hit(method, tensor)]
    if hit:
        which = "every tensor" if len(hit) == len(tensors) else f"{len(hit)} of {len(tensors)} tensors ({hit[0].name})"
        yield Finding("error", "bad-value", f"{text}; in {which}", "parameters", advice, tensor=hit[0].name)


def _divides_by_zero(method: str, tensor: ResolvedTensor) -> bool:
    if not tensor.shared.get(_NORMALIZING.get(method, "")):
        return False
    weights = [own["weight"] for own in tensor.of_models.values() if "weight" in own]
    return bool(weights) and abs(sum(weights)) <= _CANCELLED * sum(map(abs, weights))


def _leaves_the_unit_interval(method: str, tensor: ResolvedTensor) -> bool:
    if method not in _DELLA:
        return False
    pairs = [(own["density"], own["epsilon"]) for own in tensor.of_models.values() if "density" in own]
    return any(0 < density < 1 and not (density - e > 0 and density + e < 1) for density, e in pairs)
