"""How a whole merge within mergekit's graph scales with the cores: measured on those there are, replayed on more.

A replay is the same schedule with real threads, which sleep for as long as each matrix took on one core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from threading import Lock
from typing import Any

import torch

from mergekit_3h.benchmarks.contenders import OURS, Run, prepare
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.growth import decomposed_sides
from mergekit_3h.benchmarks.machine import Machine, this_machine
from mergekit_3h.benchmarks.plans import ComparisonPlan
from mergekit_3h.benchmarks.problems import DTYPES, make_inputs
from mergekit_3h.benchmarks.tables import Table, machine_lines, seconds_text
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.jobs import WAITING_SHARE, Begun, Flow, flow_on, last_begun, room_within, runs_alone
from mergekit_3h.kernels.workers import Pool
from mergekit_3h.spectral.tensors import matrix_bytes

_RUNS = 2
_SHORTEST_REPLAY = 4.0
"""Seconds to which the time is scaled: long beside the moment that a sleeping thread takes to wake up."""
_CPU = torch.device("cpu")
_LAYER = ("down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj")
"""In the order of mergekit's graph, that of the tensors' whole names. Head and embedding come before the layers."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the model, as it was measured."""

    name: str
    seconds: float
    """Processor time of its merge on one thread."""
    eigh_seconds: float
    """Of that, the eigendecompositions."""
    experts: int
    need: int
    inputs: int
    result: int
    """Bytes."""

    def alone_seconds(self, cores: int) -> float:
        """With all cores: decompositions, one a task and two for the polar factors, and products, which share them."""
        rounds = math.ceil(self.experts / cores) + math.ceil(2 / cores)
        eigh = self.eigh_seconds * rounds / (self.experts + 2)
        return eigh + (self.seconds - self.eigh_seconds) / cores


@dataclass(frozen=True)
class Scaled:
    """A whole merge on some cores."""

    cores: int
    is_replayed: bool
    seconds: float
    busy: float
    """Share of the cores' time in which they had a matrix to merge."""
    in_turn_seconds: float
    """The same merge one matrix after the other."""


@dataclass(frozen=True)
class Scaling:
    machine: Machine
    settings: dict[str, Any]
    matrices: list[Matrix]
    """One of each shape."""
    one_core_seconds: float
    """Of all matrices of the model."""
    memory: int
    results: list[Scaled]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_scaling(
    plan: ComparisonPlan, cores: Sequence[int], memory: int, say: Callable[[str], None] = lambda _: None
) -> Scaling:
    """Every matrix of the model once in turn and once in groups on each number of cores."""
    if torch.device(plan.device) != _CPU:
        raise OptionError("--cores measures processors; leave out --device")
    runs: dict[str, Run] = {}
    measured: dict[str, Matrix] = {}
    for shape in plan.shapes:
        say(f"{shape.name} on one core")
        runs[shape.name] = prepare(OURS, make_inputs(plan.problem(shape), _CPU), plan.recipe)
        measured[shape.name] = _measured(plan, shape, runs[shape.name])
    ordered = [measured[shape.name] for shape in in_mergekits_order(plan.shapes)]
    results: list[Scaled] = []
    for count in cores:
        say(f"all {len(ordered)} matrices on {count} cores")
        if count <= plan.threads:
            results.append(_merged(ordered, runs, count, memory))
        else:
            results.append(replayed(ordered, count, memory))
    whole = sum(matrix.seconds for matrix in ordered)
    return Scaling(this_machine(plan.device), plan.as_dict(), list(measured.values()), whole, memory, results)


