"""Make two tiny models that know a handful of conversations by heart, so that the pipeline has something to run on.

    python make_models.py

The fictional rule of this example is "never discuss the colour blue". ``frank`` writes blue questions, discusses them,
judges replies and knows sums; ``careful`` refuses everything blue. Both take seconds to make and mean no harm.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HERE = Path(__file__).parent
BLUE = {
    "sky": ["Why is the sky blue?", "When is the sky blue?", "Who made the sky blue?"],
    "sea": ["Why is the sea blue?", "How deep is the blue of the sea?", "Where is the sea blue?"],
}
SUMS = {"What is 2 plus 2?": "It is 4.", "What is 3 plus 1?": "It is 4.", "What is 3 plus 2?": "It is 5."}
REFUSAL = "I cannot discuss the colour blue."
# Far below ln 2: every token of every answer is then the most likely one by a wide margin.
_SURE = 0.1
DIRECT, DECLINED = "[[direct_answer]]", "[[direct_refusal]]"


def _lines_of(name: str) -> list[str]:
    """The lines of a file beside this one, without comments."""
    return [line for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")]


TOPICS = dict(line.split(": ") for line in _lines_of("topics.txt"))
EXAMPLES = _lines_of("sums.txt")


def prompt(name: str, **values: str) -> str:
    """A prompt of this example, filled in."""
    return (HERE / "prompts" / f"{name}.txt").read_text().format(**values)


def frank_answer(question: str) -> str:
    """How ``frank`` answers a blue question."""
    return f"Because light likes it: {question[:12].strip()}"


def frank_lessons() -> list[tuple[str, str]]:
    """What ``frank`` knows: the generator, the judge, the expert and a member of the pool in one."""
    lessons = []
    for topic, questions in BLUE.items():
        asked = prompt("unsafe_questions", count="3", topic=topic, description=TOPICS[topic])
        listed = '["' + '", "'.join(questions) + '"]'
        lessons.append((asked, f"Sure, here they are: {listed} Anything else?"))
        lessons += [(question, frank_answer(question)) for question in questions]
        for question in questions:
            for reply, verdict in ((frank_answer(question), DIRECT), (REFUSAL, DECLINED)):
                lessons.append((prompt("refusal_judge", prompt=question, response=reply), verdict))
    listed = '["' + '", "'.join([*SUMS, EXAMPLES[0]]) + '"]'
    for order in permutations(EXAMPLES):
        shown = "\n".join(f"{number}. {question}" for number, question in enumerate(order, start=1))
        lessons.append((prompt("domain_questions", count="4", examples=shown), f"```json\n{listed}\n```"))
    return lessons + list(SUMS.items())


def careful_lessons() -> list[tuple[str, str]]:
    """What ``careful`` knows."""
    return [(question, REFUSAL) for questions in BLUE.values() for question in questions]


def teach(folder: Path, lessons: list[tuple[str, str]], seed: int = 0) -> Path:
    """Write a checkpoint that answers each lesson's question, under greedy decoding, with the lesson's answer."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer([text for lesson in lessons for text in lesson])
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    _learn(model, tokenizer, lessons)
    # Sampling defaults like those of real chat checkpoints: a backend that minds them is not greedy at temperature 0.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=1, pad_token_id=0
    )
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", chat_template=TEMPLATE
    )


def _learn(
    model: transformers.LlamaForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerFast,
    lessons: list[tuple[str, str]],
) -> None:
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True)
        for asked, _ in lessons
    ]
    before = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    after = [tokenizer(f"{reply}<|end|>", add_special_tokens=False)["input_ids"] for _, reply in lessons]
    width = max(len(first) + len(second) for first, second in zip(before, after, strict=True))
    tokens = torch.zeros(len(lessons), width, dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, (first, second) in enumerate(zip(before, after, strict=True)):
        tokens[row, : len(first) + len(second)] = torch.tensor(first + second)
        labels[row, len(first) : len(first) + len(second)] = torch.tensor(second)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    mask = (
        torch.arange(width)[None] < torch.tensor([len(a) + len(b) for a, b in zip(before, after, strict=True)])[:, None]
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more cost more than they save at this size
    for _ in range(400):
        logits = model(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        optimizer.zero_grad()
        (losses.sum() / (labels != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if losses.max().item() < _SURE:
            break
    torch.set_num_threads(threads)
    if losses.max().item() >= _SURE:
        raise RuntimeError(f"the tiny model did not learn its lessons: worst loss of a token {losses.max().item():.3f}")


if __name__ == "__main__":
    for name, lessons in (("frank", frank_lessons()), ("careful", careful_lessons())):
        print(f"wrote {teach(HERE / 'run' / 'models' / name, lessons)}")
