"""What a host merges a tensor of a candidate with: its plan's parameters with other weights and options."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

NO_OPTIONS: Mapping[str, float] = MappingProxyType({})


def candidate_parameters(
    spec: Any,
    planned: Mapping[str, Any],
    experts: Sequence[Hashable],
    weights: Sequence[float] | None,
    options: Mapping[str, float],
) -> dict[str, Any]:
    """The planned parameters of one tensor with other weights and options, and without a record of its merge.

    ``spec`` is mergekit's of the method: it knows which parameters each expert has for itself.
    """
    parameters = {name: value for name, value in planned.items() if name != "record"}
    if weights is not None:
        parameters["weight"] = dict(zip(experts, weights, strict=True))
    of_experts = {parameter.name for parameter in spec.input_parameters}
    for name, value in options.items():
        parameters[name] = dict.fromkeys(experts, value) if name in of_experts else value
    return parameters
