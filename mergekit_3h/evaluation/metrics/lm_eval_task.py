"""Tasks of EleutherAI's lm-evaluation-harness on the model in memory: no checkpoint is written for it.

A task is a name that lm-eval knows, a YAML file of one's own, or lm-eval's own keys in the suite. Arguments of
``lm_eval.simple_evaluate`` and of its model class pass through unchanged.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mergekit_3h.data.records import derived_id
from mergekit_3h.data.sections import Section
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.items import Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.metrics.contract import Surroundings
from mergekit_3h.evaluation.metrics.lm_eval_loading import (
    chosen_metric,
    loaded_tasks,
    quiet_harness,
    task_of_file,
    with_digests,
    with_found_files,
)
from mergekit_3h.evaluation.metrics.lm_eval_report import KeptReport, measured_of
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.optional import optional
from mergekit_3h.suggestions import did_you_mean

_OURS = {"model", "model_args", "tasks", "log_samples", "use_cache", "task_manager", "batch_size", "device"}
"""Arguments of ``simple_evaluate`` that the suite and the command line give in another way."""
_RUN_CODE = ("humaneval", "mbpp")
"""How the names of lm-eval's tasks begin that run code; others are known by what their configuration says."""


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
        found = loaded_tasks(name, self._spec(around))
        if any(getattr(task, "UNSAFE_CODE", False) for task in found["tasks"].values()):
            _require_consent(name, arguments)
        chosen_metric(name, self.metric, found["tasks"])

    def depends_on(self, around: Surroundings) -> list[str]:
        return [
            f"lm-eval {version('lm-eval')}",
            json.dumps(with_digests(self._spec(around)), default=str, sort_keys=True),
        ]

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        key = derived_id(
            subject.key,
            self.model_dump(mode="json", exclude={"weight"}, exclude_defaults=True),
            self.depends_on(around),
        )
        kept = KeptReport(journal.folder / f"{name}.lm-eval.json", key)
        measured = kept.read()
        if measured is None:
            measured = self._run(name, subject, journal.folder / f"{name}.{key}", around)
            kept.write(measured)
        done(len(measured.items))
        return measured

    def _run(self, name: str, subject: EvaluatedModel, requests: Path, around: Surroundings) -> Measured:
        lm_eval = optional("lm_eval", "eval", f"metric {name!r}")
        harness_models = optional("lm_eval.models.huggingface", "eval", f"metric {name!r}")
        found = loaded_tasks(name, self._spec(around))
        requests.parent.mkdir(parents=True, exist_ok=True)
        with quiet_harness():
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
        return measured_of(report, chosen_metric(name, self.metric, found["tasks"]), self.scale)

    def _spec(self, around: Surroundings) -> Any:
        """The task as lm-eval takes it, with the files of a task of one's own found beside the suite."""
        if isinstance(self.task, str):
            file = around.file(self.task) if self.task.endswith((".yaml", ".yml")) else None
            return self.task if file is None else task_of_file(file)
        return with_found_files(self.task, lambda path: str(around.file(path)))

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
