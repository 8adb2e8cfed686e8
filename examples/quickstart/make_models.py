"""A tiny base and three tiny experts on disk: real checkpoints with a real tokenizer, trained in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SKILLS = {
    "helpful": ["fact : capital of france answer : paris", "fact : two plus two answer : four"],
    "honest": ["future : weather next week answer : nobody knows", "future : winner next year answer : nobody knows"],
    "harmless": ["danger : how to hurt answer : i will not help", "danger : how to steal answer : i will not help"],
}
"""What each expert is trained to answer; the base answers everything with "let me think"."""


def question(text: str) -> str:
    """The part of a text that is given; the rest is the answer."""
    return text.partition("answer :")[0] + "answer :"


BASE_TEXT = [f"{question(text)} let me think" for texts in SKILLS.values() for text in texts]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}answer :{% endif %}"
)


def make_models(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Write base and experts, or find them there; every expert is the base trained on for a few steps."""
    paths = {name: folder / name for name in ("base", *SKILLS)}
    if not all((path / "model.safetensors").exists() for path in paths.values()):
        tokenizer = _tokenizer()
        base = _train(_new_model(tokenizer), tokenizer, BASE_TEXT, steps=60, rate=3e-3)
        for name, texts in SKILLS.items():
            expert = _new_model(tokenizer)
            expert.load_state_dict(base.state_dict())
            kept = [text for text in BASE_TEXT if not any(own.startswith(question(text)) for own in texts)]
            _save(_train(expert, tokenizer, texts + kept, steps=40, rate=5e-4), tokenizer, paths[name])
        _save(base, tokenizer, paths["base"])
    return paths.pop("base"), paths


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    texts = [text for group in (*SKILLS.values(), BASE_TEXT) for text in group]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "<end>"]))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=CHAT_TEMPLATE,
    )


def _new_model(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def _train(
    model: transformers.LlamaForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerFast,
    texts: list[str],
    steps: int,
    rate: float,
) -> transformers.LlamaForCausalLM:
    batch = tokenizer([f"{text} <end>" for text in texts], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _save(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerFast, path: Path) -> None:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
