"""``mergekit-3h sweep``: many merges, tuned alike and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_3h.cli.evaluate import backend_settings, pairs, suite_options


@click.command("sweep")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--ray", "on_ray", is_flag=True, help="Run methods on a Ray cluster, each in a worker.")
@click.option("--ray-address", help="Of an existing cluster; unset: RAY_ADDRESS, else one on this machine.")
@click.option("--ray-workers", type=click.IntRange(1), help="Workers at most.")
@click.option("--ray-gpus-per-worker", type=float, default=0.0, show_default=True, help="GPUs of one worker.")
@click.option("--merge-device", default="cpu", show_default=True, help="Device that merges are computed on.")
@click.option("--lora-merge-cache", help="Folder for experts that are adapters, merged into their bases.")
@suite_options
def command(config: Path, on_ray: bool, merge_device: str, lora_merge_cache: str | None, **given: Any) -> None:
    """Merge by every method of CONFIG, choose each one's scale on a validation split, report all on a test split.

    Every method has the same number of trials. A method that fails is a row with its error. Called again, a sweep goes
    on where it was. Exit status: 0, 1 for an error, 3 if a method failed or too many items have no score.
    """
    from mergekit_3h.cli.compare import write_outputs
    from mergekit_3h.cli.evaluate import BEYOND_LIMITS, warn_of_unscored
    from mergekit_3h.evaluation.comparison_tables import as_text
    from mergekit_3h.evaluation.sweep.settings import read_sweep
    from mergekit_3h.evaluation.sweep.sweep_page import sweep_page
    from mergekit_3h.evaluation.sweep.sweeping import SweepRun, run_sweep
    from mergekit_3h.methods.memory_merge import Merger
    from mergekit_3h.writing import write_text_whole

    run = SweepRun(
        read_sweep(config),
        config.resolve().parent,
        backend_settings(given),
        Merger(merge_device, given["trust_remote_code"], lora_merge_cache),
        pairs("--file", given["files"]),
        pairs("--judge", given["judges"]),
    )
    cluster = _cluster(given) if on_ray else None
    say = (lambda _: None) if given["quiet"] else (lambda text: click.echo(text, err=True))
    outcome = run_sweep(run, cluster, say)
    table = outcome.table()
    write_outputs((run.output / "table.csv", run.output / "table.md", run.output / "table.tex"), [table], {}, "")
    write_text_whole(run.output / "sweep.html", sweep_page(outcome, f"Sweep: {config.stem}"))
    if not given["quiet"]:
        click.echo(as_text(table))
        click.echo(f"{run.output / 'sweep.html'}: tables, plots, every trial")
    beyond = warn_of_unscored(list(outcome.results().values()))
    raise SystemExit(BEYOND_LIMITS if outcome.failed or beyond else 0)


def _cluster(given: dict[str, Any]) -> Any:
    from mergekit_3h.cluster.options import parse_cluster_options

    names = {"address": "ray_address", "workers": "ray_workers", "gpus_per_worker": "ray_gpus_per_worker"}
    return parse_cluster_options({name: given[key] for name, key in names.items() if given[key] is not None})
