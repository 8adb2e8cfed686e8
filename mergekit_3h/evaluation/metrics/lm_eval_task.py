"""Tasks of EleutherAI's lm-evaluation-harness on the model in memory: no checkpoint is written for it.

A task is a name that lm-eval knows, a YAML file of one's own, or lm-eval's own keys in the suite. Arguments of
``lm_eval.simple_evaluate`` and of its model class pass through unchanged.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from mergekit_3h.data.records import DataError, derived_id
from mergekit_3h.data.sections import Section
from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.evaluation.items import EvaluatedItem, Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.metrics.contract import Surroundings
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.optional import optional
from mergekit_3h.suggestions import did_you_mean
from mergekit_3h.writing import write_text_whole

_OURS = {"model", "model_args", "tasks", "log_samples", "use_cache", "task_manager", "batch_size", "device"}
"""Arguments of ``simple_evaluate`` that the suite and the command line give in another way."""
_RUN_CODE = ("humaneval", "mbpp")
"""How the names of lm-eval's tasks begin that run code; others are known by what their configuration says."""
_AGREEMENT = 1e-6
"""How far the mean of the items may be from lm-eval's score when it is that mean: both are sums in another order."""


class HarnessError(ThreeHError):
    """lm-eval cannot run a task."""


class LmEvalTask(Section):
    """One task or group of lm-eval."""

    kind: Literal["lm-eval"]
    task: str | dict[str, Any] = Field(description="A name, a YAML file, or a task's own keys.")
    metric: str | None = Field(
        None, description="METRIC or METRIC,FILTER as lm-eval prints them; unset: the task's first."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Of lm_eval.simple_evaluate: limit, num_fewshot, apply_chat_template, ..."
    )
    model_arguments: dict[str, Any] = Field(
        default_factory=dict, description="Of lm-eval's model class: max_length, add_bos_token, enable_thinking, ..."
    )
    scale: float = Field(100.0, gt=0.0, allow_inf_nan=False, description="Factor on what lm-eval reports.")
    weight: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="Of this metric in its dimension's average.")

    def require_ready(self, name: str, around: Surroundings) -> None:
        optional("lm_eval", "eval", f"metric {name!r}")
        self._require_known_arguments(name)
        if around.keep is not None:
            raise OptionError(
                f"metric {name!r}: a part of an lm-eval task cannot be measured; give the sweep a suite of its own for "
                "validation"
            )
        arguments = self._arguments(around)
        if isinstance(self.task, str) and self.task.partition("_")[0] in _RUN_CODE:
            _require_consent(name, arguments)  # before the task is loaded: that alone needs the environment's consent
        found = _loaded(name, self._spec(around))
        if any(getattr(task, "UNSAFE_CODE", False) for task in found["tasks"].values()):
            _require_consent(name, arguments)
        _chosen_metric(name, self.metric, found["tasks"])

    def depends_on(self, around: Surroundings) -> list[str]:
        return [f"lm-eval {version('lm-eval')}", json.dumps(_plain(self._spec(around)), default=str, sort_keys=True)]

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        key = derived_id(
            subject.key,
            self.model_dump(mode="json", exclude={"weight"}, exclude_defaults=True),
            self.depends_on(around),
        )
        kept = _Kept(journal.folder / f"{name}.lm-eval.json", key)
        measured = kept.read()
        if measured is None:
            measured = self._run(name, subject, journal.folder / f"{name}.{key}", around)
            kept.write(measured)
        done(len(measured.items))
        return measured

    def _run(self, name: str, subject: EvaluatedModel, requests: Path, around: Surroundings) -> Measured:
        lm_eval = optional("lm_eval", "eval", f"metric {name!r}")
        harness_models = optional("lm_eval.models.huggingface", "eval", f"metric {name!r}")
        found = _loaded(name, self._spec(around))
        requests.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            model = harness_models.HFLM(
                pretrained=subject.module,
                tokenizer=subject.tokenizer,
                batch_size=subject.settings.batch_size,
                **self.model_arguments,
            )
            report = lm_eval.simple_evaluate(
                model=model,
                tasks=list((found["groups"] or found["tasks"]).values())[: 1 if found["groups"] else None],
                log_samples=True,
                use_cache=str(requests),
                **self._arguments(around),
            )
        for file in requests.parent.glob(f"{requests.name}_rank*.db*"):
            file.unlink()
        return _measured(report, _chosen_metric(name, self.metric, found["tasks"]), self.scale)

    def _spec(self, around: Surroundings) -> Any:
        """The task as lm-eval takes it, with the files of a task of one's own found beside the suite."""
        if isinstance(self.task, str):
            file = around.file(self.task) if self.task.endswith((".yaml", ".yml")) else None
            return self.task if file is None else _task_file(file)
        return _with_found_files(self.task, lambda path: str(around.file(path)))

    def _arguments(self, around: Surroundings) -> dict[str, Any]:
        return {"confirm_run_unsafe_code": around.runs_code, **self.arguments}

    def _require_known_arguments(self, name: str) -> None:
        simple_evaluate = optional("lm_eval", "eval", f"metric {name!r}").simple_evaluate
        known = [one for one in inspect.signature(simple_evaluate).parameters if one not in _OURS]
        for given in self.arguments:
            if given in _OURS:
                raise OptionError(f"metric {name!r}: the argument {given!r} is not given here; see docs/evaluation.md")
            if given not in known:
                hint = did_you_mean(given, known)
                raise OptionError(f"metric {name!r}: lm_eval.simple_evaluate has no argument {given!r}; {hint}")


