"""Where the merged model is saved: checked before the merge, and written so that it is there whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from omegaconf import DictConfig

from mergekit_3h.errors import ModelError, OptionError

log = logging.getLogger(__name__)


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
        log.info("saved the merged model to %s", self._path)

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
        is_folder = type(self._pool).save_model is not BaseModelPool.save_model
        # os.path.exists, unlike that of Path, is False for what a folder without permission hides.
        place = next(there for there in (path, *path.parents) if os.path.exists(there))
        if place == path and path.is_dir() != is_folder:
            got, expected = ("a file", "a folder") if is_folder else ("a folder", "a file")
            raise OptionError(
                f"model_save_path: {path} is {got}, expected {expected} or a path that does not exist yet"
            )
        kind = "folder" if place != path or is_folder else "file"
        reason = _why_not_writable(place, kind)
        if reason is not None:
            raise OptionError(
                f"model_save_path: cannot write {path}, because {place} is not a {kind} to write to ({reason}); "
                "name another path"
            )

    def _load_tokenizer(self) -> Any:
        """Now, because one that cannot be loaded would cost the whole merge when it is saved."""
        if not isinstance(self._pool, CausalLMPool):
            return None
        if getattr(self._pool, "tokenizer", None) is None:
            log.warning("the pool names no tokenizer, so none will be saved beside the merged model")
            return None
        try:
            return self._pool.load_tokenizer()
        except Exception as error:
            raise ModelError(f"the tokenizer of the pool cannot be loaded: {type(error).__name__}: {error}") from error


def _why_not_writable(place: Path, kind: str) -> str | None:
    """Found out by writing, without a trace: permission bits do not tell of read-only, full or virtual file systems."""
    try:
        with place.open("r+b") if kind == "file" else TemporaryFile(dir=place):
            return None if os.access(place, os.W_OK) else "permission denied"
    except OSError as error:
        return (error.strerror or str(error)).lower()
