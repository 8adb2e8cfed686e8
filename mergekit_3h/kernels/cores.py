"""What stands between the two orthonormal sides: the core X of M = U X V^T.

TSVM, DC-Merge (arXiv 2603.06242) and SCORE (arXiv 2603.05768) have the same sides, the polar factors U of [U_1 .. U_n]
and V of [V_1 .. V_n]. TSVM's core is diag(S_1, .., S_n). The two others look at every task in these sides and drop
entries of what they see, of X_i = U^T T_i V with the truncation T_i (``dc``), or of X_i = U^T D_i V (``score``):

    dc      the ``keep`` largest of X_i stay; of those at one place in several X_i the ones with the sign of their sum,
            divided by how many they are; and of all that the blocks on the diagonal, one for each task
    score   entries off the diagonal stay up to ``deviations`` times their root mean square

What is dropped does not depend on the weights, so M = sum_i w_i U X_i V^T is linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mergekit_3h.kernels.factors import PANEL_ROWS, SingularFactors
from mergekit_3h.kernels.polar import PolarFactors
from mergekit_3h.kernels.ranks import EPSILON_FLOAT32
from mergekit_3h.kernels.workers import run_all, spans

TIE = 1e-6
"""An entry that comes this close to the smallest one kept stays with it. Equal experts have equal entries, which only
rounding tells apart."""


@dataclass(frozen=True)
class Core:
    """Which entries of the X_i stay."""

    kind: Literal["dc", "score"]
    keep: float
    """Share of the entries of each X_i."""
    deviations: float


class CoredFactors(PolarFactors):
    """``Shares`` U X_i V^T."""

    def __init__(self, factors: SingularFactors, ranks: Sequence[int], core: Core) -> None:
        super().__init__(factors, ranks)
        self.cores = self._images()

        def look(i: int) -> None:
            right, own = self._v_perp_t(slice(0, self.tasks.columns)).T, factors.right[:, self.kept[i]]
            if core.kind == "dc":
                self.cores[i] = (self.cores[i] @ own) @ (own.T @ right)
            else:
                self.cores[i] = self.cores[i] @ right

        run_all(self.tasks.device, [partial(look, i) for i in range(len(self.cores))])
        if core.kind == "dc":
            elect(self.cores, core.keep, self.kept)
        else:
            run_all(self.tasks.device, [partial(prune, each, core.deviations) for each in self.cores])

    def _images(self) -> list[Tensor]:
        """U^T D_i of every task."""
        factors, tasks = self.factors, self.tasks
        images = [factors.right.new_zeros(factors.width, tasks.columns) for _ in range(len(tasks))]
        if factors.is_left_wide:
            whole = (self._left_whitener @ factors.left_panel(slice(0, tasks.rows)).div_(self._norms)).T
            return [whole @ tasks.block(i, slice(0, tasks.rows)) for i in range(len(tasks))]
        for rows in spans(tasks.rows, PANEL_ROWS):
            panel = factors.left_panel(rows)

            def add(i: int, rows: slice = rows, panel: Tensor = panel) -> None:
                images[i].addmm_(panel.T, tasks.block(i, rows))

            run_all(tasks.device, [partial(add, i) for i in range(len(tasks))])

        def whiten(i: int) -> None:
            images[i] = self._left_whitener @ images[i].div_(self._norms[:, None])

        run_all(tasks.device, [partial(whiten, i) for i in range(len(tasks))])
        return images

    def _times_core(self, scales: Sequence[float]) -> Callable[[Tensor], Tensor]:
        whole = torch.zeros_like(self.cores[0])
        for each, scale in zip(self.cores, scales, strict=True):
            whole.add_(each, alpha=scale)
        return lambda part: whole @ part

    def share(self, i: int) -> tuple[Tensor, Tensor]:
        """U and X_i V^T."""
        right = self.cores[i] @ self._v_perp_t(slice(0, self.tasks.columns))
        return self._left_columns(slice(0, self.factors.width)), right


def elect(cores: Sequence[Tensor], keep: float, parts: Sequence[slice]) -> None:
    """``dc``, in place."""
    for each in cores:
        each[each.abs() < _least_kept(each, keep)] = 0
    total = torch.zeros_like(cores[0])
    for each in cores:
        total += each
    sign, agreeing = total.sign(), torch.zeros_like(total)
    for each in cores:
        each[each.sign() != sign] = 0
        agreeing += each != 0
    is_kept = torch.zeros_like(total, dtype=torch.bool)
    for part in parts:
        is_kept[part, part] = True
    agreeing.clamp_min_(1)
    for each in cores:
        each.div_(agreeing).mul_(is_kept)


def _least_kept(core: Tensor, keep: float) -> float:
    """The size from which entries stay. One stays at least, and none that rounding alone explains."""
    sizes = core.abs().flatten()
    if sizes.numel() == 0:
        return 0.0
    nothing = core.shape[0] * EPSILON_FLOAT32 * float(sizes.max())
    count = max(1, math.floor(keep * sizes.numel()))
    if count == sizes.numel():
        return nothing
    return max(nothing, (1 - TIE) * float(sizes.topk(count, sorted=False).values.min()))


def prune(core: Tensor, deviations: float) -> None:
    """``score``, in place."""
    diagonal = core.diagonal().clone()
    core.fill_diagonal_(0)
    others = core.numel() - diagonal.numel()
    if others:
        core[core.abs() > deviations * math.sqrt(float(core.square().sum()) / others)] = 0
    core.diagonal().copy_(diagonal)