def _require_consent(name: str, arguments: Mapping[str, Any]) -> None:
    """A task that runs what the model has written runs only when the user has said so, twice, as lm-eval wants it."""
    missing = []
    if not arguments.get("confirm_run_unsafe_code"):
        missing.append("--confirm-run-unsafe-code (in the suite: arguments: {confirm_run_unsafe_code: true})")
    if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        missing.append("HF_ALLOW_CODE_EVAL=1 in the environment")
    if missing:
        raise OptionError(
            f"metric {name!r}: the task runs code that the model writes, on this machine; to allow that, set "
            f"{' and '.join(missing)}"
        )


@cache
def _manager() -> Any:
    """Reading the names of all tasks takes seconds, so it is done once."""
    with _quiet():
        return optional("lm_eval.tasks", "eval", "a task of lm-eval").TaskManager()


def _loaded(name: str, spec: Any) -> dict[str, Any]:
    """lm-eval's tasks with their data; its errors as one line."""
    manager = _manager()
    if isinstance(spec, str) and spec not in manager.all_tasks:
        raise OptionError(f"metric {name!r}: lm-eval has no task {spec!r}; {did_you_mean(spec, manager.all_tasks, '')}")
    try:
        with _quiet():
            return cast("dict[str, Any]", manager.load([spec]))
    except Exception as error:  # a task is code of its author, and the hub's client has errors of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HarnessError(
            f"metric {name!r}: the task {_task_name(spec)!r} cannot be loaded ({type(error).__name__}: {reason}). Its "
            "data must be in this machine's cache or allowed to be downloaded (HF_HUB_OFFLINE unset)"
        ) from None


def _task_name(spec: Any) -> str:
    return spec if isinstance(spec, str) else str(spec.get("task") or spec.get("group"))


