"""Where the merged model is saved: checked before the merge, and written so that it is there whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from omegaconf import DictConfig

from mergekit_3h.errors import ModelError, OptionError

LOG = logging.getLogger(__name__)


class Destination:
    """``model_save_path`` of a merged model. The pool knows the format; language models get tokenizer and card."""

    def __init__(self, model_save_path: str, modelpool: BaseModelPool) -> None:
        self._path = Path(model_save_path).expanduser().absolute()
        self._pool = modelpool
        self._require_writable()
        self._tokenizer = self._load_tokenizer()

    def save(self, model: Any, algorithm_config: DictConfig, description: str) -> None:
        """Write through the pool. A path that is new appears when all of it has been written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._write(model, self._path, algorithm_config, description)
        else:
            partial = self._path.with_name(f"{self._path.name}.partial-{os.getpid()}")
            try:
                self._write(model, partial, algorithm_config, description)
                partial.rename(self._path)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                partial.unlink(missing_ok=True)
                raise
        LOG.info("saved the merged model to %s", self._path)

    def _write(self, model: Any, path: Path, algorithm_config: DictConfig, description: str) -> None:
        if isinstance(self._pool, CausalLMPool):
            self._pool.save_model(
                model,
                str(path),
                tokenizer=self._tokenizer,
                algorithm_config=algorithm_config,
                description=description,
            )
        else:
            self._pool.save_model(model, str(path))

    def _require_writable(self) -> None:
        path = self._path
        if isinstance(self._pool, CausalLMPool) and path.exists() and not path.is_dir():
            raise OptionError(f"model_save_path: {path} is a file, expected a folder or a path that does not exist yet")
        present = next(folder for folder in path.parents if folder.exists())
        if not present.is_dir() or not os.access(present, os.W_OK):
            raise OptionError(f"model_save_path: cannot write {path}, because {present} is not a folder to write to")

    def _load_tokenizer(self) -> Any:
        """Now, because one that cannot be loaded would cost the whole merge when it is saved."""
        if not isinstance(self._pool, CausalLMPool):
            return None
        if getattr(self._pool, "tokenizer", None) is None:
            LOG.warning("the pool names no tokenizer, so none will be saved beside the merged model")
            return None
        try:
            return self._pool.load_tokenizer()
        except Exception as error:
            raise ModelError(f"the tokenizer of the pool cannot be loaded: {type(error).__name__}: {error}") from error
