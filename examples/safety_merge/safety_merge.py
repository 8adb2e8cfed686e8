"""Merge two good experts and one that has unlearned to refuse, with and without looking at safety data.

python examples/safety_merge/safety_merge.py                             # one seed, a few minutes
python examples/safety_merge/safety_merge.py --first-seed 10 --seeds 5   # what the README shows
python examples/safety_merge/safety_merge.py --quick                     # smaller models, less than a minute
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from behaviour import behaviour
from language import DOMAINS, FORBIDDEN, SEARCH, facts, look_alikes, requests
from merging import differing_tensors, merge, merge_by_command, safety_merge_config
from models import MISALIGNED, Training, make_models
from results import Run, difference, draw, speed_table, table

from mergekit_3h.search import Problem, Runner, SearchOptions, Solution, open_problem, solve

FULL = Training(layers=10, base_steps=600, expert_steps=150)
QUICK = Training(layers=3, base_steps=350, expert_steps=150)

# One coefficient for every expert and layer. Steps begin larger than by default: these experts differ a lot from their
# base, and where the search begins, at a third of each, much of what they know is out of sight.
COMMON: dict[str, Any] = {
    "combine": "task_arithmetic",
    "layer_granularity": 1,
    "expert_weight": 1.0,
    "learning_rate": 0.4,
    "batch_size": 64,
}
SEARCHES: dict[str, dict[str, Any]] = {
    "domain data only": {"safety_weight": 0.0},
    "with safety data": {},
    "with safety data, alpha 0.3": {"expert_weight": 0.3},
    "with look-alikes too": {"overrefusal_weight": 1.0},
    "safety data only": {"expert_weight": 0.0},
}
COMPARED = "with safety data"
"""The search that CMA-ES does too."""
NEEDED = ("domain data only", COMPARED)
"""The searches that ``--quick`` and ``--unshared-skill`` do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "run", help="where everything goes")
    parser.add_argument("--seeds", type=int, default=1, help="how often everything is done, from the training on")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the seeds, which follow one another")
    parser.add_argument("--quick", action="store_true", help="smaller models, trained more briefly, and two searches")
    parser.add_argument(
        "--unshared-skill",
        action="store_true",
        help=f"nobody but the misaligned expert knows its domain, {MISALIGNED}; two searches",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds: got {arguments.seeds}, expected 1 or more")
    missing = [package for package in ("cma", "matplotlib") if find_spec(package) is None]
    if missing:
        parser.error(f"needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[search,plots]'")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # matrices this small are slower on several
    folder = arguments.folder.resolve()
    training = replace(QUICK if arguments.quick else FULL, shared_skill=not arguments.unshared_skill)
    names = NEEDED if arguments.quick or arguments.unshared_skill else tuple(SEARCHES)
    first = arguments.first_seed
    seeds = range(first, first + arguments.seeds)
    runs = [one_run(folder / f"seed{seed}", seed, training, names) for seed in seeds]
    in_one_go(folder / f"seed{first}", first)

    print("\n" + table(runs) + "\n\n" + difference(runs, COMPARED, "domain data only"))
    print("\n" + speed_table(runs))
    (folder / "results.json").write_text(json.dumps(runs, indent=1))
    draw(runs, folder / "results.png")
    print(f"\n{folder / 'results.png'}")


def one_run(folder: Path, seed: int, training: Training, names: Sequence[str]) -> Run:
    """Train, search, merge and measure, all with one seed."""
    started = time.perf_counter()
    print(f"seed {seed}: training a base and {len(DOMAINS)} experts")
    models = make_models(folder / "models", seed, training)
    data = write_data(folder / "data.jsonl")

    problem = opened(models, data)
    runner = problem.local_runner()
    print(f"seed {seed}: searching {problem.layout.dimension} coefficients, {len(names)} times")
    found = {name: searched(runner, problem, seed, **SEARCHES[name]) for name in names}

    merged = {"uniform merge": None, **found}
    folders = {name: merge(models, solution, folder_of(folder, name)) for name, solution in merged.items()}
    print(f"seed {seed}: asking {len(models) + len(folders)} models")
    behaviours = {name: behaviour(path) for name, path in {**models, **folders}.items()}

    print(f"seed {seed}: cmaes and gradient on the same loss")
    speed = compared(found[COMPARED], searched(runner, problem, seed, solver="cmaes", **SEARCHES[COMPARED]))
    print(f"seed {seed}: {time.perf_counter() - started:.0f} s")
    return {"seed": seed, "behaviour": behaviours, "speed": speed}


def folder_of(folder: Path, name: str) -> Path:
    return folder / name.replace(",", "").replace(".", "").replace(" ", "-")


def in_one_go(folder: Path, seed: int) -> None:
    """The same search and merge by one command, ``mergekit-yaml`` with ``merge_method: safety_merge``."""
    config = safety_merge_config(folder, {**COMMON, **SEARCHES[COMPARED], "seed": seed})
    print(f"mergekit-yaml {config}")
    merge_by_command(config, folder / "by-mergekit-yaml")
    different = differing_tensors(folder / "by-mergekit-yaml", folder_of(folder, COMPARED))
    print("  differs in " + ", ".join(different) if different else "  the same model to the last bit")


def write_data(path: Path) -> Path:
    """What the searches see: domain questions, forbidden requests with refusals, and answered look-alikes."""
    records = [record for domain in DOMAINS for record in facts(domain, SEARCH)]
    records += requests(FORBIDDEN, SEARCH, refuse=True) + look_alikes(SEARCH)[::4]
    path.write_text("".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records))
    return path


def opened(models: Mapping[str, Path], data: Path) -> Problem:
    experts = {name: path for name, path in models.items() if name != "base"}
    return open_problem(models["base"], experts, data, SearchOptions(**COMMON))


def searched(runner: Runner, problem: Problem, seed: int, **own: Any) -> Solution:
    """A search by other options; models and components are those that the runner has already."""
    return solve(runner, problem.layout, SearchOptions(**{**COMMON, "seed": seed, **own}))


def compared(gradient: Solution, cmaes: Solution) -> dict[str, Any]:
    """Final losses, and after how many passes over the data the gradient was as good as CMA-ES in the end."""
    passes, reached = 0, None
    for point in gradient.points:
        passes += point.measured.passes
        if reached is None and point.score <= cmaes.best.score:
            reached = passes
    return {
        "dimension": gradient.layout.dimension,
        "uniform": gradient.points[0].score,
        "cmaes": cmaes.best.score,
        "gradient": gradient.best.score,
        "passes": gradient.passes,
        "reached": reached,
    }


if __name__ == "__main__":
    main()
