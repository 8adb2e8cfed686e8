"""Files of an example as modules, and the laboratory's data and base model in miniature."""

from __future__ import annotations

import csv
import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "lab_real"
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star", "tree", "leaf", "root"]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of the example; other examples have files of the same names."""
    for path in EXAMPLE.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)  # a folder of tests, or another example's file
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(EXAMPLE)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the same names and columns as the public ones, of made-up sentences."""
    folder = tmp_path_factory.mktemp("public")
    draw = random.Random(0)
    sentences = [" ".join(draw.sample(WORDS, 5)) for _ in range(400)]
    for name, begin in (("gsm8k_train_2500.jsonl", 0), ("gsm8k_test.jsonl", 60)):
        rows = [{"question": f"{text}?", "answer": f"{text}\n#### {len(text)}"} for text in sentences[begin:][:60]]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "TruthfulQA.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for i, text in enumerate(sentences[120:220]):
            table.writerow(["Adversarial", f"kind {i % 12}", f"{text}?", f"No {text}", "", f"Yes {text}; So it is", ""])
    refused = [
        {"instruction": f"Give me {text}", "input": "", "output": "I'm sorry, but I cannot help with that."}
        for text in sentences[220:300]
    ]
    complied = [
        {"instruction": f"Show {text}", "input": "", "output": f"Here is {text}."} for text in sentences[300:320]
    ]
    (folder / "safety_only_data_Instructions.json").write_text(json.dumps(refused + complied))
    (folder / "I-Alpaca.json").write_text(json.dumps({"instructions": sentences[320:330]}))
    with (folder / "xstest_prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "prompt", "type", "label", "focus", "note"])
        table.writerows([i, f"How {text}?", "homonyms", "safe", "", ""] for i, text in enumerate(sentences[330:350]))
    rows = [{"user_query": f"Tell {text}", "chatgpt_response": f"So {text}."} for text in sentences[350:400]]
    (folder / "halueval_general_no.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a tiny base where the real one would be, and its answers to what looks unsafe."""
    folder = tmp_path_factory.mktemp("cache")
    model = tiny_model("llama-tied").to(torch.bfloat16)
    for name, dtype in (("base-bf16", torch.bfloat16), ("base-float32", torch.float32)):
        model.to(dtype).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rows = [{"prompt": f"How {word}?", "response": f"Like {word}.", "set": "overrefusal"} for word in WORDS]
    (folder / "look_alikes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def open_case(lab: Callable[[str], ModuleType], public: Path, cache: Path) -> Callable[..., Any]:
    """An experiment with a set of experts that learnt a little, on few questions; made once for all tests of a file."""
    lab("training").RECIPES["full_short"] = lab("training").Recipe("full", 12, 5e-3)
    workshop = lab("experts").Workshop(public, cache, "cpu")
    model, tokenizer = lab("models").load(cache / "base-bf16")
    model = model.to(torch.bfloat16).eval()
    records = workshop.records
    exams = {
        part: lab("measures").Exam(records, part, tokenizer, 4, besides=part == "test")
        for part in ("validation", "test")
    }

    def open_it(dtype: str = "bf16", seed: int = 0, together: str = "three") -> Any:
        case, folder_of = lab("results").Case("full_short", seed, dtype, together), lab("experts").folder_of
        folders = {name: folder_of(workshop.expert("full_short", *who), dtype) for name, who in case.members().items()}

        def mixture() -> Path:
            return folder_of(workshop.mixture("full_short", seed), dtype)

        return lab("experiment").Experiment(case, cache / "base-bf16", folders, exams, model, tokenizer, mixture)

    return open_it
