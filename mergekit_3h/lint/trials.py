"""A few matrices of a merge, merged while ``check`` runs. What a matrix takes depends on its values: of 16-bit experts
only the directions that reach beyond the rounding are looked for. Operations counted from its shape do not tell that.

Of every shape a matrix from the middle of the model is merged, then others as long as there is time. One that would
take longer than its share of that is represented by some of its rows and columns, in blocks that are spread over it:
the long side is shortened first, then both, and what the part takes beside the operations of its own shape is taken for
the whole. All cores merge the same matrix side by side, each on one thread, as they share their memory in a merge too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from time import perf_counter, thread_time

import torch
from torch import Tensor

from mergekit_3h.checkpoints.headers import tensor_reader
from mergekit_3h.kernels.room import allowed_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import pool_for
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.planned import PlannedInput, PlannedTensor
from mergekit_3h.lint.planned_merge import PlannedMerge
from mergekit_3h.spectral.gate import Gate
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import require_mergeable

SECONDS = 3.0
"""For all trials of a merge, about; of the clock it may be ``MOST_BY_CLOCK`` times as much, on a busy machine or where
reading is slow."""

MOST_BY_CLOCK = 3

MOST_OF_A_KIND = 8
MUCH_LARGER = 1.5

LEAST_SHARE = 0.01
"""Of the expected time that a kind has to have to be tried."""

ASPECT = 4
"""Long side over short side down to which the long one is shortened alone."""

SHORTEST = 64
BLOCKS = 16

_FLOATS = ("BF16", "F16", "F32", "F64")

log = logging.getLogger(__name__)

CoreSeconds = Callable[[PlannedTensor, tuple[int, int]], float]
"""What one core is expected to take for a matrix of this shape, of all that a tensor has."""


@dataclass
class Kind:
    """Tensors of one shape."""

    tensors: list[PlannedTensor] = field(default_factory=list)
    expected: float = 0.0
    """Core seconds of all of them, by their shapes."""
    tried: float = 0.0
    """The same of what was tried, ..."""
    taken: float = 0.0
    """... and what it took."""
    largest: float = 0.0
    """Of the trials that these are of, what the largest was expected to take."""

    def add(self, expected: float, taken: float) -> None:
        """A trial. What much smaller parts took says less, and is forgotten."""
        if expected > MUCH_LARGER * self.largest:
            self.tried = self.taken = 0.0
        if MUCH_LARGER * expected >= self.largest:
            self.tried, self.taken = self.tried + expected, self.taken + taken
            self.largest = max(self.largest, expected)

    def by_spread(self) -> list[PlannedTensor]:
        """Some of the tensors, the one from the middle first, then those between."""
        count = len(self.tensors)
        places = [i / 2**level for level in range(1, 5) for i in range(1, 2**level, 2)]
        return [self.tensors[at] for at in dict.fromkeys(int(count * place) for place in places)][:MOST_OF_A_KIND]


@dataclass
class Trials:
    """What was tried, and how much longer it took than the operations of its shapes say."""

    kinds: dict[tuple[int, ...], Kind]
    whole: int = 0
    """Matrices that were merged as they are, ..."""
    parts: int = 0
    """... and those of which a part was."""

    def factor(self, tensor: PlannedTensor | None = None) -> float:
        """Of this tensor's kind, or of all that were tried; 1 where nothing was."""
        kind = None if tensor is None else self.kinds.get(tensor.shape)
        if kind is not None and kind.tried:
            return kind.taken / kind.tried
        tried = [each for each in self.kinds.values() if each.tried]
        expected = sum(each.expected for each in tried)
        return sum(each.expected * each.taken / each.tried for each in tried) / expected if expected else 1.0


def trials_of(merge: PlannedMerge, models: Sequence[NamedModel], expected: CoreSeconds, device: str) -> Trials:
    """Of one of our own methods, ``expected`` being what shapes tell. Tensors that some model has as an adapter, in
    another shape or in a file other than safetensors are not tried."""
    trials, readers = Trials({}), {model.name: model for model in models}
    for tensor in merge.plan:
        if merge.options_of(tensor) is not None and _is_readable(tensor, readers):
            kind = trials.kinds.setdefault(tensor.shape, Kind())
            kind.tensors.append(tensor)
            kind.expected += math.prod(tensor.shape[:-2]) * expected(tensor, _matrix_shape(tensor))
    whole = sum(kind.expected for kind in trials.kinds.values())
    worth = [kind for kind in trials.kinds.values() if kind.expected >= LEAST_SHARE * whole]
    worth.sort(key=lambda kind: expected(kind.tensors[0], _matrix_shape(kind.tensors[0])))
    _Trying(merge, readers, expected, torch.device(device), trials).rounds(worth)
    return trials


def _is_readable(tensor: PlannedTensor, models: dict[str, NamedModel]) -> bool:
    stored = [given.stored for given in tensor.inputs]
    return (
        all(each is not None and each.shape == tensor.shape and each.dtype in _FLOATS for each in stored)
        and all(each is not None and each.file.suffix == ".safetensors" for each in stored)
        and not any(models[given.model].lora for given in tensor.inputs)
    )


