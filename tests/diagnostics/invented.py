"""Inspections of models of any size, with invented numbers: what pages are drawn from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from mergekit_3h.diagnostics.conclusions import Inspection
from mergekit_3h.diagnostics.rows import (
    ExpertMeasures,
    MatrixMeasures,
    PairMeasures,
    SpectrumMeasures,
    TensorMeasures,
    all_pairs,
    sampled_places,
)
from mergekit_3h.spectral.registry import parse_options

NAMES = ["helpful", "honest", "harmless", *(f"expert{i}" for i in range(3, 10))]
SIDE = 4096
MATRICES = [f"self_attn.{kind}_proj" for kind in "qkvo"] + [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
VECTORS = ["input_layernorm", "post_attention_layernorm"]


def invented_inspection(
    layers: int, experts: int, *, matrices: int = 1, names: Sequence[str] = tuple(NAMES)
) -> Inspection:
    """A Llama of that depth; with ``matrices`` the MLP is a mixture of so many."""
    rng = random.Random(0)
    rows = [_row(rng, "model.embed_tokens.weight", experts), _row(rng, "lm_head.weight", experts)]
    rows.append(_row(rng, "model.norm.weight", experts, is_matrix=False))
    for layer in range(layers):
        for kind in MATRICES:
            name = f"model.layers.{layer}.{kind}.weight"
            fused = [f"{name}[{i}]" for i in range(matrices)] if "mlp" in kind and matrices > 1 else [name]
            rows += [_row(rng, each, experts) for each in fused]
        rows += [_row(rng, f"model.layers.{layer}.{kind}.weight", experts, is_matrix=False) for kind in VECTORS]
    settings = parse_options("rtsvm", {}).settings()
    return Inspection(base="/models/base", experts=names[:experts], rows=rows, settings=settings)


def invented_line(experts: int) -> dict[str, Any]:
    """A line of a merge's record. One bound is not known."""
    return {
        "surviving": [0.25] * experts,
        "ranks": [100] * experts,
        "decompositions": ["exact"] * experts,
        "residuals": [0.0] * (experts - 1) + [None],
        "conditions": [12.5, 1500.0],
        "changed": 0.6,
        "rounded_away": 0.1,
        "rounding_distance": 0.05,
        "seconds": 1.5,
    }


def _row(rng: random.Random, name: str, experts: int, *, is_matrix: bool = True) -> TensorMeasures:
    return TensorMeasures(
        tensor=name,
        shape=(SIDE, SIDE) if is_matrix else (SIDE,),
        dtypes=["bfloat16"] * (experts + 1),
        rms=1e-3,
        omegas={-20: 0.1 + 0.3 * rng.random(), -18: 0.6, -16: 1.0},
        experts=[_expert(rng, is_matrix) for _ in range(experts)],
        pairs=[_pair(rng, i, j, is_matrix) for i, j in all_pairs(experts)],
        matrix=_matrix(rng) if is_matrix else None,
    )


def _expert(rng: random.Random, is_matrix: bool) -> ExpertMeasures:
    size = 1e-2 * rng.uniform(0.5, 2)
    return ExpertMeasures(
        norm=size,
        relative_size=size,
        weight_cosine=0.9999,
        unchanged=0.4 * rng.random(),
        kurtosis=3 + 20 * rng.random(),
        largest=1e-3,
        spectrum=_spectrum(rng, size) if is_matrix else None,
    )


def _spectrum(rng: random.Random, size: float) -> SpectrumMeasures:
    return SpectrumMeasures(
        rank=rng.randrange(100, SIDE // 3),
        alpha=rng.uniform(0.9, 1.1),
        outlier_mass=3.0,
        noise_edge=0.02 * size,
        above_edge=rng.uniform(0.6, 1),
        unrounded_norm=size,
        rounding_distance=rng.uniform(0, 0.4),
        effective_rank=SIDE * rng.random() / 2,
        energy={1: 0.1, 8: 0.3, 64: 0.6},
        over_counting=1 + rng.random(),
        count=SIDE,
        values=[float(f"{size * (place + 1) ** -0.6:.5g}") for place in sampled_places(SIDE)],
    )


def _pair(rng: random.Random, first: int, second: int, is_matrix: bool) -> PairMeasures:
    return PairMeasures(
        first=first,
        second=second,
        cosine=rng.gauss(0.1, 0.05),
        distance=0.01,
        sign_conflicts=rng.uniform(0.4, 0.5),
        overlap_output=0.3 * rng.random() if is_matrix else None,
        overlap_input=0.3 * rng.random() if is_matrix else None,
    )


def _matrix(rng: random.Random) -> MatrixMeasures:
    return MatrixMeasures(
        smaller_side=SIDE,
        budget=SIDE // 3,
        omega=rng.uniform(0.2, 0.3),
        interference=5 * rng.random(),
        relative_interference=rng.random(),
        overlap_rank=8,
        chance_output=8 / SIDE,
        chance_input=8 / SIDE,
    )