def _task_file(file: Path) -> dict[str, Any]:
    """A task in a file of its own. Its data files are looked for beside it."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a task of lm-eval in YAML")
    loader = optional("lm_eval.tasks._yaml_loader", "eval", "a task of lm-eval")
    try:
        spec = loader.load_yaml(file, resolve_func=True)
    except Exception as error:  # YAML's errors, or those of the code that the file names
        raise HarnessError(f"{file}: cannot be read as a task of lm-eval ({error})") from None
    return _with_found_files(spec, lambda path: str(file.parent / path))


def _with_found_files(spec: Mapping[str, Any], find: Any) -> dict[str, Any]:
    found = dict(spec)
    keywords = dict(found.get("dataset_kwargs") or {})
    files = keywords.get("data_files")
    if files is not None:
        named = {"test": files} if isinstance(files, (str, list)) else dict(files)
        for split, paths in named.items():
            each = [paths] if isinstance(paths, str) else list(paths)
            named[split] = [path if "://" in path else find(path) for path in each]
            missing = [path for path in named[split] if "://" not in path and not Path(path).is_file()]
            if missing:
                raise DataError(f"{missing[0]}: no such file; the task {_task_name(spec)!r} takes its data from it")
        found["dataset_kwargs"] = {**keywords, "data_files": named}
    return found


def _plain(spec: Any) -> Any:
    """The task with a digest of each of its data files in place of its path."""
    from mergekit_3h.evaluation.local_rows import file_digest

    files = spec.get("dataset_kwargs", {}).get("data_files") if isinstance(spec, dict) else None
    if not files:
        return spec
    digests = {split: [file_digest(Path(path)) for path in paths] for split, paths in files.items()}
    return {**spec, "dataset_kwargs": digests}


def _chosen_metric(name: str, wanted: str | None, tasks: Mapping[str, Any]) -> tuple[str, str]:
    """Metric and filter, as lm-eval names them; unset: the first that the tasks have."""
    task = next(iter(tasks.values()))
    metrics = list(dict.fromkeys(task.aggregation()))
    filters = [ensemble.name for ensemble in getattr(task, "_filters", [])] or ["none"]
    metric, _, chosen = (wanted or metrics[0]).partition(",")
    if metric not in metrics:
        raise OptionError(f"metric {name!r}: the task has no metric {metric!r}; {did_you_mean(metric, metrics)}")
    if chosen and chosen not in filters:
        raise OptionError(f"metric {name!r}: the task has no filter {chosen!r}; {did_you_mean(chosen, filters)}")
    return metric, chosen or filters[0]


def _measured(report: Mapping[str, Any], metric: tuple[str, str], scale: float) -> Measured:
    column = ",".join(metric)
    top = next(iter(report.get("groups") or report["results"]))
    outcome = (report.get("groups") or report["results"])[top]
    tasks = report["samples"]
    items = [
        _item(sample, metric[0], name if len(tasks) > 1 else "")
        for name, samples in tasks.items()
        for sample in samples
        if sample.get("filter", "none") == metric[1]
    ]
    higher = next((known[metric[0]] for known in report["higher_is_better"].values() if metric[0] in known), True)
    versions = {name: str(found) for name, found in report["versions"].items()}
    found: dict[str, Any] = {"lm-eval": column, "task versions": versions}
    measured = Measured(items, "lower" if higher is False else "higher", scale, details=found)
    values = list(measured.values.values())
    score = outcome.get(column)
    if score is None or (
        len(values) == len(items) and abs(sum(values) / len(values) - score) <= _AGREEMENT * max(1.0, abs(score))
    ):
        return measured
    error = outcome.get(f"{metric[0]}_stderr,{metric[1]}")
    error = error if isinstance(error, float) else None
    return Measured(items, measured.better, scale, scale * score, None if error is None else scale * error, found)


def _item(sample: Mapping[str, Any], metric: str, task: str) -> EvaluatedItem:
    value: Any = sample.get(metric)
    number = float(value) if isinstance(value, (bool, int, float)) or hasattr(value, "item") else None
    return EvaluatedItem(
        id="/".join(filter(None, [task, str(sample["doc_id"]), str(sample["doc_hash"])[:12]])),
        prompt=_first_text(sample["arguments"]),
        reply=_first_text(sample["filtered_resps"]) if _is_text(sample["filtered_resps"]) else None,
        value=number,
        verdict=str(sample["target"])[:200],
        reason=None if number is not None else "lm-eval gives no number for a single item of this metric",
    )


def _is_text(replies: Any) -> bool:
    return isinstance(replies, list) and bool(replies) and isinstance(replies[0], str)


def _first_text(given: Any) -> str:
    """The first text in lm-eval's nested lists and mappings."""
    while not isinstance(given, str):
        if isinstance(given, Mapping) and given:
            given = next(iter(cast("Mapping[str, Any]", given).values()))
        elif isinstance(given, Sequence) and given:
            given = given[0]
        else:
            return str(given)
    return given


class _Kept:
    """What a task gave, on disk: it is there whole or not at all."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def read(self) -> Measured | None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if found.pop("key", None) != self._key:
            return None
        return Measured(**{**found, "items": [EvaluatedItem.model_validate(item) for item in found["items"]]})

    def write(self, measured: Measured) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {**vars(measured), "items": [item.model_dump() for item in measured.items], "key": self._key}
        write_text_whole(self._path, json.dumps(content))


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval talks at length about what it is asked to do; its warnings and errors stay."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "lm_eval.models.huggingface")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
