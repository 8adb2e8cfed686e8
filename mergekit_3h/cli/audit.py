"""``mergekit-3h audit``: what each model does by itself on the data, before it is merged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_3h.tables import Table

if TYPE_CHECKING:
    from mergekit_3h.data.backends.protocol import Backend
    from mergekit_3h.evaluation.audit import Auditor, ModelAudit

_PAUSE = 10.0
"""Seconds between two lines of progress where they are not overwritten: in a log file."""


@click.command("audit")
@click.argument("models", nargs=-1, required=True)
@click.option("--data", help="JSONL files, separated by commas. Unset: those of the config.")
@click.option("--guard", default="keyword", show_default=True, help="Who tells refusals; keyword needs no model.")
@click.option("--guard-model", help="The guard's model: a folder or a name on the hub.")
@click.option("--guard-url", help="OpenAI-compatible server with the guard's model.")
@click.option("--guard-key-env", help="Environment variable with the server's API key.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Length of replies.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Records per pass.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--chat-template", default="auto", show_default=True, help="auto, or plain for none.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
@click.option("--lora-merge-cache", type=click.Path(), help="Folder for models made of a base and a LoRA adapter.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the models.")
@click.option(
    "--journal",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("audit.journal"),
    show_default=True,
    help="Folder for what has been computed. It is not computed again, for the same weights under any name.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
def command(
    models: tuple[str, ...],
    data: str | None,
    guard: str,
    guard_model: str | None,
    guard_url: str | None,
    guard_key_env: str | None,
    max_new_tokens: int,
    device: str,
    lora_merge_cache: str | None,
    trust_remote_code: bool,
    journal: Path,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Losses, refusals and over-refusals of every model on the data, before they are merged.

    MODELS are folders or names of models, or one mergekit config, whose models are audited, the base first. Losses are
    those of the records' own responses; refusals are counted among the replies that the models give to the prompts.
    A row is shown as soon as its model is done; an audit that was killed goes on where it was, when called again. Exit
    status: 0, or 1 if a model could not be audited.
    """
    from mergekit_3h.data.guards import guard_named
    from mergekit_3h.evaluation.audit import Auditor
    from mergekit_3h.losses.options import LossOptions
    from mergekit_3h.losses.records import located_records
    from mergekit_3h.methods.audited_models import audited_models
    from mergekit_3h.options import checked
    from mergekit_3h.safety.options import data_files

    named, config_data = audited_models(models, lora_merge_cache, trust_remote_code)
    judge = guard_named(guard)
    backend = _guard_backend(judge.needs_model, guard, guard_model, guard_url, guard_key_env, device)
    auditor = Auditor(
        records=located_records(data_files(data or config_data)),
        options=LossOptions(**{name: checked(LossOptions, name, value) for name, value in options.items()}),
        guard=judge,
        journal=journal,
        guard_backend=backend,
        guard_model=f"{guard_model} {guard_url}",
        device=device,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    audits = _audited(auditor, named, quiet, as_json)
    _conclude(audits, as_json)
    raise SystemExit(1 if any(audit.failure for audit in audits) else 0)


def _guard_backend(
    is_needed: bool, guard: str, model: str | None, url: str | None, key_env: str | None, device: str
) -> Backend | None:
    from mergekit_3h.data.backends.settings import ServerSettings, TransformersSettings

    if not is_needed:
        return None
    if model is None:
        raise click.UsageError(f"the guard {guard} needs --guard-model (with --guard-url: its name on the server)")
    if url is not None:
        settings: Any = ServerSettings.model_validate({"base_url": url, "model": model, "api_key_env": key_env})
    else:
        settings = TransformersSettings.model_validate({"model": model, "device": device})
    settings.check(guard)
    return settings.open()


def _audited(auditor: Auditor, models: Mapping[str, Path], quiet: bool, as_json: bool) -> list[ModelAudit]:
    """Every model; on a terminal its row as soon as it is done, and below it how long the others take."""
    from tqdm import tqdm

    headers = [
        "model",
        *(f"loss {name}" for name in auditor.sets),
        *(f"refuses {name}" for name in auditor.sets),
        "unscored",
    ]
    table = Table(headers, [[label, *[""] * (len(headers) - 1)] for label in models])
    audits: list[ModelAudit] = []
    if not as_json:
        click.echo(table.line(headers))
    pause = 0.1 if sys.stderr.isatty() else _PAUSE
    # smoothing 0: losses and replies take turns, so only the mean of both says how long a model takes
    with tqdm(total=auditor.steps * len(models), disable=quiet, mininterval=pause, smoothing=0, unit="record") as bar:
        for label, folder in models.items():
            bar.set_description(label)
            audits.append(auditor.audit(label, folder, lambda: _stepping(bar)))
            if not as_json:
                with bar.external_write_mode(file=sys.stdout):
                    click.echo(table.line([label, *_cells(audits[-1], auditor.sets)]))
            bar.update(len(audits) * auditor.steps - bar.n)  # also what a failure has left out
    return audits


def _stepping(bar: Any) -> Callable[[int], None]:
    """Counts what is known before, which is told first, without taking it for fast."""
    is_first = True

    def step(count: int) -> None:
        nonlocal is_first
        if is_first and not bar.disable:
            bar.initial += count
        is_first = False
        bar.update(count)

    return step


def _conclude(audits: list[ModelAudit], as_json: bool) -> None:
    from mergekit_3h.evaluation.audit import remarks

    notes = remarks(audits)
    if as_json:
        click.echo(json.dumps({"models": [audit.as_dict() for audit in audits], "remarks": notes}, indent=2))
        return
    for note in notes:
        click.echo(click.style("note: ", fg="yellow") + note)


def _cells(audit: ModelAudit, sets: list[str]) -> list[str]:
    losses = [f"{audit.losses[name]:.4f}" if name in audit.losses else "-" for name in sets]
    rates = [audit.rates.get(name) for name in sets]
    refusals = ["-" if r is None or r.refusal_rate is None else f"{r.refusal_rate:.0%}" for r in rates]
    return [*losses, *refusals, str(sum(r.unscored for r in rates if r is not None))]
