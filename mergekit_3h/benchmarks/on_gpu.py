"""Whether merges on this machine's GPU are what they should be, in a few minutes: a table, and all numbers as JSON.

    python -m mergekit_3h.benchmarks.on_gpu --json gpu.json

Random checkpoints of Llama-3-8B's shapes are merged from files to files, with reading, merging and writing at once and
alone; matrices are merged beside FusionBench's function; and the card's rates are measured. ``--device cpu`` with small
shapes goes the same way, with the CPU standing in for the card.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from mergekit_3h.benchmarks.checkpoints import LlamaSize
from mergekit_3h.benchmarks.device_checks import DeviceChecks, check_device
from mergekit_3h.benchmarks.files_to_files import FilesPlan, FilesToFiles, files_to_files
from mergekit_3h.benchmarks.machine import this_machine
from mergekit_3h.benchmarks.tables import NOT_MEASURED, machine_lines, seconds_text
from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.inspection.devices import device_problem
from mergekit_3h.kernels.devices import float64_rate
from mergekit_3h.spectral import registry
from mergekit_3h.tables import Table

MOST_RATIO = 1.2
"""Of a whole merge to the longest of its stages alone."""

LEAST_FACTOR = 8.0
"""Times as fast as FusionBench's function, at ``FACTOR_SIDE``."""
FACTOR_SIDE = 4096

MOST_FOR_AUTO = 1.05
"""Of the time of ``auto`` to that of ``exact`` where it cannot be certified: what the timing itself is off by."""

Row = tuple[str, str, str, str]
"""What was measured, the figure, what it should be, and whether it is."""


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda or cuda:1; cpu tries everything out.")
@click.option("--layers", type=click.IntRange(1), default=4, show_default=True, help="Of the 32 of Llama-3-8B.")
@click.option("--hidden", type=click.IntRange(16), default=4096, show_default=True)
@click.option("--intermediate", type=click.IntRange(16), default=14336, show_default=True)
@click.option(
    "--key-value", type=click.IntRange(16), default=1024, show_default=True, help="Rows of k_proj and v_proj."
)
@click.option("--vocabulary", type=click.IntRange(16), default=8192, show_default=True)
@click.option("-n", "--experts", type=click.IntRange(2), default=3, show_default=True)
@click.option("--method", default="tsvm", show_default=True, help="Any spectral method.")
@click.option("--side", type=click.IntRange(16), default=4096, show_default=True, help="Of the single matrices.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of the single matrices.")
@click.option("--memory-gb", type=click.FloatRange(min=0, min_open=True), help="As in a merge's config.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Disk to read from and write to.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All numbers, here.")
@click.option("--markdown", "table_file", type=click.Path(dir_okay=False, path_type=Path), help="The table, here too.")
def main(
    device: str, side: int, rounds: int, folder: Path | None, json_file: Path | None, table_file: Path | None, **of: Any
) -> None:
    """Measure merges on a GPU, from files to files and single matrices."""
    try:
        found = _measured(device, side, rounds, folder, of)
    except ThreeHError as error:
        raise click.ClickException(str(error)) from None
    table = Table(["measured", "figure", "aim", "met"], list(_rows(found["files"], found["matrices"], device)))
    lines = [*machine_lines(found["machine"], torch.get_num_threads()), found["float64"], "", table.as_markdown()]
    click.echo("\n".join(lines))
    if table_file is not None:
        table_file.write_text("\n".join(lines) + "\n")
    if json_file is not None:
        files, matrices = found["files"], found["matrices"]
        numbers = {**asdict(files), "ratio": files.ratio, "merging_share": files.merging_share}
        content = {"machine": found["machine"].as_dict(), "float64": found["float64"], "files": numbers}
        json_file.write_text(
            json.dumps({**content, "matrices": asdict(matrices), "settings": found["settings"]}, indent=2)
        )


