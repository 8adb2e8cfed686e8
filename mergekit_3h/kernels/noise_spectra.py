"""Leading singular triplets of a rounded task matrix, as exact as its rounding is worth.

There is no gap in the spectrum at the rounding edge e, so an iteration does not find the subspace above it to many
digits, nor are there any: rounding alone put a matrix of spectral norm e into delta. What is found here is exact for a
matrix that differs from delta by a small share of that. With V orthonormal, G = delta^T delta, Theta = V^T G V diagonal
and R = G V - V Theta,

    delta - F,    F = U (R Theta^(-1/2))^T,    U = delta V Theta^(-1/2),

has the singular triplets (U, Theta^(1/2), V) exactly, and |F| = |R Theta^(-1/2)|. They are the leading ones if G has no
eigenvalue on the complement of V that is larger, for which it is enough that c I - (G - V Theta V^T) has a Cholesky
factor, c being (e + the allowed |F|)^2, or with a smaller rank the same beyond its last singular value.

The subspace is that of a block of vectors under Chebyshev polynomials of G, which are small on [0, s] and grow fastest
above it, with Ritz pairs in between. How wide the block has to be is told by the Krylov space of a few random vectors:
the average weight of these in the Ritz vectors is the density of the spectrum. Where too many singular values reach
beyond the edge, it ends there, after a few percent of what the full decomposition takes.

All is in units of e, in float32 where that is enough: its error in G, 1e-7 of the largest eigenvalue, counts in R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, is_positive_definite, orthonormal_columns
from mergekit_3h.kernels.devices import has_float32
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.spectra import Spectrum, likely_values, random_vectors

SHARE = 0.02
"""|F| as a share of the edge, in the Frobenius norm."""

LARGEST_SQUARE = 1e4
"""|delta|^2 over e^2 up to which float32 is enough: the edge's own eigenvalue, 1, then has three digits."""

FIRST_VECTORS = 24
"""The columns of delta divided by the vectors of a Krylov block."""

FIRST_BLOCKS = 3
"""Blocks of the Krylov space. On SmolLM2's matrices 10 to 94 values beyond the edge looked like 10 to 115."""

WIDEST = 4
"""The columns of delta divided by the most vectors of a block: beyond it a full decomposition costs no more."""

UNSURE = 1.4
"""Most that the likely rank, where it is large, was seen to be above the true one."""

GUARDS = 0.3
"""Vectors of a block beyond the rank, as a share of it: what lies next under the rank stays in the block."""

FEWEST_GUARDS = 8

DAMPED = (0.75, 0.97)
"""Ends of where s may be, in units of the smallest wanted eigenvalue; in between it is the block's smallest one."""

LARGEST_GROWTH = 1e10
"""Of a polynomial over its values on [0, s]: the error of the largest directions grows by as much in each round."""

DEGREES = (2, 6)
MOST_ROUNDS = 8


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of G in the span of orthonormal rows: values, descending, vectors as rows, and these times G."""

    values: Tensor
    vectors: Tensor
    images: Tensor

    def first(self, count: int) -> Ritz:
        return Ritz(self.values[:count], self.vectors[:count], self.images[:count])

    @property
    def perturbation(self) -> float:
        """|R Theta^(-1/2)|."""
        residuals = torch.addcmul(self.images, self.vectors, self.values[:, None], value=-1)
        return float((residuals.square_().sum(1) / self.values).sum().sqrt())


def enough_precision(total_square: float, edge: float, device: torch.device) -> torch.dtype:
    """In which to form G, for the sum of the squares of delta's entries."""
    return torch.float32 if has_float32(device) and total_square <= LARGEST_SQUARE * edge**2 else torch.float64


