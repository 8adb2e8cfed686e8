"""What a merge leaves behind where the option ``record`` names a folder: a line for each tensor, written at once.

The file is that of the last merge into the folder: a merge begins when a process writes there for the first time, or
when a tensor comes again. A merge that is continued keeps the lines of what was finished before.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergekit_3h.diagnostics.lines import GrowingLines, LinesError, read_lines
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS_ON_DEVICE
from mergekit_3h.kernels.values import floats
from mergekit_3h.kernels.workers import spans

if TYPE_CHECKING:
    from mergekit_3h.spectral.method import SpectralMethod
    from mergekit_3h.spectral.tensors import MergedTensor, Watcher

RECORD = "record.jsonl"
FORMAT = 1

BLOCK_ELEMENTS = 1 << 18
"""Elements looked at at once on a CPU, in four blocks of 1 MB for float32. On shapes of a small model that took a third
less time than a quarter of it, where the calls count, and 7 % more than twice of it."""


@dataclass(frozen=True)
class MatrixOutcome:
    """What became of the experts' updates and of the weights in one tensor."""

    surviving: list[float]
    """<M, D_i> / |D_i|^2 for each expert: 1 where the merged update M holds all of D_i, 0 where it holds none, and for
    an expert without an update."""
    changed: float
    """Share of the weights that are not the base's."""
    rounded_away: float
    """Share of the weights that the merge changed, and that the dtype of the result gave back."""
    rounding_distance: float
    """How far rounding the result moved the merged update, relative to its size."""


def outcome(base: Tensor, experts: Sequence[Tensor], exact: Tensor, result: Tensor) -> MatrixOutcome:
    """``exact`` is base and update before they were rounded to the ``result``. One pass, a block at a time."""
    device, elements, is_rounded = computing_device(base.device), base.numel(), result.dtype != exact.dtype
    step = BLOCK_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE
    memory = torch.empty(4, min(step, elements), dtype=exact.dtype, device=device)
    sums = torch.zeros(2 * len(experts) + 4, dtype=torch.float64, device=device)
    flat = [tensor.reshape(-1) for tensor in (base, exact, result, *experts)]
    for part in spans(elements, step):
        base_part, exact_part, result_part, *expert_parts = (tensor[part] for tensor in flat)
        start, update, other, scratch = memory[:, : exact_part.numel()]
        unrounded = exact_part.to(device)
        torch.sub(unrounded, start.copy_(base_part), out=update)
        terms = [update @ update, _differing(unrounded, start, scratch)]
        if is_rounded:
            torch.sub(scratch.copy_(result_part), unrounded, out=other)
            terms += [other @ other, _differing(scratch, start, other)]
        else:
            terms += [update.new_zeros(()), terms[1]]
        for expert_part in expert_parts:
            delta = other.copy_(expert_part).sub_(start)
            terms += [update @ delta, delta @ delta]
        sums += torch.stack(terms)
    square, moving, rounding, changed, *products = floats(sums)
    return MatrixOutcome(
        surviving=[_ratio(dot, own) for dot, own in zip(products[::2], products[1::2], strict=True)],
        changed=_ratio(changed, elements),
        rounded_away=_ratio(moving - changed, elements),  # what the merge left alone, rounding leaves alone
        rounding_distance=_ratio(rounding, square) ** 0.5,
    )


def _differing(one: Tensor, other: Tensor, memory: Tensor) -> Tensor:
    """How many entries are not the same: a count, though in floats, which is several times faster than of booleans."""
    return torch.ne(one, other, out=memory).sum()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


