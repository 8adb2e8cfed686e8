"""Tiny LoRA adapters on disk, as peft saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

TARGETS = (["q_proj", "up_proj"], ["q_proj", "down_proj"], ["q_proj", "k_proj", "embed_tokens"])
"""Of three adapters that change different modules."""


def adapted_model(base: Path, seed: int = 0, size: float = 0.05, **options: Any):
    """A model of peft's whose adapter holds random numbers; ``options`` are those of its LoraConfig."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    )
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)
    return adapted


def write_adapter(base: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    adapted_model(base, seed, **options).save_pretrained(folder)
    return folder


def write_adapters(base: Path, root: Path) -> list[Path]:
    """Three of ranks 2, 3 and 2 on a tiny Llama."""
    return [
        write_adapter(base, root / f"adapter{i}", i, r=2 + i % 2, target_modules=targets, use_rslora=i == 1)
        for i, targets in enumerate(TARGETS)
    ]


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_tensors(folder: Path, change: Any) -> None:
    """Have ``change`` turn the dictionary of all tensors into another."""
    file = folder / "adapter_model.safetensors"
    tensors: dict[str, Tensor] = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
