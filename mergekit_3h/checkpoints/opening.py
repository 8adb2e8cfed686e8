"""A language model out of its folder: its architecture alone or with weights; and whether models are of one kind."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from mergekit_3h.checkpoints.precision import Precision
from mergekit_3h.checkpoints.sources import CheckpointSource
from mergekit_3h.errors import ModelError

_OF_ONE_KIND = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "tie_word_embeddings")


def empty_model(folder: Path, trust_remote_code: bool = False) -> nn.Module:
    """The model's architecture with all names and shapes, and no memory for weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(folder, trust_remote_code)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except Exception as error:
        raise ModelError(
            f"the model in {folder} is no causal language model that transformers can load: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model


def load_model(
    source: Path | str, dtype: str, device: Any, trust_remote_code: bool = False, revision: str | None = None
) -> nn.Module:
    """The model with its weights, in this data type; ``auto``: that of its checkpoint.

    A path is a folder here; a name, with its revision, may be one on the hub, and then it is downloaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    chosen: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        with loading_bars_on_terminals():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(source),
                dtype=chosen,
                local_files_only=isinstance(source, Path),
                trust_remote_code=trust_remote_code,
                revision=revision,
            )
        return model.to(device)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"the model {source} cannot be loaded on {device}: {reason}") from error


def in_precision(model: nn.Module, precision: Precision, device: Any) -> nn.Module:
    """A model that is in memory, on the device. One of another data type stays as it is, and a copy is given."""
    wanted = precision.as_torch()
    if wanted not in ("auto", next(model.parameters()).dtype):
        model = deepcopy(model).to(wanted)
    return model.to(device)


@contextmanager
def loading_bars_on_terminals() -> Generator[None]:
    """Keep the progress bars of transformers out of log files."""
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def require_same_architecture(sources: Sequence[CheckpointSource], trust_remote_code: bool = False) -> None:
    """Raise unless all checkpoints are of the base's (the first one's) kind."""
    configs = [_config(source.folder, trust_remote_code) for source in sources]
    for name in _OF_ONE_KIND:
        expected = getattr(configs[0], name, None)
        for source, config in zip(sources, configs, strict=True):
            if getattr(config, name, None) != expected:
                raise ModelError(
                    f"model {source.label!r}: {name} is {getattr(config, name, None)!r}, the base's is {expected!r}. "
                    "Merge models that were fine-tuned from one base."
                )


def _config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"transformers cannot read the model's config in {folder}: {str(error).splitlines()[0]}. A model with code "
            "of its own needs trust_remote_code (--trust-remote-code)."
        ) from error
