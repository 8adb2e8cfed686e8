"""Tables of stored results, in Markdown.

python examples/lab_real/report.py                        # of examples/lab_real/results
python examples/lab_real/report.py --results run/results.jsonl
python examples/lab_real/report.py --write docs/lab.md    # put them into a page, between its two marks
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from data import BESIDES, DIMENSIONS

from mergekit_3h.evaluation.intervals import Interval, interval_of, resampled_means

HERE = Path(__file__).parent
REFERENCE = "task_arithmetic"
BEGIN, END = "<!-- tables of examples/lab_real/report.py -->", "<!-- end of the tables -->"
RESAMPLES = 2000
"""Of the questions, for an interval."""

HEAD = ("row", "gain kept", *DIMENSIONS, "more than the sum", "scale", *(f"loss, {name}" for name in BESIDES))
EVERYDAY = BESIDES[1]
COMPARED = ("tsvm", "iso_c", "iso_c, power 0.5")
OBSERVED = (
    "experts",
    "size",
    "imbalance",
    "worsening",
    "forgetting, nats",
    *(f"{row} - sum" for row in COMPARED),
)
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", help="files of JSON lines")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the two marks")
    arguments = parser.parse_args()
    files = arguments.results or sorted((HERE / "results").glob("*.jsonl"))
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        parser.error(f"no results in {', '.join(missing) or HERE / 'results'}; examples/lab_real/run.py makes them")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    if arguments.write:
        arguments.write.write_text(inserted(arguments.write.read_text(), report(lines)))
    else:
        print(report(lines))


def inserted(page: str, tables: str) -> str:
    """The page with other tables between its marks, which are lines of their own."""
    before, begin, rest = page.partition(f"\n{BEGIN}\n")
    _, end, after = rest.partition(f"\n{END}\n")
    if not (begin and end):
        sys.exit(f"--write: the page has no lines {BEGIN!r} and {END!r}, between which the tables would go")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def report(lines: Sequence[Line]) -> str:
    """A table for each kind of experts and each dtype of their checkpoints."""
    groups: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["experts"], line["dtype"]].append(line)
    tables = [f"{_title(*group, found)}\n\n{table(found)}" for group, found in groups.items()]
    return "\n\n".join([*tables, f"**What tells beforehand**\n\n{observables(groups)}"])


def _title(kind: str, dtype: str, lines: Sequence[Line]) -> str:
    seeds = sorted({line["seed"] for line in lines})
    questions = len(lines[0]["losses"][DIMENSIONS[0]])
    what = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"**Experts `{kind}` in {dtype}** ({what}, {questions} test questions a dimension)"


def table(lines: Sequence[Line]) -> str:
    by_row: defaultdict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["seed"]):
        by_row[line["row"]].append(line)
    rows = [HEAD, ["---"] * len(HEAD), *(_cells(row, found, by_row) for row, found in by_row.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(row: str, found: Sequence[Line], by_row: dict[str, list[Line]]) -> list[str]:
    is_merge = row != "base" and not row.startswith("expert: ")
    return [
        row,
        _over_seeds([_kept(line) for line in found]),
        *(f"{mean(line['kept'][name] for line in found):.3f}" for name in DIMENSIONS),
        _against(found, by_row) if is_merge and row != REFERENCE else "",
        f"{median(line['scale'] for line in found):.2f}" if "scale" in found[0] else "",
        *(f"{mean(mean(line['losses'][name]) for line in found):.3f}" for name in BESIDES),
    ]


def observables(groups: Mapping[tuple[str, str], Sequence[Line]]) -> str:
    """What can be seen before anything is merged, means over seeds, beside what merges then keep."""
    rows = [OBSERVED, ["---"] * len(OBSERVED)]
    for (kind, dtype), lines in groups.items():
        seen = [
            _observed([line for line in lines if line["seed"] == seed]) for seed in sorted({n["seed"] for n in lines})
        ]
        kept = {row: mean(_kept(line) for line in lines if line["row"] == row) for row in {n["row"] for n in lines}}
        more = [f"{kept[row] - kept[REFERENCE]:+.3f}" if {row, REFERENCE} <= kept.keys() else "" for row in COMPARED]
        rows.append([f"`{kind}`, {dtype}", *(f"{mean(values):.3g}" for values in zip(*seen, strict=True)), *more])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _observed(lines: Sequence[Line]) -> tuple[float, ...]:
    """Of one set of experts: size, imbalance, what they add to others' losses over their gain, and to everyday ones."""
    by_row = {line["row"]: line for line in lines}
    base, experts = by_row["base"], {name: by_row[f"expert: {name}"] for name in DIMENSIONS}
    norms = [expert["sizes"]["norm"] for expert in experts.values()]
    worse = [0.0 - line["kept"][other] for name, line in experts.items() for other in DIMENSIONS if other != name]
    forgotten = [mean(line["losses"][EVERYDAY]) - mean(base["losses"][EVERYDAY]) for line in experts.values()]
    size = mean(expert["sizes"]["relative"] for expert in experts.values())
    return size, max(norms) / min(norms), mean(worse), mean(forgotten)


def _against(found: Sequence[Line], by_row: dict[str, list[Line]]) -> str:
    """The difference to the sum of the same experts: over seeds, or for a single one over resampled questions."""
    sums = {line["seed"]: line for line in by_row.get(REFERENCE, [])}
    pairs = [(line, sums[line["seed"]]) for line in found if line["seed"] in sums]
    if not pairs:
        return ""
    if len(pairs) > 1:
        return _over_seeds([_kept(line) - _kept(other) for line, other in pairs], sign="+")
    ((line, other),) = pairs
    about = interval(line, other, by_row)
    return f"{_kept(line) - _kept(other):+.3f} [{about.low:+.3f}, {about.high:+.3f}]"


def interval(line: Line, other: Line, by_row: dict[str, list[Line]]) -> Interval:
    """Of the difference, over test questions drawn again: the same ones for both merges, the base and the experts."""
    base, *experts = (
        next(one for one in by_row[row] if one["seed"] == line["seed"])
        for row in ("base", *(f"expert: {name}" for name in DIMENSIONS))
    )

    def drawn(one: Line, name: str) -> Any:
        return resampled_means(one["losses"][name], RESAMPLES, 0, name)

    differences = [
        (drawn(other, name) - drawn(line, name)) / (drawn(base, name) - drawn(expert, name))
        for name, expert in zip(DIMENSIONS, experts, strict=True)
    ]
    return interval_of(sum(differences) / len(differences))


def _kept(line: Line) -> float:
    return mean(line["kept"].values())


def _over_seeds(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{error}"


if __name__ == "__main__":
    main()