def _measured(device: str, side: int, rounds: int, folder: Path | None, of: dict[str, Any]) -> dict[str, Any]:
    problem = device_problem(device)
    if problem is not None:
        raise OptionError(f"--device: {problem}; --device cpu tries the measurement out, with small shapes")
    registry.parse_options(of["method"], {})
    if folder is not None and not folder.is_dir():
        raise OptionError(f"--folder: there is no folder {folder}")
    size = LlamaSize(of["hidden"], of["intermediate"], of["vocabulary"], of["layers"], of["key_value"])
    plan = FilesPlan(size, of["experts"], "bfloat16", of["method"], device, of["memory_gb"])
    place = torch.device(device)
    with tempfile.TemporaryDirectory(prefix="mergekit-3h-gpu-", dir=folder) as name:
        files = files_to_files(plan, Path(name).resolve(), lambda text: click.echo(text, err=True))
    click.echo(f"single matrices of {side} x {side}", err=True)
    return {
        "machine": this_machine(device),
        "float64": f"float64 {float64_rate(place)}" if place.type == "cuda" else "the CPU stands in for a GPU",
        "files": files,
        "matrices": check_device(place, side, rounds),
        "settings": {"device": device, "side": side, "rounds": rounds, **of},
    }


def _rows(files: FilesToFiles, matrices: DeviceChecks, device: str) -> Iterator[Row]:
    size = f"{files.parameters / 1e6:.1f} M parameters, {files.read_bytes / 1e6:.1f} MB read"
    yield f"whole merge: {size}", seconds_text(files.whole), "", ""
    for stage, seconds in files.alone.items():
        yield f"{stage} alone", seconds_text(seconds), "", ""
    yield _aimed("whole / longest of the three", files.ratio, f"<= {MOST_RATIO}", files.ratio <= MOST_RATIO)
    yield "one tensor after the other", seconds_text(files.in_turn), "", ""
    yield (
        "same files as one after the other",
        "yes" if files.has_same_files else "no",
        "yes",
        _met(files.has_same_files),
    )
    yield "time in which a tensor is merged", f"{files.merging_share:.0%}", "", ""
    busy = NOT_MEASURED if files.utilisation is None else f"{files.utilisation:.0%}"
    yield "card busy, as its driver has it", busy, "", ""
    if files.peak_allocated is not None and files.peak_reserved is not None and files.room is not None:
        is_within = files.peak_allocated <= files.room
        yield (
            "peak of the card's memory",
            _gigabytes(files.peak_allocated),
            f"<= {_gigabytes(files.room)}",
            _met(is_within),
        )
        yield "the same with what the allocator keeps", _gigabytes(files.peak_reserved), "", ""
    side, peer, decompositions = f"{matrices.side}x{matrices.side}", matrices.peer, matrices.decompositions
    yield f"{side}, float32, n = 3", seconds_text(peer.ours), "", ""
    yield f"{side}, {peer.peer}", f"{seconds_text(peer.theirs)}, first {seconds_text(peer.theirs_first)}", "", ""
    is_aimed = matrices.side == FACTOR_SIDE and device != "cpu"
    aim = f">= {LEAST_FACTOR:g}" if is_aimed else ""
    met = _met(peer.times_as_fast >= LEAST_FACTOR) if is_aimed else ""
    yield f"times as fast as {peer.peer}", f"{peer.times_as_fast:.1f}", aim, met
    yield "distance of the two results", f"{peer.apart:.1e}", "", ""
    longer = decompositions.auto / decompositions.exact
    yield f"{side}, bfloat16, exact", seconds_text(decompositions.exact), "", ""
    yield _aimed("auto / exact", longer, f"<= {MOST_FOR_AUTO}", longer <= MOST_FOR_AUTO)
    rates = matrices.rates
    yield "float64 products", f"{rates.float64 / 1e12:.2f} TFLOP/s", "", ""
    yield "float32 / float64", f"{rates.float32 / rates.float64:.1f}", "", ""


def _aimed(name: str, value: float, aim: str, is_met: bool) -> Row:
    return name, f"{value:.2f}", aim, _met(is_met)


def _met(is_met: bool) -> str:
    return "yes" if is_met else "no"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
