"""What the singular values and vectors tell: how concentrated an update is, and where experts get in each other's way.

With delta_i = U_i S_i V_i^T, tall side up, cut to the leading ranks, U = [U_1 .. U_n], V = [V_1 .. V_n]:

    overlap         |A^T B|_F^2 / min(a, b) for orthonormal bases A, B of a and b columns: the mean squared cosine of
                    the principal angles; 0 for orthogonal subspaces, 1 for equal ones, by chance max(a, b) / rows
    interference    STI = |(U^T U - I) S (V^T V - I)|_1, the sum of absolute entries (arXiv 2412.00081)
    over-counting   s_r = <a_r, a_r^i> / |a_r^i|^2 with a_r = u_r^T D_m, a_r^i = u_r^T D_i (arXiv 2602.05536)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, orthonormal_columns
from mergekit_3h.kernels.tasks import TaskMatrices

SMALLEST_PART = 1e-12
"""Of |a_r|^2: an expert with less of a direction than that has none of it. The paper cuts |a_r^i|^2 itself there, which
updates of another size would notice."""

POWER_STEPS = 4
"""Of the block power iteration that finds the leading directions of a sum of updates. Those directions are where s_r is
looked at, not a result: s_r is exact for whichever they are."""


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of s / sum(s) (Roy and Vetterli): r for r equal singular values, 0 for none."""
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


def energy_share(values: Tensor, k: int) -> float:
    """Of the squared singular values, the share of the ``k`` largest; ``values`` are all of them, descending."""
    total = float(values.square().sum())
    return float(values[:k].square().sum()) / total if total > 0 else 0.0


def energy_above(values: Tensor, edge: float) -> float:
    """Of the squared singular values, the share of those above ``edge``: what stands out of rounding noise."""
    return energy_share(values, int((values > edge).sum()))


def subspace_overlap(a: Tensor, b: Tensor) -> float:
    """Mean squared cosine of the principal angles between the column spaces of two orthonormal bases."""
    smaller = min(a.shape[1], b.shape[1])
    return float((a.T @ b).square().sum()) / smaller if smaller else 0.0


def interference(left_gram: Tensor, values: Tensor, right_gram: Tensor) -> float:
    """STI of U^T U, the singular values of all experts side by side, and V^T V."""
    identity = torch.eye(len(values), dtype=values.dtype, device=values.device)
    return float((((left_gram - identity) * values) @ (right_gram - identity)).abs_().sum())


def relative_interference(left_gram: Tensor, values: Tensor, right_gram: Tensor) -> float:
    """STI over the sum of the singular values: (n - 1)^2 for n equal experts, 0 for orthogonal ones."""
    total = float(values.sum())
    return interference(left_gram, values, right_gram) / total if total > 0 else 0.0


def over_counting(rows: Sequence[Tensor]) -> Tensor:
    """s_r^i (experts x directions) of the sum of all updates; ``rows[i]`` holds a_r^i for every direction r.

    1 where an expert is alone in its direction, n where n experts agree, below 1 where others pull against it, 0 where
    it has nothing there.
    """
    total = torch.stack(list(rows)).sum(0)
    least = (SMALLEST_PART * total.square().sum(1)).clamp_min(torch.finfo(total.dtype).tiny)
    return torch.stack([(total * own).sum(1) / torch.maximum(own.square().sum(1), least) for own in rows])


def left_vectors(tasks: TaskMatrices, i: int, right: Tensor) -> Tensor:
    """U_i = delta_i V_i with its columns normalised."""
    left = torch.cat([block @ right for block in tasks.blocks(i)])
    norms = left.square().sum(0).sqrt_()
    return left.div_(torch.where(norms > 0, norms, 1.0))


def left_gram(tasks: TaskMatrices, rights: Sequence[Tensor]) -> Tensor:
    """U^T U of the normalised left vectors of all tasks, a block of rows at a time."""
    width = sum(right.shape[1] for right in rights)
    gram = torch.zeros(width, width, dtype=torch.float64, device=tasks.device)
    for rows in tasks.row_spans():
        panel = torch.cat([tasks.block(i, rows) @ right for i, right in enumerate(rights)], dim=1)
        gram.addmm_(panel.T, panel)
    norms = gram.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    return gram.div_(norms).div_(norms[:, None])


def directions_of_sum(tasks: TaskMatrices, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` leading left vectors of the sum of all updates, and its singular values there."""
    width = min(tasks.columns, 2 * count)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(tasks.columns, width, generator=generator, dtype=torch.float64).to(tasks.device)
    basis = orthonormal_columns(start)
    for _ in range(POWER_STEPS):
        basis = orthonormal_columns(_transposed_times(tasks, _sum_times(tasks, basis)))
    image = _sum_times(tasks, basis)
    squares, rotation = eigh_in_place(image.T @ image)
    leading = rotation.flip(1)[:, :count]
    values = squares.flip(0)[:count].clamp_min(0).sqrt()
    return (image @ leading).div_(torch.where(values > 0, values, 1.0)), values


def rows_in_directions(tasks: TaskMatrices, left: Tensor) -> list[Tensor]:
    """a_r^i = u_r^T delta_i of every task, for the directions u_r in the columns of ``left``."""
    found = []
    for i in range(len(tasks)):
        rows = torch.zeros(left.shape[1], tasks.columns, dtype=torch.float64, device=tasks.device)
        for span, block in zip(tasks.row_spans(), tasks.blocks(i), strict=True):
            rows.addmm_(left[span].T, block)
        found.append(rows)
    return found


def _sum_times(tasks: TaskMatrices, vectors: Tensor) -> Tensor:
    """sum_i delta_i, times vectors."""
    image = torch.zeros(tasks.rows, vectors.shape[1], dtype=torch.float64, device=tasks.device)
    for rows in tasks.row_spans():
        for i in range(len(tasks)):
            image[rows] += tasks.block(i, rows) @ vectors
    return image


def _transposed_times(tasks: TaskMatrices, vectors: Tensor) -> Tensor:
    image = torch.zeros(tasks.columns, vectors.shape[1], dtype=torch.float64, device=tasks.device)
    for rows in tasks.row_spans():
        for i in range(len(tasks)):
            image.addmm_(tasks.block(i, rows).T, vectors[rows])
    return image
