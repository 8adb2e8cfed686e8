"""Whole ``mergekit-yaml`` runs on a random model: wall time, peak memory, and where the time goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from mergekit_3h.benchmarks.checkpoints import LlamaSize, llama_of, write_checkpoints
from mergekit_3h.benchmarks.machine import Machine, this_machine
from mergekit_3h.benchmarks.problems import DTYPES, WEIGHT_RMS, UpdateKind
from mergekit_3h.benchmarks.results import Spread, spread
from mergekit_3h.benchmarks.tables import Table, machine_lines, seconds_text
from mergekit_3h.errors import OptionError, ThreeHError

METHODS = ("linear", "tsvm", "rtsvm")
MOST_ROUNDS = 9
_POLL_SECONDS = 0.02


class MergeRunError(ThreeHError):
    """mergekit-yaml failed."""


@dataclass(frozen=True)
class EndToEndPlan:
    parameters: int
    experts: int
    dtype: str
    update: UpdateKind
    device: str
    threads: int
    budget: float
    options: Mapping[str, Mapping[str, Any]]
    """Options of a method, by its name."""
    weights: float = WEIGHT_RMS


@dataclass(frozen=True)
class MergeRun:
    """One process, in seconds and bytes."""

    wall: float
    start: float
    """Python's start and imports, and what comes before mergekit's ``run_merge``."""
    planning: float
    """Of ``run_merge``, what is outside the execution of the graph: planning before it, config and card after it."""
    reading: float
    kernel: float
    writing: float
    graph: float
    """What the graph adds: its execution but for reading, kernel and writing."""
    peak_rss: int
    peak_anonymous: int | None
    """Without pages of mapped checkpoint files, which the system drops when it needs memory; sampled, Linux only."""


@dataclass(frozen=True)
class MethodResult:
    rounds: list[MergeRun]
    wall: Spread
    graph_share: float
    """Median of what the graph adds, relative to the kernel."""

    def middle(self, part: str) -> float:
        return spread([getattr(run, part) for run in self.rounds]).median


@dataclass(frozen=True)
class EndToEnd:
    machine: Machine
    settings: dict[str, Any]
    model: LlamaSize
    model_bytes: int
    """Of one checkpoint."""
    methods: dict[str, MethodResult]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.model.parameters}


def run_end_to_end(plan: EndToEndPlan, say: Callable[[str], None] = lambda _: None) -> EndToEnd:
    """Every method once, and again in turn while the budget lasts."""
    if find_spec("mergekit") is None:
        raise OptionError("--end-to-end: mergekit is not installed; pip install 'mergekit>=0.1.5'")
    size = llama_of(plan.parameters)
    with tempfile.TemporaryDirectory(prefix="mergekit-3h-bench-") as name:
        folder = Path(name).resolve()
        say(f"making a base and {plan.experts} experts of {size.parameters / 1e6:.1f} M parameters in {folder}")
        paths = write_checkpoints(folder, size, plan.experts, plan.dtype, plan.update, plan.weights)
        rounds: dict[str, list[MergeRun]] = {method: [] for method in METHODS}
        end, longest = monotonic() + plan.budget, 0.0
        for done in range(MOST_ROUNDS):
            start = monotonic()
            if done and start + longest > end:
                break
            for method in METHODS:
                say(f"round {done + 1}: {method}")
                rounds[method].append(_merge(folder, paths, method, plan))
            longest = max(longest, monotonic() - start)
    return EndToEnd(
        machine=this_machine(plan.device),
        settings={**asdict(plan), "options": {name: dict(given) for name, given in plan.options.items()}},
        model=size,
        model_bytes=size.parameters * DTYPES[plan.dtype].itemsize,
        methods={
            method: MethodResult(
                runs, spread([run.wall for run in runs]), spread([run.graph / run.kernel for run in runs]).median
            )
            for method, runs in rounds.items()
        },
    )


def _merge(folder: Path, paths: Sequence[Path], method: str, plan: EndToEndPlan) -> MergeRun:
    base, *experts = map(str, paths)
    config: dict[str, Any] = {"merge_method": method, "models": [{"model": expert} for expert in experts]}
    if method == "linear":
        config["parameters"] = {"weight": 1.0}
    else:
        config |= {"base_model": base, "parameters": dict(plan.options.get(method, {}))}
    config_file, profile, out = folder / f"{method}.yml", folder / "profile.json", folder / f"merged-{method}"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    arguments = [str(profile), str(config_file), str(out), "--quiet", "--no-copy-tokenizer", "--device", plan.device]
    command = [sys.executable, "-m", "mergekit_3h.benchmarks.profiled_merge", *arguments]
    command += ["--num-threads", str(plan.threads)]
    start = perf_counter()
    peak_anonymous = run_process(command, method)
    wall = perf_counter() - start
    parts = json.loads(profile.read_text())
    inside = parts["reading"] + parts["kernel"] + parts["writing"]
    return MergeRun(
        wall=wall,
        start=wall - parts["merge"],
        planning=parts["merge"] - parts["graph"],
        reading=parts["reading"],
        kernel=parts["kernel"],
        writing=parts["writing"],
        graph=parts["graph"] - inside,
        peak_rss=int(parts["peak_rss"]),
        peak_anonymous=peak_anonymous,
    )


def run_process(command: Sequence[str], method: str) -> int | None:
    """Run to the end; the largest part of its resident set, sampled, that is no mapped file."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MERGEKIT_3H_AUTOLOAD": "1"}
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stdout=messages, stderr=subprocess.STDOUT, env=environment)
        sampler = _Sampler(process.pid)
        sampler.start()
        process.wait()
        sampler.stop()
        if process.returncode:
            messages.seek(0)
            last = [line for line in messages.read().splitlines() if line.strip()][-5:]
            raise MergeRunError(
                f"mergekit-yaml with {method} ended with status {process.returncode}:\n" + "\n".join(last)
            )
    return sampler.peak or None


