"""The tokenizer beside a checkpoint."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit_3h.errors import ModelError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in the folder, or None if there is none."""
    if not any((folder / name).is_file() for name in _FILES):
        return None
    load: Any = import_module("transformers").AutoTokenizer.from_pretrained
    try:
        return load(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}") from error
