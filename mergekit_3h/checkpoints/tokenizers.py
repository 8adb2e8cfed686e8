"""A model's tokenizer: facts by its files alone (ids, special tokens, chat template), or loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit_3h.checkpoints.locations import read_json
from mergekit_3h.errors import ModelError

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

_FILES_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """``ids`` is empty for tokenizers stored in a binary format; their ``digest`` still tells them apart."""

    ids: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    special: dict[str, str] = field(default_factory=dict)
    chat_template: str = ""

    @property
    def exists(self) -> bool:
        return bool(self.digest)


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    settings = read_json(folder / "tokenizer_config.json")
    ids, digest = _vocabulary(folder)
    return TokenizerFacts(ids, digest, _special_tokens(folder, settings), _chat_template(folder, settings))


def _vocabulary(folder: Path) -> tuple[dict[str, int], str]:
    fast = read_json(folder / "tokenizer.json")
    if fast:
        ids = _ids_of_fast_tokenizer(fast)
        return ids, _digest(repr(sorted(ids.items())).encode())
    slow = read_json(folder / "vocab.json")
    if slow:
        ids = {token: index for token, index in slow.items() if isinstance(index, int)}
        return ids, _digest(repr(sorted(ids.items())).encode())
    for name in ("tokenizer.model", "vocab.txt", "spiece.model"):
        if (folder / name).is_file():
            return {}, _digest((folder / name).read_bytes())
    return {}, ""


def _ids_of_fast_tokenizer(content: dict[str, Any]) -> dict[str, int]:
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of the ids
        ids = {entry[0]: index for index, entry in enumerate(vocabulary)}
    else:
        ids = dict(vocabulary)
    ids.update({token["content"]: token["id"] for token in content.get("added_tokens") or []})
    return ids


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    older = read_json(folder / "special_tokens_map.json")
    found = {name: settings.get(name) or older.get(name) for name in SPECIAL_TOKENS}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in found.items() if token}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8").strip()
    template = settings.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template") or ""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template", "") for entry in template}
        template = named.get("default", "")
    return str(template).strip()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in the folder, or None if there is none."""
    if not any((folder / name).is_file() for name in _FILES_OF_A_TOKENIZER):
        return None
    load: Any = import_module("transformers").AutoTokenizer.from_pretrained
    try:
        return load(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}") from error
