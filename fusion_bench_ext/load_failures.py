"""Why a checkpoint could not be loaded, found out from its files: the host seldom names the tensor and its shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mergekit_3h.checkpoints.headers import Checkpoint, read_checkpoint
from mergekit_3h.checkpoints.locations import locate
from mergekit_3h.errors import ModelError, TensorError, ThreeHError


def load_failure(name: str, path: Any, error: Exception) -> ThreeHError:
    """The error to show for the model ``name``, which the pool takes from ``path`` and which did not load."""
    folder = locate(path).path if isinstance(path, str) else None
    if folder is None and isinstance(path, str) and path.startswith(("/", ".", "~")):
        return ModelError(f"model {name!r} of the pool cannot be loaded: there is no folder {path}")
    if folder is not None and folder.is_dir():
        checkpoint = read_checkpoint(folder)
        if checkpoint.problems and (checkpoint.files or any(folder.glob("*.index.json"))):
            return ModelError(
                f"model {name!r} of the pool cannot be loaded: {'; '.join(checkpoint.problems[:3])}. Download or save "
                "the checkpoint again."
            )
        disagreement = _disagreement_with_config(name, checkpoint)
        if disagreement is not None:
            return disagreement
    reason = str(error).strip() or "no further reason given"
    return ModelError(f"model {name!r} of the pool cannot be loaded: {type(error).__name__}: {reason}")


def _disagreement_with_config(name: str, checkpoint: Checkpoint) -> TensorError | None:
    expected = _shapes_by_config(checkpoint.path)
    stored = checkpoint.tensors.values()
    others = [tensor for tensor in stored if expected.get(tensor.name, tensor.shape) != tensor.shape]
    if not others:
        return None
    first, more = others[0], f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    return TensorError(
        f"tensor {first.name!r}{more} of model {name!r} is {list(first.shape)} in {first.file} but "
        f"{list(expected[first.name])} by {checkpoint.path / 'config.json'}. Weights and config must be those of one "
        "model, which has the shapes of the others in the pool: save or download it again. Where its vocabulary was "
        "resized, vocab_size has to say so, and mergekit-yaml can align it (tokenizer: {source: base})."
    )


def _shapes_by_config(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the class that the config names; none where transformers cannot tell."""
    import transformers

    try:
        config: Any = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        model_class: Any = getattr(transformers, config.architectures[0])
        with torch.device("meta"):
            module = model_class(config)
    except Exception:  # whatever it is, the failure to explain is another one
        return {}
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
