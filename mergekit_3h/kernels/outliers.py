"""Outlier-aware weights, Eq. 6-8 of arXiv 2502.06876."""

from __future__ import annotations

import torch

from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.tasks import TaskMatrices

ROUNDING = 1e-12
"""Relative slack of the threshold: where all entries of a row have one size, sigma is 0 and all of them reach it."""


def outlier_mass(tasks: TaskMatrices, i: int) -> float:
    """Sum of |delta| over the entries that reach mu_r + 3 sigma_r of their row r: the numerator of Eq. 8."""
    mass = torch.zeros((), dtype=torch.float64, device=tasks.device)
    for block in tasks.entry_blocks(i):
        size = block.abs_()
        mu = size.mean(dim=1, keepdim=True)  # Eq. 6
        sigma = (size - mu).square_().mean(dim=1, keepdim=True).sqrt_()  # Eq. 7, without its cancellation
        mass += torch.where(size >= (mu + 3 * sigma) * (1 - ROUNDING), size, 0.0).sum()
    return float(mass)


def outlier_weights(masses: list[float], settings: Settings) -> list[float]:
    """Factor on each task's singular values: alpha of Eq. 8 under the chosen direction, scale and strength.

    ``none`` returns ones: the ablation leaves the singular values as they are. Where no task has any outlier, or all
    tasks have the same, the weights are uniform.
    """
    n = len(masses)
    if settings.outlier_weighting == "none":
        return [1.0] * n
    total = sum(masses)
    alpha = [mass / total for mass in masses] if total > 0 else [1 / n] * n
    if settings.outlier_weighting == "inverse" and n > 1:
        # Appendix A.1 gives no formula. This one sums to 1, falls with the mass, and is defined for a mass of 0.
        alpha = [(1 - a) / (n - 1) for a in alpha]
    mean_one = [1 + settings.outlier_strength * (n * a - 1) for a in alpha]
    return mean_one if settings.alpha_scale == "mean" else [weight / n for weight in mean_one]
