"""A whole model from its measured shapes and, for those left out, from estimates."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_3h.benchmarks.contenders import OURS
from mergekit_3h.benchmarks.results import LeftOut, ModelTotal, StreamResult


def model_total(
    measurements: Sequence[StreamResult],
    left_out: Sequence[LeftOut],
    contenders: Sequence[str],
) -> ModelTotal:
    """Medians times counts. The quartiles of a ratio are the shapes' own, weighted by our time: the widest they can be,
    as if every shape had its bad rounds together. An estimated shape has no spread."""
    seconds = dict.fromkeys(contenders, 0.0)
    estimated = bound = 0.0
    peer_quartiles = {peer: [0.0, 0.0] for peer in contenders if peer != OURS}
    for measurement in measurements:
        count = measurement.count
        for contender, result in measurement.contenders.items():
            seconds[contender] += count * result.seconds.median
        for peer, (low, high) in ((peer, ratio.paired.quartiles) for peer, ratio in measurement.ratios.items()):
            ours = count * measurement.contenders[OURS].seconds.median
            peer_quartiles[peer][0] += ours * low
            peer_quartiles[peer][1] += ours * high
        bound += count * measurement.gemm_bound.seconds if measurement.gemm_bound else 0.0
    measured = seconds[OURS]
    for missing in left_out:
        count = missing.shape.count
        estimated += count * missing.estimated_seconds[OURS]
        for contender in contenders:
            seconds[contender] += count * missing.estimated_seconds[contender]
        for peer, both in peer_quartiles.items():
            both[0] += count * missing.estimated_seconds[peer]
            both[1] += count * missing.estimated_seconds[peer]
    return ModelTotal(
        seconds=seconds,
        ratios={
            peer: (low / seconds[OURS], seconds[peer] / seconds[OURS], high / seconds[OURS])
            for peer, (low, high) in peer_quartiles.items()
        },
        estimated_share=estimated / seconds[OURS],
        gemm_bound_ratio=measured / bound if bound and all(m.gemm_bound for m in measurements) else None,
    )
