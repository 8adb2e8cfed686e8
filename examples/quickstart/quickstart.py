"""Merge three tiny experts with both hosts, check that they agree, and show what the merge did.

python examples/quickstart/quickstart.py            # everything below examples/quickstart/run
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
import yaml
from make_models import SKILLS, make_models, question
from safetensors.torch import load_file

METHODS = ["linear", "tsvm", "rtsvm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "run", help="where everything goes")
    folder = parser.parse_args().folder.resolve()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    print("1. A base model and three experts made from it")
    base, experts = make_models(folder / "models")
    for name, path in experts.items():
        print(f"   {name:9} {path}")

    print("2. mergekit-yaml, one config a method")
    for method in METHODS:
        run("mergekit-yaml", write_config(folder, method, base, experts), folder / method, "--quiet")

    print("3. fusion_bench, the same method on the same checkpoints")
    fused = merge_with_fusion_bench(folder, base, experts)
    compare_hosts(folder / "tsvm", fused)

    print("4. What is left of every expert in the merge")
    shares = {method: surviving_shares(base, experts, folder / method) for method in METHODS}
    print(table(shares))
    print(f"   picture: {draw(shares, folder / 'shares.png')}")

    print("5. Loss on the answers of every skill (lower is better; the base has learned none of them)")
    paths = {"base": base, **experts, **{method: folder / method for method in METHODS}}
    print(table({name: answer_losses(path) for name, path in paths.items()}, mean=True))


def write_config(folder: Path, method: str, base: Path, experts: dict[str, Path]) -> Path:
    """The mergekit config of one merge."""
    models = [{"model": str(path)} for path in experts.values()]
    config: dict[str, object] = {"merge_method": method, "models": models}
    if method == "linear":
        config["parameters"] = {"weight": 1.0}
    else:
        config["base_model"] = str(base)
    file = folder / f"{method}.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"   {file}")
    return file


def merge_with_fusion_bench(folder: Path, base: Path, experts: dict[str, Path]) -> Path:
    """``fusion_bench method=tsvm`` on a pool of the same models."""
    pool = {
        "_target_": "fusion_bench.modelpool.CausalLMPool",
        "models": {"_pretrained_": str(base), **{name: str(path) for name, path in experts.items()}},
        "tokenizer": str(base),
        "enable_lazy_loading": True,
    }
    file = folder / "fusion_bench" / "modelpool" / "tiny.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(pool, sort_keys=False))
    print(f"   {file}")
    out = folder / "tsvm-fusion-bench"
    shutil.rmtree(out, ignore_errors=True)
    options = ["modelpool=tiny", "method=tsvm", f"method.model_save_path={out}"]
    run("fusion_bench", "--config-dir", file.parent.parent, *options, cwd=folder)
    return out


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command of this Python environment; show its output only if it fails."""
    program = shutil.which(str(command[0]), path=str(Path(sys.executable).parent)) or str(command[0])
    done = subprocess.run([program, *map(str, command[1:])], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def compare_hosts(mergekit: Path, fusion_bench: Path) -> None:
    """Both hosts call the same kernel: every tensor must be the same to the last bit."""
    ours, theirs = read(mergekit), read(fusion_bench)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if different or ours.keys() != theirs.keys():
        sys.exit(f"   the hosts disagree on {different or ours.keys() ^ theirs.keys()}")
    print(f"   all {len(ours)} tensors of both merges are equal to the last bit")


def surviving_shares(base: Path, experts: dict[str, Path], merged: Path) -> dict[str, float]:
    """The merged update projected on each expert's own: 1 keeps it whole, 0 has lost it."""
    start, result = read(base), read(merged)
    update = {name: (result[name] - start[name]).double() for name in start}
    shares = {}
    for expert, path in experts.items():
        tensors = read(path)
        own = {name: (tensors[name] - start[name]).double() for name in start}
        inner = sum(float((update[name] * own[name]).sum()) for name in start)
        shares[expert] = inner / sum(float(own[name].square().sum()) for name in start)
    return shares


def table(rows: dict[str, dict[str, float]], *, mean: bool = False) -> str:
    lines = ["   " + " " * 9 + "".join(f"{name:>10}" for name in [*SKILLS, *(["mean"] if mean else [])])]
    for name, row in rows.items():
        numbers = [row[skill] for skill in SKILLS]
        numbers += [sum(numbers) / len(numbers)] if mean else []
        lines.append(f"   {name:9}" + "".join(f"{number:10.2f}" for number in numbers))
    return "\n".join(lines)


def draw(shares: dict[str, dict[str, float]], file: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    width = 0.8 / len(shares)
    for i, (method, row) in enumerate(shares.items()):
        axes.bar([x + i * width for x in range(len(row))], list(row.values()), width, label=method)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(SKILLS))], list(SKILLS))
    axes.set_ylabel("share of the expert's update kept")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    return file


def answer_losses(folder: Path) -> dict[str, float]:
    """Mean cross-entropy of the answer words of each skill."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    losses = {}
    for skill, texts in SKILLS.items():
        found = []
        for text in texts:
            words = tokenizer(f"{text} <end>", return_tensors="pt", return_token_type_ids=False)["input_ids"]
            labels = words.clone()
            labels[:, : len(question(text).split())] = -100
            with torch.no_grad():
                found.append(float(model(input_ids=words, labels=labels).loss))
        losses[skill] = sum(found) / len(found)
    return losses


if __name__ == "__main__":
    main()
