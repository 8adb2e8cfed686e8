"""Tasks of lm-eval before they run: found by name, file or keys, with their data, and which of their metrics counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from mergekit_3h.data.records import DataError
from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.evaluation.local_rows import file_digest
from mergekit_3h.optional import optional
from mergekit_3h.suggestions import did_you_mean


class HarnessError(ThreeHError):
    """lm-eval cannot run a task."""


@cache
def task_manager() -> Any:
    """Reading the names of all tasks takes seconds, so it is done once."""
    with quiet_harness():
        return optional("lm_eval.tasks", "eval", "a task of lm-eval").TaskManager()


def loaded_tasks(name: str, spec: Any) -> dict[str, Any]:
    """lm-eval's tasks with their data; its errors as one line."""
    manager = task_manager()
    if isinstance(spec, str) and spec not in manager.all_tasks:
        raise OptionError(f"metric {name!r}: lm-eval has no task {spec!r}; {did_you_mean(spec, manager.all_tasks, '')}")
    try:
        with quiet_harness():
            return cast("dict[str, Any]", manager.load([spec]))
    except Exception as error:  # a task is code of its author, and the hub's client has errors of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HarnessError(
            f"metric {name!r}: the task {_task_name(spec)!r} cannot be loaded ({type(error).__name__}: {reason}). Its "
            "data must be in this machine's cache or allowed to be downloaded (HF_HUB_OFFLINE unset)"
        ) from None


def _task_name(spec: Any) -> str:
    return spec if isinstance(spec, str) else str(spec.get("task") or spec.get("group"))


def task_of_file(file: Path) -> dict[str, Any]:
    """A task in a file of its own. Its data files are looked for beside it."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a task of lm-eval in YAML")
    loader = optional("lm_eval.tasks._yaml_loader", "eval", "a task of lm-eval")
    try:
        spec = loader.load_yaml(file, resolve_func=True)
    except Exception as error:  # YAML's errors, or those of the code that the file names
        raise HarnessError(f"{file}: cannot be read as a task of lm-eval ({error})") from None
    return with_found_files(spec, lambda path: str(file.parent / path))


def with_found_files(spec: Mapping[str, Any], find: Callable[[str], str]) -> dict[str, Any]:
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


def with_digests(spec: Any) -> Any:
    """The task with a digest of each of its data files in place of its path."""
    files = spec.get("dataset_kwargs", {}).get("data_files") if isinstance(spec, dict) else None
    if not files:
        return spec
    digests = {split: [file_digest(Path(path)) for path in paths] for split, paths in files.items()}
    return {**spec, "dataset_kwargs": digests}


def chosen_metric(name: str, wanted: str | None, tasks: Mapping[str, Any]) -> tuple[str, str]:
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


@contextmanager
def quiet_harness() -> Iterator[None]:
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
