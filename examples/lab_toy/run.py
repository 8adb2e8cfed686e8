"""Which merge keeps most of what three experts learnt? On models that are trained from scratch in seconds.

python examples/lab_toy/run.py                                # experts by DPO: merges, weights
python examples/lab_toy/run.py --quick                        # three seeds, a few rows, under three minutes
python examples/lab_toy/run.py --kinds lora_overtrained pair  # other experts
python examples/lab_toy/run.py --studies data safety          # instead of merging, and merging with safety data
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from statistics import mean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiment import DTYPES
from experts import KINDS
from models import Size
from report import tables
from results import Results
from rows import CLOSEST
from studies import STUDIES, Plan
from workers import end_on_sigterm, lines_of

SEEDS, QUICK_SEEDS = 20, 3


def main() -> None:
    arguments = _arguments()
    end_on_sigterm()
    logging.disable(logging.WARNING)  # of a merge's own; what it did is in its line
    results = Results(arguments.results)
    plan = Plan(
        Size(),
        tuple(arguments.kinds),
        tuple(arguments.dtypes),
        tuple(arguments.studies),
        arguments.quick,
        results.known,
    )
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for line in lines_of(plan, seeds, arguments.jobs):
        results.add(line)
        what = f" keeps {mean(line['kept'].values()):.3f}" if "kept" in line else ""
        print(f"{line['kind']}, seed {line['seed']}, {line['dtype']}: {line['row']}{what}", flush=True)
    print(f"\n{tables(results.lines)}\n\n{arguments.results}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[CLOSEST], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--studies",
        nargs="+",
        choices=list(STUDIES),
        metavar="STUDY",
        help="; ".join(f"{name}: {what}" for name, what in STUDIES.items()) + "; default: merges weights",
    )
    parser.add_argument("--seeds", type=int, help=f"how often everything is done, default {SEEDS}")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of the seeds, which follow one another")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="of the experts' checkpoints, default: both")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds, a few merges, bf16 only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, default: one a core")
    parser.add_argument("--results", type=Path, help="file of JSON lines; what is in it is not done again")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.seeds = arguments.seeds if arguments.seeds is not None else QUICK_SEEDS if quick else SEEDS
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: got {getattr(arguments, name)}, expected 1 or more")
    arguments.dtypes = arguments.dtypes or (["bf16"] if quick else list(DTYPES))
    arguments.studies = arguments.studies or (["merges"] if quick else ["merges", "weights"])
    name = "quick.jsonl" if quick else "results.jsonl"
    arguments.results = arguments.results or Path(__file__).parent / "run" / name
    return arguments


if __name__ == "__main__":
    main()
