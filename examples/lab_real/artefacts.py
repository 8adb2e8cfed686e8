"""How far are R-TSVM's outlier weights alpha and its sparsity Omega artefacts of rounding?

Both are computed for every matrix of a set of experts from its bfloat16 and from its float32 checkpoints. Nothing is
trained or asked: the experts have to be in the cache.

python examples/lab_real/artefacts.py --experts full_short --seeds 3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from agreement import EXACT, ROW
from board import Line
from data import DIMENSIONS
from experts import folder_of, stem_of
from models import DTYPES
from safetensors import safe_open
from training import RECIPES

from mergekit_3h.kernels.assembly import plan_layer
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.rtsvm import RTSVM

HERE = Path(__file__).parent
DIGITS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / "run", help="where models are kept")
    parser.add_argument("--results", type=Path, default=HERE / "run" / "artefacts.jsonl", help="file of JSON lines")
    parser.add_argument("--experts", nargs="+", choices=list(RECIPES), required=True, metavar="KIND")
    parser.add_argument("--seeds", type=int, default=1, help="sets of experts of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    path: Path = arguments.results
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["experts"], line["seed"]) for line in lines if line["row"] == ROW}
    for kind in arguments.experts:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            if (kind, seed) in done:
                continue
            line = measured(arguments.cache, kind, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{kind}, seed {seed}: {len(line['omega'][EXACT])} matrices")


def measured(cache: Path, kind: str, seed: int) -> Line:
    """A line for one set of experts: alpha of every expert and Omega, of every matrix in the layers in turn."""
    line: Line = {"row": ROW, "experts": kind, "seed": seed, "alpha": {}, "omega": {}}
    for dtype in DTYPES:
        folders = [cache / f"base-{dtype}", *(folder_of(stem_of(cache, kind, seed, d), dtype) for d in DIMENSIONS)]
        missing = [str(folder) for folder in folders if not (folder / "model.safetensors").is_file()]
        if missing:
            sys.exit(f"--cache {cache}: {', '.join(missing)} not found; examples/lab_real/experts.py makes experts")
        line["alpha"][dtype], line["omega"][dtype] = _of_checkpoints(folders)
    return line


@torch.no_grad()
def _of_checkpoints(folders: Sequence[Path]) -> tuple[list[list[float]], list[float]]:
    """Of the base and its experts, as ``rtsvm`` has them without options."""
    settings = RTSVM.model_validate({"noise_floor": "off"}).settings()
    alphas: list[list[float]] = []
    omegas: list[float] = []
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / "model.safetensors", "pt")) for folder in folders]
        for name in sorted(files[0].keys()):
            if ".layers." not in name or len(files[0].get_slice(name).get_shape()) != 2:
                continue
            base, *experts = (file.get_tensor(name) for file in files)
            plan = plan_layer(TaskMatrices(experts, base), settings)
            alphas.append([float(f"{alpha:.{DIGITS}g}") for alpha in plan.alphas])
            omegas.append(float(f"{plan.omega or 0.0:.{DIGITS}g}"))
    return alphas, omegas


if __name__ == "__main__":
    main()
