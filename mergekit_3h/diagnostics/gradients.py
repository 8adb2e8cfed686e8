"""Whether the experts pull the losses the same way: cosines between the gradients of their losses on the same records.

Each expert is loaded once, alone, and passed over the records of each set once. Its gradients go to files, so that no
more than one model is in memory however many experts there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mergekit_3h.checkpoints.opening import load_model
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.data.records import DataError
from mergekit_3h.diagnostics.rows import all_pairs
from mergekit_3h.diagnostics.subjects import InspectedModels
from mergekit_3h.errors import ModelError
from mergekit_3h.losses.answers import tokenized
from mergekit_3h.losses.objective import Objective
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import LocatedRecord, by_set
from mergekit_3h.losses.tokenizers import shared_tokenizer


@dataclass(frozen=True)
class GradientCosine:
    """Two experts, named by their position, on the records of one set."""

    set_name: str
    first: int
    second: int
    cosine: float
    by_tensor: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def gradient_cosines(
    subject: InspectedModels, objective: Objective, options: LossOptions, device: str = "cpu"
) -> list[GradientCosine]:
    """For every set of the records and every pair of experts."""
    folders = subject.folders[1:]
    with TemporaryDirectory(prefix="gradients-") as scratch:
        for number, folder in enumerate(folders):
            _write_gradients(load_model(folder, options.dtype, device).eval(), objective, Path(scratch), number)
        return [_compared(Path(scratch), name, i, j) for name in objective.sizes for i, j in all_pairs(len(folders))]


def objective_of(subject: InspectedModels, records: Sequence[LocatedRecord], options: LossOptions) -> Objective:
    """The records as the experts' common tokenizer reads them; raises for those from which no loss can be taken."""
    tokenizers = {name: load_tokenizer(path) for name, path in zip(subject.labels, subject.folders[1:], strict=True)}
    tokenizer = shared_tokenizer(tokenizers, options.chat_template)
    sets = by_set(records, needed=())
    if not sets:
        raise DataError(f"none of the {len(records)} records has a response, from which a loss could be taken")
    answers = {name: tokenized(members, tokenizer, options, options.max_length) for name, members in sets.items()}
    return Objective(answers, options.batch_size)


def _write_gradients(model: nn.Module, objective: Objective, scratch: Path, number: int) -> None:
    """A file for each set, with the gradient of the set's mean loss by every parameter."""
    from safetensors.torch import save_file

    for name in objective.sizes:
        model.zero_grad(set_to_none=True)
        for at, batch in enumerate(objective.batches):
            if batch.set_name == name:
                objective.part(model, at, collect=list)  # the backward pass adds to what earlier batches left
        found = {each: p.grad for each, p in model.named_parameters() if p.grad is not None}
        if not all(bool(gradient.isfinite().all()) for gradient in found.values()):
            raise ModelError(f"the gradient of expert {number + 1} on the set {name!r} is not finite")
        save_file({each: g.float().contiguous().cpu() for each, g in found.items()}, scratch / f"{name}-{number}")
    model.zero_grad(set_to_none=True)


def _compared(scratch: Path, name: str, i: int, j: int) -> GradientCosine:
    from safetensors import safe_open

    dots, squares = dict[str, float](), [dict[str, float](), dict[str, float]()]
    with safe_open(scratch / f"{name}-{i}", "pt") as first, safe_open(scratch / f"{name}-{j}", "pt") as second:
        shared = [each for each in first.keys() if each in set(second.keys())]  # noqa: SIM118 (no dict)
        for each in shared:
            a, b = (file.get_tensor(each).double().flatten() for file in (first, second))
            dots[each] = float(a @ b)
            for own, gradient in zip(squares, (a, b), strict=True):
                own[each] = float(gradient @ gradient)
    by_tensor = {each: _cosine(dot, squares[0][each], squares[1][each]) for each, dot in dots.items()}
    whole = _cosine(sum(dots.values()), sum(squares[0].values()), sum(squares[1].values()))
    return GradientCosine(name, i, j, whole, by_tensor)


def _cosine(dot: float, first: float, second: float) -> float:
    return dot / math.sqrt(first * second) if first * second > 0 else 0.0
