"""The FusionBench task pool ``3h``: a suite of helpfulness, honesty and harmlessness on the merged model in memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.mixins.lightning_fabric import LightningFabricMixin
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from fusion_bench.taskpool.base_pool import BaseTaskPool
from torch import nn

from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.hydra_values import plain_value
from mergekit_3h.checkpoints.opening import in_precision
from mergekit_3h.checkpoints.precision import settled_precision
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.sections import parsed
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.evaluation.evaluator import Evaluator
from mergekit_3h.evaluation.result import EvaluationResult
from mergekit_3h.evaluation.subject import EvaluatedModel, checkpoint_folder, subject_in_memory
from mergekit_3h.evaluation.suite import read_suite

log = logging.getLogger(__name__)

_OPTIONS = (
    *("suite", "files", "judges", "name", "output", "tokenizer", "batch_size", "dtype", "chat_template"),
    *("retry_failed", "quiet"),
)


class ThreeHTaskPool(BaseTaskPool, LightningFabricMixin):
    """Evaluates by a suite; what is missing is said when the pool is made, before anything is merged.

    Args:
        suite: YAML file of a suite, or the name of one that comes with the package.
        files: paths of the files that the suite asks for, by name.
        judges: models behind the suite's judges, by name: a folder, ``NAME@URL`` or ``NAME@URL#VARIABLE``.
        name: what the results call the model.
        output: folder for ``NAME.json`` and what resuming needs; without it the program's log folder.
        tokenizer: folder of the tokenizer; without it the model pool's.
        batch_size: items at once.
        dtype: auto is the model's own, on most CPUs float32, as in ``mergekit-3h evaluate``.
        chat_template: auto is the tokenizer's, if it has one; plain is none.
        retry_failed: ask again what had no answer in an earlier run.
        quiet: no progress bars.
    """

    _config_mapping = BaseTaskPool._config_mapping | {name: name for name in _OPTIONS}

    def __init__(
        self,
        suite: str | None = None,
        files: Mapping[str, str] | None = None,
        judges: Mapping[str, str] | None = None,
        name: str = "merged",
        output: str | None = None,
        tokenizer: str | None = None,
        batch_size: int = 8,
        dtype: str = "auto",
        chat_template: str = "auto",
        retry_failed: bool = False,
        quiet: bool = False,
        **host_keys: Any,
    ) -> None:
        super().__init__(**host_keys)
        self.suite, self.name, self.output, self.tokenizer = suite, name, output, tokenizer
        self.files, self.judges = _texts(files), _texts(judges)
        self.batch_size, self.dtype, self.chat_template = batch_size, dtype, chat_template
        self.retry_failed, self.quiet = retry_failed, quiet
        self._evaluated: Counter[str] = Counter()
        with shown_by_hydra():
            if suite is None:
                raise OptionError("taskpool.suite: name the suite, a YAML file or one that comes with the package")
            self._settings = self._checked_settings()
            self._ready = read_suite(suite, self.files, self.judges)
            self._ready.require_ready()

    def evaluate(self, model: nn.Module, name: str | None = None, **_: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The model's scores as plain values; all items are in the file that the report names."""
        with shown_by_hydra():
            label = self._label(name or self.name)
            folder = self._folder()
            evaluator = Evaluator(self._ready, quiet=self.quiet or not self.fabric.is_global_zero)
            subject = self._subject(label, model)
            result = evaluator.evaluate(subject, folder / f"{label}.json", folder / f"{label}.journal")
            for metric, share in result.beyond_limit().items():
                log.warning("%s: %.0f %% of the items have no score", metric, 100 * share)
            return _report(result, folder / f"{label}.json")

    def _label(self, name: str) -> str:
        """A method may return several models, which the program hands over one after the other."""
        self._evaluated[name] += 1
        return name if self._evaluated[name] == 1 else f"{name}-{self._evaluated[name]}"

    def _subject(self, label: str, model: nn.Module) -> EvaluatedModel:
        if not hasattr(model, "config") or not hasattr(model, "generate"):
            raise ModelError(
                f"the merged model is a {type(model).__name__}; the task pool 3h evaluates language models"
            )
        device = self.fabric.device
        precision = settled_precision(self.dtype, next(model.parameters()).dtype, device)
        return subject_in_memory(label, in_precision(model, precision, device), self._load_tokenizer(), self._settings)

    def _load_tokenizer(self) -> Any:
        if self.tokenizer is not None:
            folder = checkpoint_folder(self.tokenizer)
            tokenizer = load_tokenizer(folder)
            if tokenizer is None:
                raise ModelError(f"taskpool.tokenizer={self.tokenizer}: there is no tokenizer in {folder}")
            return tokenizer
        pool: Any = getattr(self._program, "modelpool", None)
        if isinstance(pool, CausalLMPool) and getattr(pool, "tokenizer", None) is not None:
            return pool.load_tokenizer()
        raise ModelError("the model pool names no tokenizer; give the task pool one: taskpool.tokenizer=FOLDER")

    def _folder(self) -> Path:
        return Path(self.output or self.log_dir or "results").expanduser().absolute()

    def _checked_settings(self) -> TransformersSettings:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise OptionError(f"taskpool.dtype: got {self.dtype!r}, expected auto, float32, bfloat16 or float16")
        if self.chat_template not in ("auto", "plain"):
            raise OptionError(f"taskpool.chat_template: got {self.chat_template!r}, expected auto or plain")
        given = {"model": self.name, "batch_size": self.batch_size, "template": self.chat_template}
        return parsed(TransformersSettings, given, "taskpool")


def _report(result: EvaluationResult, path: Path) -> dict[str, Any]:
    """Averages first; then each metric's score with its interval and how many items it rests on."""
    averages = {name: score.score for name, score in result.dimensions.items()}
    metrics = {
        name: {
            "dimension": metric.dimension,
            "score": metric.score,
            "interval": [metric.low, metric.high],
            "better": metric.better,
            "items": len(metric.items),
            "unscored": metric.unscored(),
        }
        for name, metric in result.metrics.items()
    }
    return {**averages, "average": result.average.score, "metrics": metrics, "suite": result.suite, "items": str(path)}


def _texts(given: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in (plain_value(given) or {}).items()}