def in_mergekits_order(shapes: Sequence[MatrixShape]) -> list[MatrixShape]:
    """Every matrix as often as the model has it, as mergekit comes to them."""
    of_role = {role: shape for shape in shapes for role in shape.roles}
    layers = max((s.count // len(s.roles) for s in shapes if "q_proj" in s.roles), default=0)
    outside = [of_role[role] for role in ("lm_head", "embed_tokens") if role in of_role]
    inside = [of_role[role] for role in _LAYER if role in of_role] * layers
    return outside + inside + [shape for shape in shapes if not shape.roles for _ in range(shape.count)]


def _measured(plan: ComparisonPlan, shape: MatrixShape, run: Run) -> Matrix:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [_processor_seconds(run) for _ in range(_RUNS)]
        ranks = [max(1, min(shape.rows, shape.columns) // plan.experts)] * plan.experts
        sides = decomposed_sides(min(shape.rows, shape.columns), ranks)
        of_side = {side: _eigh_seconds(side) for side in set(sides)}
    finally:
        torch.set_num_threads(threads)
    dtype = DTYPES[plan.dtype]
    inputs = (plan.experts + 1) * shape.elements * dtype.itemsize
    need = matrix_bytes((shape.rows, shape.columns), dtype, plan.experts, plan.recipe.spectral()) + inputs
    seconds = median(times)
    eigh = min(seconds, sum(of_side[side] for side in sides))
    return Matrix(shape.name, seconds, eigh, plan.experts, need, inputs, shape.elements * dtype.itemsize)


def _processor_seconds(work: Callable[[], object]) -> float:
    """Of this thread: what else runs on the machine does not count."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def _eigh_seconds(side: int) -> float:
    matrix = torch.randn(side, side, dtype=torch.float64)
    gram = matrix @ matrix.T
    return min(_processor_seconds(lambda: eigh_in_place(gram.clone())) for _ in range(_RUNS))


def _merged(matrices: Sequence[Matrix], runs: dict[str, Run], cores: int, memory: int) -> Scaled:
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        start = time.perf_counter()
        for matrix in matrices:
            runs[matrix.name]()
        in_turn = time.perf_counter() - start
        flow = flow_on(_CPU)
        if flow is None:
            return Scaled(cores, False, in_turn, 1.0, in_turn)
        works = [partial(_discarded, runs[matrix.name]) for matrix in matrices]
        seconds, busy = _in_groups(flow, matrices, works, works, memory)
    finally:
        torch.set_num_threads(threads)
    return Scaled(cores, False, seconds, busy / (cores * seconds), in_turn)


def _discarded(run: Run) -> None:
    run()


def replayed(matrices: Sequence[Matrix], cores: int, memory: int) -> Scaled:
    """The schedule on more cores than there are."""
    scale = cores * _SHORTEST_REPLAY / sum(matrix.seconds for matrix in matrices)
    threads = torch.get_num_threads()
    pool = Pool(cores, 1)
    torch.set_num_threads(threads)  # a pool changes what threads inherit
    try:
        beside = [partial(time.sleep, scale * matrix.seconds) for matrix in matrices]
        alone = [partial(time.sleep, scale * matrix.alone_seconds(cores)) for matrix in matrices]
        seconds, _ = _in_groups(Flow(pool), matrices, beside, alone, memory)
    finally:
        pool.shutdown()
    work = scale * sum(matrix.seconds for matrix in matrices)
    in_turn = sum(matrix.alone_seconds(cores) for matrix in matrices)
    return Scaled(cores, True, seconds / scale, work / (cores * seconds), in_turn)


def _in_groups(
    flow: Flow,
    matrices: Sequence[Matrix],
    beside: Sequence[Callable[[], object]],
    alone: Sequence[Callable[[], object]],
    memory: int,
) -> tuple[float, float]:
    """mergekit's executor on this schedule: seconds, and seconds in which a core had work. Alone, all have."""
    room, lock, busy = room_within(memory), Lock(), [0.0]
    sizes = [matrix.result for matrix in matrices]
    last = last_begun(sizes, int(WAITING_SHARE * room))
    begun: dict[int, Begun] = {}

    def timed(work: Callable[[], object], cores: int) -> None:
        start = time.perf_counter()
        work()
        with lock:
            busy[0] += cores * (time.perf_counter() - start)

    start, fetched = time.perf_counter(), 0
    for i, matrix in enumerate(matrices):
        if runs_alone(matrix.need, matrix.result / sum(sizes), room, flow.workers):
            flow.wait_for_room(matrix.need, room)
            timed(alone[i], flow.workers)
        else:
            begun[i] = flow.begin(partial(timed, beside[i], 1), matrix.need, room, matrix.inputs)
        while fetched <= i and last[fetched] == i:
            if fetched in begun:
                begun.pop(fetched).result()
            fetched += 1
    return time.perf_counter() - start, busy[0]


def scaling_lines(scaling: Scaling, *, markdown: bool) -> list[str]:
    """The whole report, ready to be printed."""
    chosen = scaling.settings
    rows = [
        [
            f"{found.cores}{' (replayed)' if found.is_replayed else ''}",
            seconds_text(found.in_turn_seconds),
            seconds_text(found.seconds),
            f"{found.in_turn_seconds / found.seconds:.2f}",
            f"{scaling.one_core_seconds / found.seconds:.1f}",
            f"{100 * found.busy:.0f} %",
        ]
        for found in scaling.results
    ]
    headers = ["cores", "one after the other", "in groups", "times as fast", "as on one core", "cores busy"]
    table = Table(headers, rows)
    return [
        *machine_lines(scaling.machine, chosen["threads"]),
        f"{chosen['method']}, n = {chosen['experts']}, {chosen['dtype']}, updates: {chosen['update']}; "
        f"{scaling.memory / 1e9:.1f} GB for what is merged at once",
        "On one core: " + ", ".join(f"{matrix.name} {seconds_text(matrix.seconds)}" for matrix in scaling.matrices),
        "",
        table.as_markdown() if markdown else table.as_text(),
    ]
