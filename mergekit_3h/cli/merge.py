"""``mergekit-3h merge``: check, merge, and prove what the merge did."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_3h.cli.evaluate import backend_settings, opened_suite, pairs, suite_options, warn_of_unscored
from mergekit_3h.cli.merge_options import cluster_options, merge_options, mergekit_options

if TYPE_CHECKING:
    from mergekit_3h.evaluation.result import EvaluationResult
    from mergekit_3h.methods.merging.resumable import ResumableMerge

MERGED = "merge"
LOST = 4
"""Exit status of a merge that lost an expert's dimension by more than chance."""


@click.command("merge")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--evaluate", "suite", help="A suite's file or name: base, experts and merge are evaluated by it.")
@click.option(
    "--expert", "experts", multiple=True, metavar="DIMENSION=NAME", help="A dimension's expert; else the best."
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for results and page; unset: OUT with -evaluation added."
)
@click.option("--as-adapter", is_flag=True, help="Write one LoRA adapter on the base: the experts have to be adapters.")
@click.option("--rank", type=click.IntRange(1), help="Of --as-adapter, at most; unset, as many as the merge has.")
@click.option("--start-over", is_flag=True, help="Throw away what an earlier run left unfinished in OUT.")
@click.option("--allow-non-finite", is_flag=True, help="Write numbers that are not finite, and tell of them.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is going on.")
@merge_options
@suite_options
def command(config: Path, out: Path, suite: str | None, **given: Any) -> None:
    """Check CONFIG, merge it into OUT as mergekit-yaml does, and with --evaluate show what the merge did.

    A merge that was ended in the middle, by whatever, goes on where it was when the same command is given again; until
    it is finished OUT holds no model. With --ray it runs on the workers of a cluster. The bits are mergekit-yaml's,
    but for experts that are LoRA adapters on the base, which are merged as the products they are (--lora).

    One command from models to proof: base, experts and merge on the same questions, one page, and a sentence for each
    dimension. Exit status: 0; 1 for an error; 3 if too many items have no score; 4 if an expert's dimension is lost by
    more than chance.
    """
    from mergekit_3h.checkpoints.locations import read_json

    if given["verbose"]:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("mergekit_3h").setLevel(logging.INFO)
    if given["as_adapter"] or given["rank"] is not None:
        _write_adapter(config, out.resolve(), suite, given)
        return
    merge = _resumable(given)
    ready = opened_suite(suite, given) if suite is not None else None
    labels = _models(config, given) if ready is not None else {}
    _require_sound(config)
    _merge(merge, config, out.resolve())
    if not given["quiet"]:
        kind = read_json(out / "config.json").get("model_type", "model")
        click.echo(f"{out}: the merged {kind}")
    if ready is not None:
        report = given["report"] or out.with_name(f"{out.name}-evaluation")
        raise SystemExit(_prove(ready, {**labels, MERGED: out}, report, given))


def _models(config: Path, given: dict[str, Any]) -> dict[str, Path]:
    """Base and experts by what the table calls them. Found now: what cannot be evaluated is said before the merge."""
    from mergekit_3h.errors import OptionError
    from mergekit_3h.evaluation.subject import checkpoint_folder
    from mergekit_3h.methods.audited_models import audited_models
    from mergekit_3h.suggestions import did_you_mean

    labels, _ = audited_models((str(config),), given["lora_merge_cache"], given["trust_remote_code"], merged_only=True)
    for folder in labels.values():
        checkpoint_folder(str(folder))
    for dimension, name in pairs("--expert", given["experts"]).items():
        if name not in labels:
            raise OptionError(f"--expert {dimension}={name}: no such model in {config}; {did_you_mean(name, labels)}")
    return labels


