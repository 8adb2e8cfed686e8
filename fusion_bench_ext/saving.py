"""Where a merge is saved, as a model or as an adapter: checked before the merge, and written whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
from omegaconf import DictConfig, OmegaConf

from fusion_bench_ext.adapters import AdaptedModel
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pools import BASE_NAME, model_path, model_revision
from mergekit_3h.checkpoints.merged_adapters import MergedAdapter, require_free, write_merged_updates
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.kernels.core_space import Truncation
from mergekit_3h.spectral.low_rank import AsAdapter
from mergekit_3h.writing import write_text_whole

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
        _written_whole(self._path, lambda path: self._write(model, path, algorithm_config, description))
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
        is_folder = type(self._pool).save_model is not BaseModelPool.save_model
        _require_writable("model_save_path", self._path, is_folder=is_folder)

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


class AdapterDestination:
    """``adapter_save_path``: one adapter on the pool's base with all of the merge in it, of ``rank`` at most."""

    def __init__(self, adapter_save_path: str, rank: int | None, modelpool: BaseModelPool) -> None:
        self._path = Path(adapter_save_path).expanduser().absolute()
        self._rank = rank
        self._base = model_path(modelpool, BASE_NAME), model_revision(modelpool, BASE_NAME)
        self._merged: dict[str, Truncation] = {}
        _require_writable("adapter_save_path", self._path, is_folder=True)
        try:
            require_free(self._path)
        except OptionError as error:
            raise OptionError(f"adapter_save_path: {error}") from None

    def open(self, experts: Sequence[OpenModel]) -> None:
        """Raise unless all experts are adapters on a base that can be named."""
        for expert in experts:
            if not isinstance(expert, AdaptedModel):
                raise ModelError(
                    f"adapter_save_path: {expert.label} is a whole model, and no adapter has in it what changes in all "
                    "of its tensors; expected LoRA adapters alone, or model_save_path for a model"
                )
        self._adapters = [expert.placed for expert in experts if isinstance(expert, AdaptedModel)]
        self._named = self._name_of_base()

    def _name_of_base(self) -> tuple[str, str | None]:
        path, revision = self._base
        names = {placed.adapter.base_name for placed in self._adapters}
        if path is not None:
            return path, revision
        if len(names) > 1 or "" in names:
            raise ModelError(
                "adapter_save_path: the pool's base is in memory, and its adapters do not name one base "
                f"({sorted(names)}), so nobody could load what is written; give the base by its path"
            )
        return names.pop(), None

    def part(self, name: str) -> AsAdapter:
        """What merging the tensor ``name`` gives to the adapter."""
        return AsAdapter(self._rank, partial(self._merged.__setitem__, name))

    def save(self, model: Any, algorithm_config: DictConfig, description: str) -> None:
        """The adapter, and beside it the options that it was merged with."""
        written: list[MergedAdapter] = []

        def write(folder: Path) -> None:
            written.append(write_merged_updates(folder, self._merged, self._adapters, self._named))
            write_text_whole(folder / "algorithm_config.yaml", OmegaConf.to_yaml(algorithm_config))

        _written_whole(self._path, write)
        log.info("saved %s to %s", *written, self._path)


def _written_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` write to the path; one that is new appears when all of it has been written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        write(path)
        return
    new = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        write(new)
        new.rename(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        new.unlink(missing_ok=True)
        raise


def _require_writable(option: str, path: Path, *, is_folder: bool) -> None:
    # os.path.exists, unlike that of Path, is False for what a folder without permission hides.
    place = next(there for there in (path, *path.parents) if os.path.exists(there))
    if place == path and path.is_dir() != is_folder:
        got, expected = ("a file", "a folder") if is_folder else ("a folder", "a file")
        raise OptionError(f"{option}: {path} is {got}, expected {expected} or a path that does not exist yet")
    kind = "folder" if place != path or is_folder else "file"
    reason = _why_not_writable(place, kind)
    if reason is not None:
        raise OptionError(
            f"{option}: cannot write {path}, because {place} is not a {kind} to write to ({reason}); name another path"
        )


def _why_not_writable(place: Path, kind: str) -> str | None:
    """Found out by writing, without a trace: permission bits do not tell of read-only, full or virtual file systems."""
    try:
        with place.open("r+b") if kind == "file" else TemporaryFile(dir=place):
            return None if os.access(place, os.W_OK) else "permission denied"
    except OSError as error:
        return (error.strerror or str(error)).lower()
