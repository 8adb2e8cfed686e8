"""Single matrices on a device: beside FusionBench's function, approximated and exact; and the device's rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from mergekit_3h.benchmarks.contenders import FUSION_BENCH, OURS, Recipe, chosen_peers, prepare
from mergekit_3h.benchmarks.problems import MatrixProblem, make_inputs
from mergekit_3h.benchmarks.serving import GEMM_RUNS, GEMM_SIDE
from mergekit_3h.spectral.literal import relative_error

EXPERTS = 3
Result = TypeVar("Result")


@dataclass(frozen=True)
class BesidePeer:
    """One float32 matrix: medians in seconds after the first call."""

    peer: str
    ours: float
    ours_first: float
    theirs: float
    theirs_first: float
    apart: float
    """Relative distance of the two results."""

    @property
    def times_as_fast(self) -> float:
        return self.theirs / self.ours


@dataclass(frozen=True)
class Decompositions:
    """One bfloat16 matrix whose updates have full rank."""

    auto: float
    exact: float
    apart: float
    methods: list[str]
    """What ``auto`` did with each expert."""


@dataclass(frozen=True)
class ProductRates:
    """Operations a second of a matrix product."""

    float64: float
    float32: float


@dataclass(frozen=True)
class DeviceChecks:
    """Of square matrices of this side."""

    side: int
    peer: BesidePeer
    decompositions: Decompositions
    rates: ProductRates


def check_device(device: torch.device, side: int, rounds: int) -> DeviceChecks:
    """Everything on one device, one after the other."""
    return DeviceChecks(
        side,
        beside_peer(device, side, rounds),
        decompositions(device, side, rounds),
        ProductRates(_rate(device, torch.float64), _rate(device, torch.float32)),
    )


def beside_peer(device: torch.device, side: int, rounds: int) -> BesidePeer:
    """FusionBench's function, or the literal algorithm where it is not installed; in turn."""
    inputs = make_inputs(MatrixProblem(side, side, EXPERTS, "float32", "decaying"), device)
    (peer,) = chosen_peers("auto")
    runs = {name: prepare(name, inputs, Recipe("tsvm")) for name in (OURS, peer)}
    first: dict[str, float] = {}
    results: dict[str, Tensor] = {}
    for name, run in runs.items():
        first[name], (results[name], _) = _timed(device, run)
    later = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            later[name].append(_timed(device, run)[0])
    return BesidePeer(
        "FusionBench" if peer == FUSION_BENCH else peer,
        median(later[OURS]),
        first[OURS],
        median(later[peer]),
        first[peer],
        relative_error(results[peer], results[OURS].to(torch.float64)),
    )


def decompositions(device: torch.device, side: int, rounds: int) -> Decompositions:
    """``auto`` and ``exact`` in turn."""
    inputs = make_inputs(MatrixProblem(side, side, EXPERTS, "bfloat16", "decaying"), device)
    runs = {name: prepare(OURS, inputs, Recipe("tsvm", {"decomposition": name})) for name in ("auto", "exact")}
    results = {name: run() for name, run in runs.items()}
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_timed(device, run)[0])
    (auto, facts), (exact, _) = results["auto"], results["exact"]
    return Decompositions(
        median(seconds["auto"]),
        median(seconds["exact"]),
        relative_error(auto, exact.to(torch.float64)),
        facts.decompositions,
    )


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = GEMM_SIDE.get(device.type, GEMM_SIDE["cpu"])
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    out = torch.empty_like(matrix)
    _timed(device, lambda: torch.mm(matrix, matrix, out=out))
    best = min(_timed(device, lambda: torch.mm(matrix, matrix, out=out))[0] for _ in range(GEMM_RUNS))
    return 2 * side**3 / best


def _timed(device: torch.device, work: Callable[[], Result]) -> tuple[float, Result]:
    _synchronize(device)
    began = perf_counter()
    result = work()
    _synchronize(device)
    return perf_counter() - began, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
