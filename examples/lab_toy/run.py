"""Which merge keeps most of what three experts learnt? On models that are trained from scratch in seconds.

python examples/lab_toy/run.py                       # the table of the README
python examples/lab_toy/run.py --training sft        # experts that learnt from right answers alone
python examples/lab_toy/run.py --quick               # three seeds, under three minutes
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiment import DTYPES, one_seed
from models import Size
from table import table

FULL = Size(hidden=64, layers=2, base_steps=300, expert_steps=80)
SEEDS, QUICK_SEEDS = 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help=f"how often everything is done, default {SEEDS}")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the seeds, which follow one another")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds and bf16 experts only")
    parser.add_argument("--training", choices=("dpo", "sft"), default="dpo", help="what experts learn by")
    parser.add_argument("--layers", type=int, default=FULL.layers)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, default: one a core")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "run" / "results.jsonl")
    arguments = parser.parse_args()
    for name in ("layers", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: got {getattr(arguments, name)}, expected 1 or more")
    seeds = arguments.seeds if arguments.seeds is not None else QUICK_SEEDS if arguments.quick else SEEDS
    if seeds < 1:
        parser.error(f"--seeds: got {seeds}, expected 1 or more")
    dtypes = ["bf16"] if arguments.quick else list(DTYPES)
    size = replace(FULL, layers=arguments.layers)
    one = partial(one_seed, size=size, training=arguments.training, dtypes=dtypes)
    numbers = range(arguments.first_seed, arguments.first_seed + seeds)
    found: list[dict[str, Any]] = []
    with ProcessPoolExecutor(min(arguments.jobs, seeds), multiprocessing.get_context("spawn")) as pool:
        for number, lines in zip(numbers, pool.map(one, numbers), strict=True):
            print(f"seed {number} done", flush=True)
            found += lines
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text("".join(json.dumps(line) + "\n" for line in found))
    for dtype in dtypes:
        print(f"\nexperts by {arguments.training}, in {dtype}, {seeds} seed{'s' * (seeds > 1)}\n")
        print(table([line for line in found if line["dtype"] == dtype]))
    print(f"\n{arguments.results}")


if __name__ == "__main__":
    main()
