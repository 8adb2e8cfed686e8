"""Tokenizers of one merge against each other, each difference as serious as its effect on the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergekit_3h.checkpoints.locations import hub_is_offline, locate
from mergekit_3h.checkpoints.tokenizers import TokenizerFacts, tokenizer_facts
from mergekit_3h.lint.findings import Finding, Severity, shortened
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.suggestions import did_you_mean

# A few renamed reserved tokens are usual among fine-tunes and cost little; a heuristic limit, as a share.
_FEW_RENAMED = 0.01
_EFFECTS: dict[str, tuple[Severity, str]] = {
    "eos_token": ("warning", "the result may not stop where this expert would"),
    "bos_token": ("warning", "this expert was trained with another start"),
    "pad_token": ("note", "padding only"),
    "unk_token": ("note", "unknown text only"),
}


def tokenizer_findings(config: Any, models: list[NamedModel]) -> list[Finding]:
    read = [(model, tokenizer_facts(model.folder)) for model in models if model.folder is not None]
    present = [(model, facts) for model, facts in read if facts.exists]
    absent = [model for model, facts in read if not facts.exists]
    rebuilt = bool(getattr(config, "tokenizer_source", None) or getattr(config, "tokenizer", None))
    findings = [*_source(config, models), *_absent(absent, present, rebuilt)]
    if present:
        (first, reference), others = present[0], present[1:]
        for model, facts in others:
            findings += _vocabulary(first, reference, model, facts, rebuilt)
            findings += _special_tokens(first, reference, model, facts)
        findings += _chat_templates(config, present)
    return findings


def _source(config: Any, models: list[NamedModel]) -> Iterator[Finding]:
    """A tokenizer_source that is a model: mergekit looks for it when all tensors are planned, and asks the hub."""
    settings = getattr(config, "tokenizer", None)
    source = str(settings.source if settings else getattr(config, "tokenizer_source", None))
    if source in ("None", "base", "union") or source in {model.name for model in models}:
        return
    where = "tokenizer.source" if settings else "tokenizer_source"
    path, _, revision = source.partition("@")
    location = locate(path, revision or None)
    meant = "" if "/" in source else did_you_mean(source, ["union", "base"], "")
    if location.path is not None:
        if not tokenizer_facts(location.path).exists:
            yield Finding("error", "tokenizer-missing", f"there is no tokenizer in {path}", where)
    elif location.status == "missing" or meant or hub_is_offline():
        message = f"{source!r} is neither union nor base, and no model on this machine has that path or name"
        yield Finding("error", "tokenizer-source", message, where, meant or "write union, base, or a model's path")
    else:
        message = f"the tokenizer of {source} is not on this machine: mergekit would download it"
        yield Finding("note", "download", message, where)


def _absent(
    absent: list[NamedModel], present: list[tuple[NamedModel, TokenizerFacts]], rebuilt: bool
) -> Iterator[Finding]:
    for model in absent:
        if rebuilt:
            message = f"{model.name} has no tokenizer, which the tokenizer settings of the config need"
            yield Finding("error", "tokenizer-missing", message, where=model.where, model=model.name)
        elif present and model.is_base:
            message = f"the base {model.name} has no tokenizer, so the result gets none"
            advice = f"copy one afterwards, or set tokenizer_source: {present[0][0].name}"
            yield Finding("warning", "tokenizer-missing", message, where=model.where, advice=advice, model=model.name)
    if absent and not present and not rebuilt and any("vocab_size" in _language(model) for model in absent):
        message = "no model has a tokenizer: the result gets none, and mergekit reports an error when the merge is done"
        advice = "copy one into the base's folder, or pass --no-copy-tokenizer"
        yield Finding("warning", "tokenizer-missing", message, absent[0].where, advice, absent[0].name)


def _language(model: NamedModel) -> dict[str, Any]:
    """Settings of the model's language part; a vision tower has none."""
    return model.settings.get("text_config") or model.settings


def _vocabulary(
    first: NamedModel, ours: TokenizerFacts, model: NamedModel, theirs: TokenizerFacts, rebuilt: bool
) -> Iterator[Finding]:
    if ours.digest == theirs.digest:
        return
    if not ours.ids or not theirs.ids:
        yield _vocabulary_finding(
            model, "warning", f"the tokenizer of {model.name} is another than {first.name}'s", rebuilt
        )
        return
    by_id = {index: token for token, index in ours.ids.items()}
    moved = [token for token, index in theirs.ids.items() if index in by_id and by_id[index] != token]
    added = [token for token, index in theirs.ids.items() if index not in by_id]
    their_ids = set(theirs.ids.values())
    lacking = [token for token, index in ours.ids.items() if index not in their_ids]
    if moved:
        severity: Severity = "error" if len(moved) > _FEW_RENAMED * len(by_id) else "warning"
        message = (
            f"{len(moved):,} of {len(by_id):,} token ids mean another token in {model.name} than in {first.name} "
            f"({shortened([repr(token) for token in moved])}): their embeddings would be mixed up"
        )
        yield _vocabulary_finding(model, severity, message, rebuilt)
    if added or lacking:
        parts = [f"has {len(added)} tokens more ({shortened([repr(t) for t in added])})"] if added else []
        parts += [f"lacks {len(lacking)} tokens ({shortened([repr(t) for t in lacking])})"] if lacking else []
        message = f"{model.name} {' and '.join(parts)} compared with {first.name}, whose tokenizer the result gets"
        yield _vocabulary_finding(model, "warning", message, rebuilt)


def _vocabulary_finding(model: NamedModel, severity: Severity, message: str, rebuilt: bool) -> Finding:
    if rebuilt:
        return Finding(
            "note",
            "vocabulary",
            f"{message}; the config's tokenizer settings realign it",
            model.where,
            model=model.name,
        )
    advice = "set tokenizer_source: union (or base), which aligns the embeddings by token"
    return Finding(severity, "vocabulary", message, model.where, advice, model=model.name)


def _special_tokens(
    first: NamedModel, ours: TokenizerFacts, model: NamedModel, theirs: TokenizerFacts
) -> Iterator[Finding]:
    for name, (severity, effect) in _EFFECTS.items():
        if ours.special.get(name) != theirs.special.get(name):
            message = (
                f"{name} is {theirs.special.get(name)!r} in {model.name}, "
                f"{ours.special.get(name)!r} in {first.name}: {effect}"
            )
            yield Finding(severity, "special-token", message, where=model.where, model=model.name)


def _chat_templates(config: Any, present: list[tuple[NamedModel, TokenizerFacts]]) -> Iterator[Finding]:
    if getattr(config, "chat_template", None):
        return
    donor, facts = present[0]
    experts = [(model, theirs) for model, theirs in present[1:] if theirs.chat_template]
    advice = "set chat_template: to the one the result should be used with, or auto for the most frequent"
    if experts and not facts.chat_template:
        names = shortened([model.name for model, _ in experts])
        message = f"the result takes the tokenizer of {donor.name}, which has no chat template; {names} have one"
        yield Finding("warning", "chat-template", message, where=donor.where, advice=advice, model=donor.name)
        return
    for model, theirs in experts:
        if theirs.chat_template != facts.chat_template:
            message = f"the chat template of {model.name} differs from {donor.name}'s, which the result takes"
            yield Finding("warning", "chat-template", message, where=model.where, advice=advice, model=model.name)
