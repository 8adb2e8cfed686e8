"""The prompts of this package: text files, each replaceable by a user's file of the same name."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from mergekit_3h.data.records import DataError


def prompt_names() -> list[str]:
    """Every prompt in the package, by file name without ``.txt``."""
    return sorted(file.name[:-4] for file in files(__name__).iterdir() if file.name.endswith(".txt"))


def prompt_text(name: str, folder: str | Path | None = None) -> str:
    """A prompt's template: ``folder/NAME.txt`` if the user has one there, else the package's."""
    own = Path(folder) / f"{name}.txt" if folder is not None else None
    if own is not None and own.is_file():
        return own.read_text(encoding="utf-8")
    if name not in prompt_names():
        raise DataError(f"there is no prompt {name!r}; the prompts are: {', '.join(prompt_names())}")
    return (files(__name__) / f"{name}.txt").read_text(encoding="utf-8")


def filled(template: str, **values: str) -> str:
    """``template`` with each ``{name}`` replaced once; all other braces, also in the values, stay."""
    missing = [name for name in values if f"{{{name}}}" not in template]
    if missing:
        raise DataError(f"the prompt has no place for {{{missing[0]}}}; it begins: {template[:60]!r}")
    placeholder = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return placeholder.sub(lambda match: values[match.group()[1:-1]], template)
