"""A model that brings code of its own is opened with trust_remote_code, and refused in one sentence without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from search.training import domain_records, safety_records, write_jsonl
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.errors import ModelError
from mergekit_3h.search import SearchOptions, open_problem, solve_problem

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class QuietConfig(LlamaConfig):
    model_type = "quiet_llama"


class QuietForCausalLM(LlamaForCausalLM):
    config_class = QuietConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output
"""


def with_own_code(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tiny_model("llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "quiet_llama", "architectures": ["QuietForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "modeling_quiet.QuietConfig",
        "AutoModelForCausalLM": "modeling_quiet.QuietForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_quiet.py").write_text(CODE)
    return folder


def test_the_search_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    base, expert = with_own_code(tmp_path / "base", 1), with_own_code(tmp_path / "expert", 2)
    data = write_jsonl(tmp_path / "data.jsonl", [*safety_records()[:2], *domain_records()[:2]])
    options = SearchOptions(solver="cocktail")
    with pytest.raises(ModelError, match="trust_remote_code"):
        open_problem(base, {"expert": expert}, data, options)
    problem = open_problem(base, {"expert": expert}, data, options, trust_remote_code=True)
    assert type(problem.model).__name__ == "QuietForCausalLM"
    assert solve_problem(problem).best.score > 0
