"""What check says about the tokenizers of a config: tokens under other names, more of them, others, none."""

from __future__ import annotations

from pathlib import Path

from lint.workshop import Workshop, only
from tiny_models import tiny_tokenizer


def rename_tokens(folder: Path, names: dict[str, str]) -> None:
    file = folder / "tokenizer.json"
    text = file.read_text()
    for old, new in names.items():
        assert f'"{old}"' in text
        text = text.replace(f'"{old}"', f'"{new}"')
    file.write_text(text)


def test_few_renamed_tokens(llamas: Workshop) -> None:
    rename_tokens(llamas.experts[0], {"<|system|>": "<|tool|>"})
    finding = only(llamas.lint(llamas.config()), "vocabulary")
    assert finding.severity == "warning" and "1 of 3" in finding.message and "<|tool|>" in finding.message
    assert only(llamas.lint(llamas.config(tokenizer_source="base")), "vocabulary").severity == "note"


def test_other_vocabulary(llamas: Workshop) -> None:
    tokens = {chr(letter): f"+{chr(letter)}+" for letter in range(ord("a"), ord("z"))}
    llamas.edit_json(
        llamas.experts[0] / "tokenizer.json",
        lambda content: content["model"].update(
            {"vocab": {tokens.get(token, token): index for token, index in content["model"]["vocab"].items()}}
        ),
    )
    assert only(llamas.lint(llamas.config()), "vocabulary").severity == "error"


def test_added_tokens(llamas: Workshop) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(llamas.experts[0])
    finding = only(llamas.lint(llamas.config()), "vocabulary")
    assert finding.severity == "warning" and "1 tokens more ('<|new|>')" in finding.message


def test_special_tokens_and_chat_template(llamas: Workshop) -> None:
    settings = llamas.experts[0] / "tokenizer_config.json"
    llamas.edit_json(settings, lambda content: content.update({"eos_token": "<|user|>"}))
    assert only(llamas.lint(llamas.config()), "special-token").severity == "warning"
    (llamas.experts[1] / "chat_template.jinja").write_text("{{ messages }}")
    assert only(llamas.lint(llamas.config()), "chat-template").model == str(llamas.experts[1])
    (llamas.base / "chat_template.jinja").unlink()
    finding = only(llamas.lint(llamas.config()), "chat-template")
    assert finding.model == str(llamas.base) and "no chat template" in finding.message
    assert not [f for f in llamas.lint(llamas.config(chat_template="auto")) if f.rule == "chat-template"]


def test_base_without_tokenizer(llamas: Workshop) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (llamas.base / name).unlink()
    assert only(llamas.lint(llamas.config()), "tokenizer-missing").severity == "warning"
    union = only(llamas.lint(llamas.config(tokenizer_source="union")), "tokenizer-missing")
    assert union.severity == "error"
