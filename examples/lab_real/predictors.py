"""Tables of what can be seen of the experts before they are merged, and of what goes with the gain that merges keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean

from board import COMPARED, REFERENCE, TITLES, Group, Line, kept, markdown
from correlations import Sample, cell, over_cases, over_rows, over_seeds
from data import BESIDES
from results import Case

EVERYDAY = BESIDES[1]
SEEN = "observables"
BEFORE = (
    "size",
    "imbalance",
    "worsening",
    "forgetting, nats",
    "cosine",
    "overlap",
    "effective_rank",
    "kurtosis",
    "rounding",
    "above_edge",
    "under_edge",
    "alpha",
    "omega",
)
"""Of the experts; the first four are of the lines that every case has."""

AFTER = (
    "rank",
    "rank over the floor's",
    "cut",
    "under_edge",
    "condition",
    "amplification",
    "alpha",
    "omega",
    "surviving",
)
"""Of a merge; ``mechanism.py`` says what they are."""


def observables(groups: Mapping[Group, Sequence[Line]], seen: Mapping[Case, Line]) -> str:
    """What can be seen before anything is merged, means over seeds, beside what merges then keep."""
    every = [_observed(lines, seen) for lines in groups.values()]
    names = [name for name in BEFORE if any(name in values for own in every for values in own.values())]
    rows = [["experts", *names, *(f"{row} - sum" for row in COMPARED)]]
    for ((kind, dtype, together), lines), own in zip(groups.items(), every, strict=True):
        shares = {row: mean(kept(line) for line in lines if line["row"] == row) for row in {n["row"] for n in lines}}
        more = [
            f"{shares[row] - shares[REFERENCE]:+.3f}" if {row, REFERENCE} <= shares.keys() else "" for row in COMPARED
        ]
        values = [[of_seed[name] for of_seed in own.values() if name in of_seed] for name in names]
        means = [f"{mean(there):.3g}" if there else "" for there in values]
        rows.append([f"`{kind}`, {dtype}{TITLES[together]}", *means, *more])
    return markdown(rows)


def _observed(lines: Sequence[Line], seen: Mapping[Case, Line]) -> dict[int, dict[str, float]]:
    """By seed."""
    found: dict[int, dict[str, float]] = {}
    for seed in sorted({line["seed"] for line in lines}):
        own = [line for line in lines if line["seed"] == seed]
        weighed = seen.get(Case.of(own[0]))
        found[seed] = _of_answers(own) | (weighed["values"] if weighed else {})
    return found


def _of_answers(lines: Sequence[Line]) -> dict[str, float]:
    """Of one set of experts: size, imbalance, what they add to others' losses over their gain, and to everyday ones."""
    by_row = {line["row"]: line for line in lines}
    base, members = by_row["base"], Case.of(lines[0]).members()
    experts = [(dimension, by_row[f"expert: {name}"]) for name, (dimension, _) in members.items()]
    norms = [line["sizes"]["norm"] for _, line in experts]
    worse = [0.0 - kept for own, line in experts for other, kept in line["kept"].items() if other != own]
    forgotten = [mean(line["losses"][EVERYDAY]) - mean(base["losses"][EVERYDAY]) for _, line in experts]
    return {
        "size": mean(line["sizes"]["relative"] for _, line in experts),
        "imbalance": max(norms) / min(norms),
        "worsening": mean(worse),
        "forgetting, nats": mean(forgotten),
    }


def companions(groups: Mapping[Group, Sequence[Line]], seen: Mapping[Case, Line]) -> str:
    """Rank correlations with the gain that spectral merges keep beyond the sum's."""
    merges: defaultdict[str, list[Sample]] = defaultdict(list)
    experts: defaultdict[str, list[Sample]] = defaultdict(list)
    for group, lines in groups.items():
        sums = {line["seed"]: kept(line) for line in lines if line["row"] == REFERENCE}
        before = _observed(lines, seen)
        for line in lines:
            seed = line["seed"]
            if line.get("method", REFERENCE) == REFERENCE or seed not in sums:
                continue
            more = kept(line) - sums[seed]
            for name, value in _of_merge(line, before[seed]).items():
                merges[name].append((group, line["row"], seed, value, more))
            for name, value in before[seed].items() if line["row"] in COMPARED else ():
                experts[name].append((group, line["row"], seed, value, more))
    rows = [["of the merge", "over rows", "over seeds", "over cases"]]
    rows += [[name, cell(over_rows(merges[name])), *_wider(merges[name])] for name in AFTER if name in merges]
    rows += [[f"of the experts: {name}", "", *_wider(experts[name])] for name in BEFORE if name in experts]
    return markdown([row for row in rows if any(row[1:])])


def _wider(samples: Sequence[Sample]) -> tuple[str, str]:
    """Experts in float32 are no further case beside the same ones in bfloat16."""
    return cell(over_seeds(samples)), cell(over_cases([one for one in samples if one[0][1] == "bf16"]))


def _of_merge(line: Line, before: Mapping[str, float]) -> dict[str, float]:
    """What is known of a spectral merge."""
    found = {"surviving": mean(line["surviving"].values()), **line.get("reports", {})}
    if line["rank"] is not None:
        found["rank"] = line["rank"]
        if before.get("above_edge"):
            found["rank over the floor's"] = line["rank"] / before["above_edge"]
    return found