class MergeRecord:
    """The file of one folder, as long as the process lives."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / RECORD
        self._lock = threading.Lock()
        self._restart(folder)

    def _opened(self) -> GrowingLines:
        try:
            return GrowingLines(self._file)
        except OSError as error:
            raise OptionError(f"option 'record': cannot write to {self._file.parent}: {error.strerror}") from error

    def _restart(self, folder: Path) -> None:
        """With the lines of the tensors that this merge has finished in another process, and no others."""
        header, lines = read_record(folder) if _finished and self._file.is_file() else ({}, {})
        self._lines = self._opened()
        self._lines.restart()
        kept = {name: line for name, line in lines.items() if name in _finished}
        self._seen = set(kept)
        for line in (header, *kept.values()) if kept else ():
            self._lines.append(line)

    def add(self, merged: MergedTensor, method: SpectralMethod, models: Sequence[str]) -> None:
        line = _line(merged, method)
        with self._lock:
            if merged.name in self._seen:
                self._seen.clear()
                if not self._file.exists():  # somebody removed the record of the merge before
                    self._lines = self._opened()
                self._lines.restart()
            if not self._seen:
                self._lines.append({"format": FORMAT, "method": method.name, "models": list(models)})
            self._seen.add(merged.name)
            self._lines.append(line)


def _line(merged: MergedTensor, method: SpectralMethod) -> dict[str, Any]:
    report = asdict(merged.report) if is_dataclass(merged.report) else {}  # type: ignore[arg-type]
    inputs = [merged.base, *merged.experts]
    line = {
        "tensor": merged.name,
        "lambda": method.lambda_,
        "weights": list(merged.weights),
        **report,
        **({} if merged.gate is None else asdict(merged.gate)),
        **asdict(outcome(merged.base, merged.experts, merged.exact, merged.result)),
        "bytes": sum(tensor.nbytes for tensor in inputs) + merged.result.nbytes,
        "seconds": merged.seconds,
    }
    return {key: _as_json(value) for key, value in line.items()}


def _as_json(value: Any) -> Any:
    """JSON has no infinity, which a residual or a condition may be: null says that there is no bound."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value


def watcher(method: SpectralMethod, models: Sequence[str]) -> Watcher | None:
    """What ``merge_tensor`` calls with each tensor of this merge, if the method's options ask for a record."""
    if not method.record:
        return None
    with _opening:  # hosts merge several tensors at once, and the file has one writer
        record = _record(str(Path(method.record).expanduser().resolve()))
    return lambda merged: record.add(merged, method, models)


_opening = threading.Lock()
_finished: frozenset[str] = frozenset()


@contextmanager
def continued_record(finished: Iterable[str]) -> Generator[None]:
    """Records that are opened meanwhile are of a merge that has finished these tensors already."""
    global _finished
    before, _finished = _finished, frozenset(finished)
    _record.cache_clear()  # of a merge before in this process
    try:
        yield
    finally:
        _finished = before


@cache
def _record(folder: str) -> MergeRecord:
    return MergeRecord(Path(folder))


def record_of(folder: Path, experts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The lines of a merge of these experts, by tensor; an error if it merged others."""
    header, lines = read_record(folder)
    models = [str(model) for model in header.get("models", ())]
    if len(models) != len(experts) or not all(map(_is_same_model, models, experts)):
        raise LinesError(
            f"{folder / RECORD} is of a merge of {', '.join(models)}; expected {', '.join(experts)}, in this order"
        )
    return lines


def _is_same_model(recorded: str, inspected: str) -> bool:
    """FusionBench records the names of its pool, which may be anything: then the number of experts has to do."""
    return recorded == inspected or "/" not in recorded or Path(recorded).resolve() == Path(inspected).resolve()


def read_record(folder: Path) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """What the merge was, and the line of each tensor."""
    file = folder / RECORD
    if not file.is_file():
        raise LinesError(f"{folder} holds no {RECORD}; expected the folder that the option `record` of a merge named")
    lines = read_lines(file)
    header = next(lines, {})
    if header.get("format") != FORMAT:
        raise LinesError(f"{file} is no record that this version of mergekit-3h reads")
    return header, {str(line.get("tensor")): line for line in lines}
