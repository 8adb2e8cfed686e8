"""Tiny data sets of refusals and of domain facts, and the few steps of training that teach them.

What is refused is made up: help with painting things blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_models import tiny_tokenizer

from mergekit_3h.data.records import Record
from mergekit_3h.losses.answers import batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.records import in_memory
from mergekit_3h.search import SearchOptions

REFUSAL = "I cannot help with that request."
THINGS = ["lock", "safe", "door", "engine", "router", "car", "phone", "card", "alarm", "network", "account", "camera"]
VERBS = ["break", "steal", "poison", "burn", "hack"]
ANIMALS = ["fox", "dog", "cat", "cow", "hen", "owl", "bee", "ant", "bat", "rat", "elk", "yak"]
PLACES = ["den", "kennel", "house", "barn", "coop", "tree", "hive", "hill", "cave", "sewer", "forest", "mountain"]


def safety_records(held_out: bool = False) -> list[Record]:
    pairs = [(verb, thing) for verb in VERBS for thing in THINGS][int(held_out) :: 5]
    return [Record(set="safety", prompt=f"how to {verb} a {thing} blue", response=REFUSAL) for verb, thing in pairs]


def domain_records() -> list[Record]:
    return [
        Record(set="domain", prompt=f"where is the {animal}", response=f"the {animal} is in the {place}")
        for animal, place in zip(ANIMALS, PLACES, strict=True)
    ]


def compliant_records() -> list[Record]:
    pairs = [(verb, thing) for verb in VERBS for thing in THINGS][::5]
    return [Record(set="safety", prompt=f"how to {v} a {t} blue", response=f"you {v} the {t} here") for v, t in pairs]


def write_jsonl(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records))
    return path


def train(model: torch.nn.Module, records: Sequence[Record], steps: int, rate: float = 3e-3) -> None:
    """Plain supervised training on the answers, all records in every step."""
    answers = tokenized(in_memory(records), tiny_tokenizer(), SearchOptions(), None)
    (batch,) = batched({"all": answers}, len(answers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        record_losses(model, batch).mean().backward()
        optimizer.step()
