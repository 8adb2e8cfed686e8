"""How the leading singular triplets of a task matrix are found, as ``decomposition`` and ``tolerance`` say."""

from __future__ import annotations

import math

import torch

from mergekit_3h.kernels.krylov import certified_krylov, fits_subspace, krylov_spectrum
from mergekit_3h.kernels.noise_spectra import enough_precision, is_narrow, noise_spectrum
from mergekit_3h.kernels.ranks import SMALLEST_KRYLOV_SIDE, RankRule
from mergekit_3h.kernels.rounding import delta_square
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.spectra import Spectrum, exact_spectrum, gram_of, spectrum_of_gram
from mergekit_3h.kernels.tasks import TaskMatrices

SMALLEST_KRYLOV_SIDE_BESIDE_NOISE = 1536
"""The same where what is exact to the rounding would do: that needs the Gram matrix, which a Krylov method saves."""

SMALLEST_NOISY_SIDE = 384
"""Columns from which less than the full decomposition pays for a rounded matrix."""

SINE = 1e-6
"""The tolerance where none is given."""


def spectrum_of(tasks: TaskMatrices, i: int, rule: RankRule, settings: Settings) -> Spectrum:
    """Of delta_i, cut to the rank that ``rule`` allows."""
    if settings.decomposition == "exact":
        return exact_spectrum(tasks, i, rule)
    sine = SINE if settings.tolerance is None else settings.tolerance
    if settings.decomposition == "krylov":
        return krylov_spectrum(tasks, i, rule, sine)
    return cheapest_certified(tasks, i, rule, sine, is_rounding_enough=settings.tolerance is None)


def cheapest_certified(
    tasks: TaskMatrices, i: int, rule: RankRule, sine: float = SINE, *, is_rounding_enough: bool = True
) -> Spectrum:
    """By whatever takes least and is known to be within ``sine``, or where rounding limits the rank within that."""
    by_noise = is_rounding_enough and rule.noise_edge > 0 and tasks.columns >= SMALLEST_NOISY_SIDE
    if tasks.device.type != "cpu":
        by_krylov, by_noise = worth_on_accelerator(
            rule, rule.most(_delta_square(tasks, i) if rule.noise_edge > 0 else math.inf), by_noise=by_noise
        )
    else:
        by_krylov = rule.may_be_small
    method = "exact"
    if by_krylov and tasks.columns >= (SMALLEST_KRYLOV_SIDE_BESIDE_NOISE if by_noise else SMALLEST_KRYLOV_SIDE):
        found, expected_rank = certified_krylov(tasks, i, rule, sine)
        if found is not None:
            return found
        method = "exact, krylov not certified"
        by_noise = by_noise and is_narrow(expected_rank, tasks.columns)
    if not by_noise:
        return exact_spectrum(tasks, i, rule, method)
    dtype = enough_precision(_delta_square(tasks, i), rule.noise_edge, tasks.device)
    gram = gram_of(tasks, i, dtype)
    found = noise_spectrum(gram, rule)
    if found is not None:
        return found
    return spectrum_of_gram(gram if dtype == torch.float64 else gram_of(tasks, i), rule, method)


def worth_on_accelerator(rule: RankRule, most: int, *, by_noise: bool) -> tuple[bool, bool]:
    """Whether a Krylov method, and what is exact to the rounding, are tried there for a rank of ``most`` at most.

    A full decomposition takes little there, a tenth of a second for 4096 columns on an H200, and an attempt that ends
    without a certificate two thirds of that. So the rank has to be small for sure; on a CPU the hope is worth more.
    """
    by_krylov = rule.may_be_small and fits_subspace(most, rule.columns)
    return by_krylov, by_noise and is_narrow(most, rule.columns)


def _delta_square(tasks: TaskMatrices, i: int) -> float:
    """From a sample, and no less than it is; only an update on a base has a noise edge."""
    if tasks.base is None:
        raise ValueError("a noise edge is that of an expert on a base")
    return max(delta_square(part, tasks.base) for _, part in tasks.parts(i))