def is_narrow(likely_rank: int, columns: int) -> bool:
    """Whether this may be cheaper than the full decomposition."""
    return _width(likely_rank) <= UNSURE * (columns // WIDEST)


def noise_spectrum(gram: Tensor, rule: RankRule, share: float = SHARE) -> Spectrum | None:
    """The kept singular triplets, those of a matrix that differs from delta by ``share`` of the rule's noise edge.

    ``gram`` is the upper triangle of delta^T delta, and left as it is. There is ``None`` where too many singular values
    reach beyond the edge for this to be cheap, or where none does.
    """
    edge = rule.noise_edge
    total_square = float(gram.diagonal().sum(dtype=torch.float64))
    unit = _in_units(gram, edge, torch.float32 if has_float32(gram.device) else torch.float64)

    def rank_of(squares: Tensor, total: float) -> int:
        return rule(squares.to(torch.float64).clamp_min(0).sqrt() * edge, total)

    ritz, likely = _first_look(unit)
    likely_rank, widest = rank_of(likely, float(likely.sum()) * edge**2), unit.shape[0] // WIDEST
    if not is_narrow(likely_rank, unit.shape[0]):
        return None
    if unit.dtype != gram.dtype:
        unit = _in_units(gram, edge, gram.dtype)
        ritz = _ritz(ritz.vectors.to(gram.dtype), unit)
    width = min(_width(likely_rank), widest)
    for _ in range(MOST_ROUNDS):
        if width > widest or float(ritz.values[0]) <= 1:
            return None
        rank = rank_of(ritz.values, total_square)
        kept = ritz.first(rank)
        least = 1.0 if rank == int((ritz.values > 1).sum()) else float(kept.values[-1])
        off = kept.perturbation
        if off <= share and _has_no_other(unit, kept, (math.sqrt(least) + share) ** 2):
            right = orthonormal_columns(kept.vectors.T.to(torch.float64))
            values = kept.values.to(torch.float64).sqrt() * edge
            return Spectrum(values, right, total_square, "within rounding", math.inf, off)
        width = max(width, _width(rank))
        ritz = _ritz(_filtered(unit, _widened(unit, ritz, width), least), unit)
    return None


def _in_units(gram: Tensor, edge: float, dtype: torch.dtype) -> Tensor:
    """The whole of G over e^2, from its upper triangle."""
    unit = gram.to(dtype).triu().div_(edge**2)
    return unit.add_(unit.triu(1).T)


def _width(rank: int) -> int:
    return rank + max(FEWEST_GUARDS, math.ceil(GUARDS * rank))


def _first_look(unit: Tensor) -> tuple[Ritz, Tensor]:
    """The Ritz pairs of a small Krylov space, and likely eigenvalues of G."""
    columns = unit.shape[0]
    first = block = _orthonormal(random_vectors(max(FEWEST_GUARDS, columns // FIRST_VECTORS), columns, unit))
    basis, images = block, block @ unit
    for _ in range(FIRST_BLOCKS - 1):
        block = images[-first.shape[0] :]
        for _ in range(2):  # which is enough
            block = _orthonormal(block - (block @ basis.T) @ basis)
        basis, images = torch.cat([basis, block]), torch.cat([images, block @ unit])
    ritz = _rotated(basis, images)
    return ritz, likely_values(ritz.values, ritz.vectors @ first.T, columns)


def _ritz(rows: Tensor, unit: Tensor) -> Ritz:
    basis = _orthonormal(rows)
    return _rotated(basis, basis @ unit)


def _rotated(basis: Tensor, images: Tensor) -> Ritz:
    values, turned = eigh_in_place(images @ basis.T)
    turned = turned.flip(1).T
    return Ritz(values.flip(0), turned @ basis, turned @ images)


def _widened(unit: Tensor, ritz: Ritz, width: int) -> Ritz:
    """The leading ``width`` vectors; where there are fewer, random ones with them, of no known value."""
    missing = width - ritz.values.numel()
    if missing <= 0:
        return ritz.first(width)
    more = random_vectors(missing, unit.shape[0], unit)
    more = _orthonormal(more - (more @ ritz.vectors.T) @ ritz.vectors)
    return Ritz(ritz.values, torch.cat([ritz.vectors, more]), torch.cat([ritz.images, more @ unit]))


def _filtered(unit: Tensor, block: Ritz, least: float) -> Tensor:
    """The block's vectors under the Chebyshev polynomial of [0, s], s being below ``least``."""
    is_known = block.values.numel() == block.vectors.shape[0]
    smallest = float(block.values[-1]) if is_known else 0.0
    middle = min(max(smallest, DAMPED[0] * least), DAMPED[1] * least) / 2
    growth = math.acosh(float(block.values[0]) / middle - 1)
    degree = min(max(int(math.log(2 * LARGEST_GROWTH) / growth), DEGREES[0]), DEGREES[1])
    before, now = block.vectors, block.images / middle - block.vectors
    for _ in range(degree - 1):
        before, now = now, torch.addmm(now.mul(2).add_(before), now, unit, beta=-1, alpha=2 / middle)
    return now


def _has_no_other(unit: Tensor, kept: Ritz, most: float) -> bool:
    """Whether G has no eigenvalue beyond ``most`` on the complement of what is kept."""
    rest = torch.addmm(unit, kept.vectors.T * kept.values, kept.vectors, alpha=-1).neg_()
    rest.diagonal().add_(most)
    return is_positive_definite(rest)


def _orthonormal(rows: Tensor) -> Tensor:
    return orthonormal_columns(rows.T).T
