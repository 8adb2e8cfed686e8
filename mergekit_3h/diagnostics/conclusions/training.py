"""Were the experts trained as LoRA adapters and merged into 16-bit weights, or fine-tuned as a whole?"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite
from statistics import median

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection
from mergekit_3h.diagnostics.rows import SpectrumMeasures
from mergekit_3h.kernels.remainders import ROUNDING_ALONE, Remainder

QUESTION = "Are the experts merged LoRAs or full fine-tunings?"

ALIKE = 0.25
"""How far the ranks of most matrices are from their median where a LoRA has one rank. Of merged adapters of rank 16
they were 13 to 17, where these are small 5 to 19 (half of them 13 to 17); of full fine-tunings 11 to 96."""

MOST = 0.7

_BASIS = (
    "the median over the matrices of T, what lies under the rounding edge over what rounding alone would leave: on "
    f"adapters merged into SmolLM2-135M 1.04 to 1.24, on full fine-tunings of it 1.66 and more, which {ROUNDING_ALONE} "
    "divides. A full fine-tuning with few strong directions may look like a LoRA"
)


def were_the_experts_adapters(inspection: Inspection) -> list[Conclusion]:
    text = "That cannot be told: no expert was rounded to 16 bits, and it is what lies under the rounding that tells."
    return list(_told(inspection)) or [Conclusion("not-told", QUESTION, "fine", text, basis=_BASIS)]


def _told(inspection: Inspection) -> Iterator[Conclusion]:
    for i, name in enumerate(inspection.experts):
        found = [row.experts[i].spectrum for row in inspection.matrices]
        spectra = [each for each in found if each is not None and each.noise_edge > 0]
        if not spectra:
            continue
        ratios = [_under_the_edge(each) for each in spectra]
        typical = median(ratios)
        is_lora = typical < ROUNDING_ALONE
        agree = sum((ratio < ROUNDING_ALONE) == is_lora for ratio in ratios)
        times = f"{typical:.2f} times what rounding alone would leave" if isfinite(typical) else "nothing"
        why = f"under the rounding edge lies {times} (median T; {agree} of {len(ratios)} matrices say the same)"
        numbers = {"agree": float(agree), "matrices": float(len(ratios))}
        if isfinite(typical):
            numbers["T"] = typical
        yield _merged(name, why, spectra, numbers) if is_lora else _full(name, why, numbers)


def _under_the_edge(spectrum: SpectrumMeasures) -> float:
    """T; infinite where all directions are above the edge, as of no LoRA."""
    if spectrum.above_count >= spectrum.count:
        return inf
    return Remainder(spectrum.left_square, spectrum.rounding_square).ratio


def _merged(name: str, why: str, spectra: list[SpectrumMeasures], numbers: dict[str, float]) -> Conclusion:
    ranks = [each.above_count for each in spectra]
    rank = round(median(ranks))
    is_one = sum(abs(each - rank) <= max(1.0, ALIKE * rank) for each in ranks) >= MOST * len(ranks)
    what = f"a LoRA of rank {rank}" if is_one else f"an update of low rank ({min(ranks)} to {max(ranks)})"
    return Conclusion(
        "merged-lora",
        QUESTION,
        "fine",
        f"{name} is {what} merged into {spectra[0].rounded_to}: {why}. noise_floor: on loses nothing of it, and auto "
        "sees that.",
        advice=f"Merge the adapter of {name} instead, if you have it: nothing of it was rounded.",
        basis=_BASIS,
        numbers={**numbers, "rank": float(rank)},
    )


def _full(name: str, why: str, numbers: dict[str, float]) -> Conclusion:
    return Conclusion(
        "full-update",
        QUESTION,
        "fine",
        f"{name} was fine-tuned as a whole: {why}. noise_floor: on may cut a part of its update away; auto of iso_c "
        "and iso_cts sees that and does not.",
        basis=_BASIS,
        numbers=numbers,
    )
