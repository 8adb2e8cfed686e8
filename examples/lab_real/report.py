"""Tables of stored results, in Markdown.

python examples/lab_real/report.py                        # of examples/lab_real/results
python examples/lab_real/report.py --results run/results.jsonl
python examples/lab_real/report.py --write docs/lab.md    # put them into a page, between its two marks
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from agreement import ROW as ARTEFACTS
from agreement import agreement
from board import COMPARED, NUMBERS, REFERENCE, TITLES, Group, Line, kept, markdown, over_seeds
from data import BESIDES, DIMENSIONS
from predictors import SEEN, companions, observables
from results import THREE, Case

from mergekit_3h.evaluation.intervals import Interval, interval_of, resampled_means

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables of examples/lab_real/report.py -->", "<!-- end of the tables -->"
RESAMPLES = 2000
"""Of the questions, for an interval."""

HEAD = ("row", "gain kept", *DIMENSIONS, "more than the sum", "scale", *(f"loss, {name}" for name in BESIDES))


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
    """A table for each kind of experts, each dtype of their checkpoints and each number of them."""
    groups: defaultdict[Group, list[Line]] = defaultdict(list)
    seen: dict[Case, Line] = {}
    for line in lines:
        if line["row"] == ARTEFACTS:
            continue
        case = Case.of(line)
        if line["row"] == SEEN:
            seen[case] = line
        else:
            groups[case.experts, case.dtype, case.together].append(line)
    tables = [f"{_title(group, found)}\n\n{table(found)}" for group, found in groups.items()]
    if any(together != THREE for _, _, together in groups):
        tables.append(f"**How many experts**\n\n{numbers(groups)}")
    tables.append(f"**What tells beforehand**\n\n{observables(groups, seen)}")
    tables.append(f"**What goes with it**\n\n{companions(groups, seen)}")
    unrounded = [line for line in lines if line["row"] == ARTEFACTS]
    if unrounded:
        tables.append(f"**Alpha and Omega, rounded and not**\n\n{markdown(agreement(unrounded))}")
    return "\n\n".join(tables)


def _title(group: Group, lines: Sequence[Line]) -> str:
    kind, dtype, together = group
    seeds = sorted({line["seed"] for line in lines})
    questions = len(lines[0]["losses"][DIMENSIONS[0]])
    what = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    name = f"**Experts `{kind}` in {dtype}{TITLES[together]}**"
    return f"{name} ({what}, {questions} test questions a dimension)"


def table(lines: Sequence[Line]) -> str:
    by_row = _by_row(lines)
    rows = [HEAD, *(_cells(row, found, by_row) for row, found in by_row.items())]
    return markdown(rows)


def _by_row(lines: Sequence[Line]) -> dict[str, list[Line]]:
    by_row: defaultdict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["seed"]):
        by_row[line["row"]].append(line)
    return by_row


def _cells(row: str, found: Sequence[Line], by_row: dict[str, list[Line]]) -> list[str]:
    is_merge = row != "base" and not row.startswith("expert: ")
    return [
        row,
        over_seeds([kept(line) for line in found]),
        *(
            f"{mean(line['kept'][name] for line in found):.3f}" if name in found[0]["kept"] else ""
            for name in DIMENSIONS
        ),
        _against(found, by_row) if is_merge and row != REFERENCE else "",
        f"{median(line['scale'] for line in found):.2f}" if "scale" in found[0] else "",
        *(f"{mean(mean(line['losses'][name]) for line in found):.3f}" for name in BESIDES),
    ]


def numbers(groups: Mapping[Group, Sequence[Line]]) -> str:
    """What the sum keeps of two, three and six experts, and what other merges keep more."""
    counts = Counter(group[:2] for group in groups)
    rows = [("experts", "n", "seeds", REFERENCE, *(f"{row} - sum" for row in COMPARED))]
    for (kind, dtype, together), lines in sorted(groups.items(), key=lambda item: (*item[0][:2], NUMBERS[item[0][2]])):
        by_row = _by_row(lines)
        if counts[kind, dtype] > 1 and REFERENCE in by_row:
            sums = by_row[REFERENCE]
            more = [_against(by_row[row], by_row) if row in by_row else "" for row in COMPARED]
            shares = over_seeds([kept(line) for line in sums])
            rows.append((f"`{kind}`, {dtype}", NUMBERS[together], str(len(sums)), shares, *more))
    return markdown(rows)


def _against(found: Sequence[Line], by_row: dict[str, list[Line]]) -> str:
    """The difference to the sum of the same experts: over seeds, or for a single one over resampled questions."""
    sums = {line["seed"]: line for line in by_row.get(REFERENCE, [])}
    pairs = [(line, sums[line["seed"]]) for line in found if line["seed"] in sums]
    if not pairs:
        return ""
    if len(pairs) > 1:
        return over_seeds([kept(line) - kept(other) for line, other in pairs], sign="+")
    ((line, other),) = pairs
    about = interval(line, other, by_row)
    return f"{kept(line) - kept(other):+.3f} [{about.low:+.3f}, {about.high:+.3f}]"


def interval(line: Line, other: Line, by_row: dict[str, list[Line]]) -> Interval:
    """Of the difference, over test questions drawn again: the same ones for both merges, the base and the experts."""
    case = Case.of(line)
    base, *experts = (
        next(one for one in by_row[row] if one["seed"] == line["seed"])
        for row in ("base", *(f"expert: {name}" for name in case.members()))
    )

    def drawn(one: Line, name: str) -> Any:
        return resampled_means(one["losses"][name], RESAMPLES, 0, name)

    def own(name: str) -> Any:
        learnt = [expert for expert, (own, _) in zip(experts, case.members().values(), strict=True) if own == name]
        return sum(drawn(expert, name) for expert in learnt) / len(learnt)

    differences = [
        (drawn(other, name) - drawn(line, name)) / (drawn(base, name) - own(name)) for name in case.dimensions
    ]
    return interval_of(sum(differences) / len(differences))


if __name__ == "__main__":
    main()
