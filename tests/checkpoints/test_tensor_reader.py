"""One tensor by its name, whatever files a checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_3h.checkpoints.headers import read_checkpoint, tensor_reader

TENSORS = {"first": torch.arange(6.0).reshape(2, 3), "second": torch.ones(4, dtype=torch.bfloat16)}


def save_shards(folder: Path) -> None:
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, folder / f"shard{i}.safetensors")
    weight_map = {name: f"shard{i}.safetensors" for i, name in enumerate(TENSORS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_pickle(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")


@pytest.mark.parametrize("save", [save_shards, save_pickle])
def test_tensors_are_read_in_any_order(tmp_path: Path, save: object) -> None:
    save(tmp_path)  # type: ignore[operator]
    read = tensor_reader(read_checkpoint(tmp_path))
    for name in ("second", "first", "second"):
        assert torch.equal(read(name), TENSORS[name])
        assert read(name).dtype == TENSORS[name].dtype
