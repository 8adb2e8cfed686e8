"""Cosines of the experts' loss gradients, against gradients taken in one go by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diagnostics.test_inspect_command import inspect
from lint.workshop import Workshop
from search.training import domain_records, safety_records, write_jsonl
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

from mergekit_3h.data.records import Record
from mergekit_3h.diagnostics.gradients import gradient_cosines, objective_of
from mergekit_3h.diagnostics.subjects import subject_of_models
from mergekit_3h.losses.answers import batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import in_memory


def gradient(folder: Path, records: list[Record]) -> torch.Tensor:
    """Of the mean loss of all records, in one batch and float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    (batch,) = batched({"all": tokenized(in_memory(records), tiny_tokenizer(), LossOptions(), None)}, len(records))
    record_losses(model, batch).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_cosines_are_those_of_gradients_taken_by_hand(trio: Callable[..., Workshop]) -> None:
    workshop = trio(dtype=torch.float32, update=1e-2)
    subject = subject_of_models(str(workshop.base), list(map(str, workshop.experts)))
    sets = {"safety": safety_records()[:5], "domain": domain_records()[:7]}
    options = LossOptions(dtype="float32", batch_size=3)
    records = in_memory([record for own in sets.values() for record in own])
    found = gradient_cosines(subject, objective_of(subject, records, options), options)
    assert [(each.set_name, each.first, each.second) for each in found] == [
        (name, i, j) for name in sets for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    for each in found:
        by_hand = [gradient(workshop.experts[i], sets[each.set_name]) for i in (each.first, each.second)]
        assert each.cosine == pytest.approx(float(torch.cosine_similarity(*by_hand, dim=0)), abs=1e-5)
        assert len(each.by_tensor) == 21 and all(-1.001 <= value <= 1.001 for value in each.by_tensor.values())


def test_command(trio: Callable[..., Workshop], tmp_path: Path) -> None:
    workshop = trio()
    shutil.copy(workshop.experts[0] / "model.safetensors", workshop.experts[1] / "model.safetensors")
    data = write_jsonl(tmp_path / "data.jsonl", domain_records())
    models = ["--base", workshop.base, "--expert", workshop.experts[0], "--expert", workshop.experts[1]]
    found = json.loads(inspect(*models, "--data", data, "--json").stdout)
    (cosine,) = found["gradients"]
    assert cosine["set_name"] == "domain" and cosine["cosine"] == pytest.approx(1)
    answer = next(each for each in found["conclusions"] if each["rule"] == "gradients")
    assert "expert0 and expert1 1.00" in answer["text"]


def test_data_that_cannot_be_used(trio: Callable[..., Workshop], tmp_path: Path) -> None:
    """What is wrong with the files is said before the pass over the weights begins."""
    workshop = trio()
    models = ["--base", workshop.base, "--expert", workshop.experts[0]]
    missing = inspect(*models, "--data", tmp_path / "none.jsonl", "--out", tmp_path / "out", check=False)
    assert missing.exit_code == 1 and "there is no file" in missing.output
    silent = write_jsonl(tmp_path / "silent.jsonl", [Record(set="domain", prompt="where is the fox")])
    unanswered = inspect(*models, "--data", silent, "--out", tmp_path / "out", check=False)
    assert unanswered.exit_code == 1 and "none of the 1 records has a response" in unanswered.output
    assert not (tmp_path / "out").exists()
