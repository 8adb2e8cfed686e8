"""Which merge keeps most of what three experts of a real model learnt?

python examples/lab_real/run.py --data FOLDER             # every kind of experts, a day on a CPU
python examples/lab_real/run.py --data FOLDER --quick     # one set of experts, few questions and rows
python examples/lab_real/report.py                        # the tables of what was found so far
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from data import require_files
from experiment import Experiment
from experts import Workshop, folder_of
from measures import Exam
from models import DTYPES, base_model, load
from results import THREE, TOGETHER, Case, Results
from rows import EVERYTHING, QUICK, rows
from training import RECIPES

HERE = Path(__file__).parent
TRIALS = 6
"""Scales tried for every merge on the validation questions."""

PARTS = ("validation", "test")
QUESTIONS, QUICK_QUESTIONS = [64, 128], [16, 32]
"""Of every dimension in each of the parts."""


def main() -> None:
    arguments = _arguments()
    require_files(arguments.data)
    results = Results(arguments.results, arguments.questions)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    workshop = Workshop(arguments.data, arguments.cache, arguments.device)
    records = workshop.records
    base = base_model(arguments.cache, "bf16")
    model, tokenizer = load(base)
    model = model.to(arguments.device, torch.bfloat16).eval()
    exams = {
        part: Exam(records, part, tokenizer, most, besides=part == "test")
        for part, most in zip(PARTS, arguments.questions, strict=True)
    }
    for case in cases(arguments):
        folders = {name: workshop.expert(case.experts, *who) for name, who in case.members().items()}
        experiment = Experiment(
            case,
            base,
            {name: folder_of(stem, case.dtype) for name, stem in folders.items()},
            exams,
            model,
            tokenizer,
            partial(_mixture, workshop, case),
        )
        experiment.run([row for row in rows() if row.label in arguments.rows], TRIALS, results, print)


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """One set of experts after the other, in every way to take them together, then of either dtype."""
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for kind, seed, together, dtype in product(arguments.experts, seeds, arguments.together, arguments.dtypes):
        yield Case(kind, seed, dtype, together)


def _mixture(workshop: Workshop, case: Case) -> Path:
    return folder_of(workshop.mixture(case.experts, case.seed), case.dtype)


def _arguments() -> argparse.Namespace:
    labels = [row.label for row in rows()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data files")
    parser.add_argument("--cache", type=Path, default=HERE / "run", help="where models are kept")
    parser.add_argument("--results", type=Path, help="file of JSON lines; what is in it is not done again")
    parser.add_argument("--experts", nargs="+", choices=list(RECIPES), metavar="KIND", help=", ".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=1, help="sets of experts of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--together",
        nargs="+",
        choices=list(TOGETHER),
        default=[THREE],
        help="which experts are merged: " + "; ".join(f"{name}, {what}" for name, what in TOGETHER.items()),
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="of the experts' checkpoints")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=labels,
        metavar="ROW",
        help=f"of {'; '.join(labels)}; default: all but the last, which takes a training of its own",
    )
    parser.add_argument(
        "--questions",
        type=int,
        nargs=2,
        metavar=("VALIDATION", "TEST"),
        help=f"of every dimension, default {QUESTIONS}",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="full_short, seed 0, bf16, few questions, two rows")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds: got {arguments.seeds}, expected 1 or more")
    if arguments.questions and min(arguments.questions) < 1:
        parser.error(f"--questions: got {arguments.questions}, expected 1 or more of each part")
    quick = arguments.quick
    arguments.results = arguments.results or HERE / "run" / ("quick.jsonl" if quick else "results.jsonl")
    arguments.experts = arguments.experts or (["full_short"] if quick else list(RECIPES))
    arguments.dtypes = arguments.dtypes or (["bf16"] if quick else list(DTYPES))
    arguments.questions = arguments.questions or (QUICK_QUESTIONS if quick else QUESTIONS)
    arguments.rows = arguments.rows or (
        list(QUICK) if quick else [label for label in labels if label != EVERYTHING.label]
    )
    if EVERYTHING.label in arguments.rows and arguments.together != [THREE]:
        parser.error(f"--rows: {EVERYTHING.label!r} is what three experts learn; leave it, or --together, out")
    return arguments


if __name__ == "__main__":
    main()