def _matrix_shape(tensor: PlannedTensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


@dataclass
class _Trying:
    merge: PlannedMerge
    models: dict[str, NamedModel]
    expected: CoreSeconds
    device: torch.device
    trials: Trials
    _readers: dict[str, Callable[[str], Tensor]] = field(default_factory=dict)

    def rounds(self, kinds: Sequence[Kind]) -> None:
        """One of each kind, the smallest first, then another of each, while there is time."""
        end, each = perf_counter() + MOST_BY_CLOCK * SECONDS, SECONDS / max(1, len(kinds))
        taken = 0.0
        for at in range(MOST_OF_A_KIND):
            for kind in kinds:
                if at and (taken > SECONDS or perf_counter() > end):
                    return
                queue = kind.by_spread()
                if at < len(queue):
                    taken += self._try(kind, queue[at], each)

    def _try(self, kind: Kind, tensor: PlannedTensor, most: float) -> float:
        options = self.merge.options_of(tensor)
        assert options is not None
        shape = _part(_matrix_shape(tensor), lambda part: self.expected(tensor, part) * self._factor(kind), most)
        try:
            inputs = [self._stored(given, shape) for given in tensor.inputs]
            need = options.working_bytes(*shape, self.merge.experts(tensor), 4) + sum(each.nbytes for each in inputs)
            taken = self._timed(lambda: self._merged(tensor, inputs, options), need)
        except Exception as error:  # the merge itself would end with it
            log.debug("%s cannot be merged on trial: %s", tensor.name, error)
            return 0.0
        kind.add(self.expected(tensor, shape), taken)
        if shape == _matrix_shape(tensor):
            self.trials.whole += 1
        else:
            self.trials.parts += 1
        return taken

    def _factor(self, kind: Kind) -> float:
        return kind.taken / kind.tried if kind.tried else self.trials.factor()

    def _stored(self, given: PlannedInput, shape: tuple[int, int]) -> Tensor:
        """A matrix as the model has it, cut to a shape."""
        checkpoint = self.models[given.model].checkpoint
        assert checkpoint is not None and given.stored is not None
        if given.model not in self._readers:
            self._readers[given.model] = tensor_reader(checkpoint)
        matrix = self._readers[given.model](given.stored.name)
        if matrix.ndim > 2:
            matrix = matrix.flatten(0, -3)[math.prod(matrix.shape[:-2]) // 2]
        rows, columns = (_spread(whole, part) for whole, part in zip(matrix.shape, shape, strict=True))
        return torch.cat([torch.cat([matrix[r, c] for c in columns], 1) for r in rows])

    def _merged(self, tensor: PlannedTensor, stored: Sequence[Tensor], options: SpectralMethod) -> Tensor:
        """As ``spectral/tensors.py`` does it, but for what it says to the log."""
        wanted = self.merge.config.dtype
        dtype = getattr(torch, wanted.removeprefix("torch.")) if wanted else None
        matrices = [matrix.to(self.device, dtype) for matrix in stored]
        require_mergeable(tensor.name, {str(i): matrix for i, matrix in enumerate(matrices)})
        of_role: dict[str, list[Tensor]] = {"base": [], "expert": [], "unaligned": [], "safety": []}
        for given, matrix in zip(tensor.inputs, matrices, strict=True):
            of_role["base" if self.models[given.model].is_base else self.merge.role(given)].append(matrix)
        [base], experts = of_role["base"], of_role["expert"]
        tasks = TaskMatrices(experts, base)
        if of_role["unaligned"]:
            gate = Gate([""] * len(experts), of_role["unaligned"][0], next(iter(of_role["safety"]), None))
            tasks, _ = gate.tasks(tensor.name, base, experts, options)
        update, _ = options.merge(tasks, [1.0] * len(experts))
        return update.mul_(options.lambda_).add_(base).to(base.dtype)

    def _timed(self, work: Callable[[], object], need: int) -> float:
        """On a CPU a thread's own time, which other programs do not lengthen much."""
        if self.device.type == "cpu":
            pool = pool_for(self.device)
            if pool is None:
                return _thread_seconds(work)
            beside = min(pool.workers, max(1, allowed_bytes() // need))
            return fmean([each.result() for each in [pool.submit(_thread_seconds, work) for _ in range(beside)]])
        start = perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter() - start


def _thread_seconds(work: Callable[[], object]) -> float:
    start = thread_time()
    with torch.no_grad():
        work()
    return thread_time() - start


def _part(shape: tuple[int, int], seconds: Callable[[tuple[int, int]], float], most: float) -> tuple[int, int]:
    """The shape, or as much of it as takes no longer than ``most``."""
    rows, columns = shape
    while seconds((rows, columns)) > most and min(rows, columns) > SHORTEST:
        short = min(rows, columns)
        if max(rows, columns) > ASPECT * short:
            rows, columns = (max(ASPECT * short, side // 2) if side > short else side for side in (rows, columns))
        else:
            smaller = min(0.95, (most / seconds((rows, columns))) ** (1 / 3))
            rows, columns = (max(min(side, SHORTEST), int(smaller * side)) for side in (rows, columns))
    return rows, columns


def _spread(length: int, part: int) -> list[slice]:
    """Blocks that are spread over ``range(length)``, ``part`` together."""
    if part >= length:
        return [slice(0, length)]
    blocks = min(BLOCKS, part)
    ends = [part * i // blocks for i in range(blocks + 1)]
    starts = [length * i // blocks for i in range(blocks)]
    return [slice(start, start + ends[i + 1] - ends[i]) for i, start in enumerate(starts)]