def _require_sound(config: Path) -> None:
    """The errors that ``mergekit-3h check`` finds stop the merge; its warnings are told."""
    from mergekit_3h.errors import OptionError
    from mergekit_3h.lint import examine

    report = examine(config, estimate=False)
    for finding in report.of("warning"):
        click.echo(click.style("warning: ", fg="yellow") + finding.message, err=True)
    errors = [finding.message for finding in report.of("error")]
    if errors:
        raise OptionError("\n".join([f"{config} has {len(errors)} error(s):", *errors]))


def _resumable(given: dict[str, Any]) -> ResumableMerge:
    from mergekit_3h.methods.merging.resumable import ResumableMerge

    return ResumableMerge(
        mergekit_options(given),
        cluster_options(given),
        start_over=given["start_over"],
        allow_non_finite=given["allow_non_finite"],
        quiet=given["quiet"],
        lora=given["lora"],
    )


def _merge(merge: ResumableMerge, config: Path, out: Path) -> None:
    from mergekit_3h.methods.merging.endings import InterruptedMergeError
    from mergekit_3h.methods.merging.options import read_merge

    source = config.read_text(encoding="utf-8")
    try:
        merge.write(read_merge(source, config), out, source)
    except InterruptedMergeError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(error.status) from error


def _write_adapter(config: Path, out: Path, suite: str | None, given: dict[str, Any]) -> None:
    from mergekit_3h.checkpoints.merged_adapters import require_free
    from mergekit_3h.methods.adapter_merge import write_merged_adapter
    from mergekit_3h.methods.merging.options import read_merge

    if not given["as_adapter"]:
        raise click.UsageError("--rank goes with --as-adapter")
    if suite is not None or cluster_options(given) is not None:
        raise click.UsageError("--as-adapter takes seconds and writes no model: leave --evaluate and --ray out")
    require_free(out)
    _require_sound(config)
    source = config.read_text(encoding="utf-8")
    made = write_merged_adapter(
        read_merge(source, config),
        out,
        mergekit_options(given),
        route=given["lora"],
        rank=given["rank"],
        source=source,
    )
    if not given["quiet"]:
        click.echo(f"{out}: {made}")


def _prove(ready: Any, folders: dict[str, Path], report: Path, given: dict[str, Any]) -> int:
    from mergekit_3h.cli.compare import write_outputs
    from mergekit_3h.cli.evaluate import BEYOND_LIMITS
    from mergekit_3h.evaluation.comparison_tables import as_text
    from mergekit_3h.evaluation.proof import own_experts, verdicts
    from mergekit_3h.evaluation.side_by_side import side_by_side

    results = _evaluated(ready, folders, report, given)
    base = "base" if "base" in folders else None
    experts = own_experts(results, base, MERGED, pairs("--expert", given["experts"]))
    sentences, is_bad = verdicts(results, base, MERGED, experts)
    table = side_by_side(results, base, experts if base is not None else None)
    page = report / "merge.html"
    title = f"What the merge did: {folders[MERGED].name}"
    write_outputs((page, report / "table.csv", report / "table.md"), [table], results, title, sentences)
    if not given["quiet"]:
        click.echo(as_text(table))
    for sentence in sentences:
        click.echo(sentence)
    click.echo(f"{page}: tables, plots, items")
    beyond = warn_of_unscored(list(results.values()))
    return LOST if is_bad else BEYOND_LIMITS if beyond else 0


def _evaluated(
    ready: Any, folders: dict[str, Path], report: Path, given: dict[str, Any]
) -> dict[str, EvaluationResult]:
    """Base and experts are known after the first merge: their journals stay in the report's folder."""
    from mergekit_3h.evaluation.evaluator import Evaluator
    from mergekit_3h.evaluation.subject import subject_of

    evaluator = Evaluator(ready, quiet=given["quiet"], retry_failed=given["retry_failed"])
    results: dict[str, EvaluationResult] = {}
    try:
        for label, folder in folders.items():
            subject = subject_of(str(folder), backend_settings(given), label)
            name = label.replace("/", "_")
            results[label] = evaluator.evaluate(subject, report / f"{name}.json", report / f"{name}.journal")
            subject.free()
    finally:
        ready.close()
    return results
