"""``mergekit-3h evaluate``: a suite of metrics on a model, written as one JSON file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mergekit_3h.data.backends.settings import TransformersSettings
    from mergekit_3h.evaluation.result import EvaluationResult
    from mergekit_3h.evaluation.suite import ReadySuite

BEYOND_LIMITS = 3
"""Exit status of an evaluation that is complete but left more items without a score than its suite allows."""


def suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every command takes that runs a suite."""
    decorators = (
        click.option("--file", "files", multiple=True, metavar="NAME=PATH", help="A file that the suite asks for."),
        click.option(
            "--judge",
            "judges",
            multiple=True,
            metavar="NAME=MODEL",
            help="The model behind a judge of the suite: a folder, or NAME@URL of a server, or NAME@URL#VARIABLE with "
            "the environment variable that holds its key.",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1; auto: a GPU if there is."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="auto: the checkpoint's own; on a CPU float32, unless bfloat16 is faster there.",
        ),
        click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Items at once."),
        click.option(
            "--chat-template",
            type=click.Choice(["auto", "plain"]),
            default="auto",
            show_default=True,
            help="auto: the tokenizer's, if it has one.",
        ),
        click.option(
            "--confirm-run-unsafe-code",
            is_flag=True,
            help="Let tasks of lm-eval run what the models write, on this machine (humaneval, mbpp).",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the models."),
        click.option("--retry-failed", is_flag=True, help="Ask again what had no answer in an earlier run."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bars, no table."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


@click.command("evaluate")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--suite", help="YAML file, or the name of a suite that comes with the package.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder for NAME.json of each model.",
)
@click.option("--name", "names", multiple=True, help="What to call the models, in their order; unset: their folders.")
@click.option("--suites", "list_suites", is_flag=True, help="List the suites that come with the package.")
@suite_options
def command(
    models: tuple[str, ...], suite: str | None, output: Path, names: tuple[str, ...], list_suites: bool, **given: Any
) -> None:
    """Evaluate each MODEL (a checkpoint's folder, or a cached name of the hub) by a suite.

    What is missing is said before a model is loaded. A run that is killed goes on where it was; what is known of an
    earlier run is not computed again. Exit status: 0, 1 for an error, 3 if too many items have no score.
    """
    from mergekit_3h.data.records import DataError
    from mergekit_3h.evaluation.evaluator import Evaluator
    from mergekit_3h.evaluation.suite import shipped_suites

    if list_suites:
        click.echo("\n".join(shipped_suites()))
        return
    if not models or suite is None:
        raise click.UsageError("name at least one model, and a suite with --suite")
    if names and len(names) != len(models):
        raise DataError(f"--name: got {len(names)} for {len(models)} models; give one for each, in their order")
    ready = opened_suite(suite, given)
    labels = labels_of(models, names)
    subjects = [(label, opened_subject(model, label, given)) for label, model in zip(labels, models, strict=True)]
    evaluator = Evaluator(ready, quiet=given["quiet"], retry_failed=given["retry_failed"])
    results: list[EvaluationResult] = []
    try:
        for label, subject in subjects:
            results.append(evaluator.evaluate(subject, output / f"{label}.json", output / f"{label}.journal"))
            subject.free()
            if not given["quiet"]:
                show(results[-1], output / f"{label}.json")
    finally:
        ready.close()
    raise SystemExit(BEYOND_LIMITS if warn_of_unscored(results) else 0)


def opened_suite(suite: str, given: dict[str, Any], **more: Any) -> ReadySuite:
    """The suite with the user's files and judges, everything that can be known without a model checked."""
    from mergekit_3h.evaluation.suite import read_suite

    more.setdefault("runs_code", given["confirm_run_unsafe_code"])
    ready = read_suite(suite, pairs("--file", given["files"]), pairs("--judge", given["judges"]), **more)
    ready.require_ready()
    return ready


def opened_subject(model: str, label: str, given: dict[str, Any]) -> Any:
    from mergekit_3h.evaluation.subject import subject_of

    return subject_of(model, backend_settings(given), label)


def backend_settings(given: dict[str, Any]) -> TransformersSettings:
    from mergekit_3h.data.backends.settings import TransformersSettings

    return TransformersSettings.model_validate(
        {
            "model": "model",
            "device": given["device"],
            "dtype": given["dtype"],
            "batch_size": given["batch_size"],
            "template": given["chat_template"],
            "trust_remote_code": given["trust_remote_code"],
        }
    )


def labels_of(models: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """A file name for each model; they must differ."""
    from mergekit_3h.data.records import DataError

    labels = list(names) or [Path(model).name for model in models]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise DataError(f"two models are called {twice!r}; give each a name with --name")
    return labels


def pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    from mergekit_3h.data.records import DataError

    wrong = next((one for one in given if "=" not in one), None)
    if wrong is not None:
        raise DataError(f"{option}: got {wrong!r}, expected NAME=...")
    return dict(one.split("=", 1) for one in given)


def show(result: EvaluationResult, path: Path) -> None:
    """Scores with their intervals, and where the rest is."""
    from mergekit_3h.evaluation.summary import summary_table

    click.echo(f"{result.model} by {result.suite} ({result.seconds:.0f} s on {result.device}, {result.dtype})")
    click.echo(summary_table(result).as_text(ruled=True))
    click.echo(f"{path}: every item, verdict and interval")


def warn_of_unscored(results: list[EvaluationResult]) -> bool:
    """Says which metrics lack too many scores; whether there is one."""
    beyond = [(result, name, share) for result in results for name, share in result.beyond_limit().items()]
    for result, name, share in beyond:
        reasons = result.metrics[name].unscored()
        most = max(reasons, key=reasons.__getitem__) if reasons else "no item"
        click.echo(
            f"Beyond the limit: {result.model}, {name}: {share:.0%} of the items have no score (most often: {most})",
            err=True,
        )
    return bool(beyond)