class _Sampler(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            anonymous = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
            self.peak = max(self.peak, *anonymous, 0)
            sleep(_POLL_SECONDS)

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def end_to_end_lines(result: EndToEnd, *, markdown: bool) -> list[str]:
    """The whole report, ready to be printed."""
    chosen = result.settings
    headers = ["method", "wall (quartiles)", "start", "planning", "reading", "kernel", "writing", "graph"]
    headers += ["graph / kernel", "peak RSS", "without mapped files"]
    rows = [
        [
            method,
            f"{seconds_text(found.wall.median)} ({' - '.join(map(seconds_text, found.wall.quartiles))})",
            *(seconds_text(found.middle(part)) for part in headers[2:8]),
            f"{100 * found.graph_share:.1f} %",
            f"{found.middle('peak_rss') / 1e6:.0f} MB",
            _anonymous(found),
        ]
        for method, found in result.methods.items()
    ]
    table = Table(headers, rows)
    rounds = min(len(found.rounds) for found in result.methods.values())
    return [
        *machine_lines(result.machine, chosen["threads"]),
        f"mergekit-yaml, random Llama of {result.model.parameters / 1e6:.1f} M parameters "
        f"(hidden {result.model.hidden}, {result.model.layers} layers, vocabulary {result.model.vocabulary}), "
        f"n = {chosen['experts']}, {chosen['dtype']} on {chosen['device']}, updates: {chosen['update']}; "
        f"{result.model_bytes / 1e6:.0f} MB a checkpoint; medians of {rounds} rounds",
        "",
        table.as_markdown() if markdown else table.as_text(),
    ]


def _anonymous(found: MethodResult) -> str:
    sizes = [run.peak_anonymous for run in found.rounds if run.peak_anonymous is not None]
    return f"{spread(sizes).median / 1e6:.0f} MB" if sizes else "-"
