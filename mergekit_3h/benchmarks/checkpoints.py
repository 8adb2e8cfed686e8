"""Random checkpoints of the Llama type on disk: a base and experts, for merges from end to end."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergekit_3h.benchmarks.problems import DTYPES, WEIGHT_RMS, MatrixProblem, UpdateKind, make_inputs
from mergekit_3h.errors import OptionError

# hidden size, intermediate size (8/3 of it, as in Llama), vocabulary
_WIDTHS = [
    (64, 192, 512),
    (128, 384, 1024),
    (256, 704, 4096),
    (512, 1408, 8192),
    (768, 2048, 16384),
    (1024, 2816, 32000),
    (2048, 5632, 32000),
    (3072, 8192, 64000),
    (4096, 11008, 64000),
]
_FEWEST_LAYERS = 8
"""The widest model with at least so many layers is taken, or the narrowest there is."""
_HEAD, _LARGE_HEAD = 64, 128


@dataclass(frozen=True)
class LlamaSize:
    hidden: int
    intermediate: int
    vocabulary: int
    layers: int
    key_value: int | None = None
    """Rows of the key and value projections, if not as many as there are columns."""

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        hidden, wide = self.hidden, self.intermediate
        rows = {"q": hidden, "k": self.key_value or hidden, "v": self.key_value or hidden, "o": hidden}
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            found |= {f"{layer}self_attn.{name}_proj.weight": (rows[name], hidden) for name in "qkvo"}
            found |= {f"{layer}mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")}
            found[f"{layer}mlp.down_proj.weight"] = (hidden, wide)
            found |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        return found | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocabulary, hidden)}

    def config(self, dtype: str) -> dict[str, object]:
        head = _HEAD if self.hidden < _LARGE_HEAD * 32 else _LARGE_HEAD
        heads = max(1, self.hidden // head)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, (self.key_value or self.hidden) // head),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
        }


def _layer(hidden: int, intermediate: int) -> int:
    return 4 * hidden**2 + 3 * hidden * intermediate + 2 * hidden


def _outside(hidden: int, vocabulary: int) -> int:
    return 2 * vocabulary * hidden + hidden


def parse_parameters(text: str) -> int:
    """``0.1b``, ``350m``, ``500k`` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    count = int(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]]) if match else 0
    if count < 1:
        raise OptionError(f"--parameters: got {text!r}, expected a number of parameters such as 0.1b or 350m")
    return count


def llama_of(parameters: int) -> LlamaSize:
    """The smallest model with at least so many parameters and the proportions of a Llama."""
    for hidden, intermediate, vocabulary in reversed(_WIDTHS):
        left = parameters - _outside(hidden, vocabulary)
        layers = max(1, -(-left // _layer(hidden, intermediate)))
        if layers >= _FEWEST_LAYERS or hidden == _WIDTHS[0][0]:
            return LlamaSize(hidden, intermediate, vocabulary, layers)
    raise AssertionError("unreachable: the narrowest width always fits")


def write_checkpoints(
    folder: Path,
    size: LlamaSize,
    experts: int,
    dtype: str,
    update: UpdateKind,
    weights: float = WEIGHT_RMS,
    device: torch.device | None = None,
) -> list[Path]:
    """The base and its experts, each a folder that mergekit reads; the base comes first. They are made on ``device``,
    whose numbers are not another's."""
    from safetensors.torch import save_file

    models: list[dict[str, Tensor]] = [{} for _ in range(experts + 1)]
    for seed, (name, shape) in enumerate(size.tensors().items()):
        if len(shape) == 1:
            tensors = [torch.ones(shape, dtype=DTYPES[dtype])] * (experts + 1)
        else:
            rows, columns = shape
            problem = MatrixProblem(rows, columns, experts, dtype, update, seed, weights)
            inputs = make_inputs(problem, device or torch.device("cpu"))
            tensors = [tensor.cpu() for tensor in (inputs.base, *inputs.experts)]
        for model, tensor in zip(models, tensors, strict=True):
            model[name] = tensor
    paths = [folder / name for name in ("base", *(f"expert-{i}" for i in range(1, experts + 1)))]
    for path, model in zip(paths, models, strict=True):
        path.mkdir()
        save_file(
            {name: tensor.clone() for name, tensor in model.items()}, path / "model.safetensors", {"format": "pt"}
        )
        (path / "config.json").write_text(json.dumps(size.config(dtype), indent=2))
        model.clear()
    return paths
