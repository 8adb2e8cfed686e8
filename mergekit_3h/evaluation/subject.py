"""The model that is evaluated: a checkpoint that is loaded when it is first needed, or a module in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.checkpoints.locations import config_problem, locate, read_json
from mergekit_3h.checkpoints.opening import load_model
from mergekit_3h.checkpoints.precision import settled_precision, stored_dtype
from mergekit_3h.checkpoints.tokenizers import load_tokenizer, tokenizer_facts
from mergekit_3h.data.backends.loading import chosen_device
from mergekit_3h.data.backends.protocol import Backend
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.errors import ModelError

_BLOCK = 1 << 22


@dataclass
class EvaluatedModel:
    """One model. ``identity`` is a digest of its weights: the same weights are the same model, whatever their name."""

    name: str
    settings: TransformersSettings
    """Where it is and how it computes. For a module in memory ``model`` is only its name."""
    identity: str
    tokenizer: Any = field(repr=False)
    context: int | None
    """How many tokens the model holds; None if it does not say."""
    load: Callable[[], Any] = field(repr=False)
    """The module. Called when something has to be computed, and not before."""

    @cached_property
    def module(self) -> Any:
        return self.load().eval()

    @property
    def key(self) -> str:
        """What a measurement of this model depends on besides the question."""
        return f"{self.identity}-{self.settings.dtype}-{self.settings.template}"

    @contextmanager
    def answering(self) -> Iterator[Backend]:
        """The model as a backend; afterwards it is as it was."""
        from mergekit_3h.data.backends.local import TransformersBackend

        backend = TransformersBackend(self.settings, (self.tokenizer, self.module))
        try:
            yield backend
        finally:
            backend.close()

    def free(self) -> None:
        """Let go of the weights; they are loaded again when they are needed."""
        import torch

        self.__dict__.pop("module", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def subject_of(model: str, settings: TransformersSettings, name: str | None = None) -> EvaluatedModel:
    """A checkpoint, by its folder or its name in the hub's cache. Its files are looked at, no weight is loaded."""
    folder = checkpoint_folder(model)
    damage = [*filter(None, [config_problem(folder)]), *read_checkpoint(folder).damage]
    if damage:
        raise ModelError(f"model {model}: {'; '.join(damage)}; download or save the model again")
    tokenizer = load_tokenizer(folder, settings.trust_remote_code)
    if tokenizer is None:
        raise ModelError(f"model {model}: {folder} has no tokenizer; copy the tokenizer's files from the base model")
    device = chosen_device(settings.device)
    dtype = settled_precision(settings.dtype, stored_dtype(folder), device).dtype
    settings = settings.model_copy(update={"model": str(folder), "device": device, "dtype": dtype})
    return EvaluatedModel(
        name or folder.name,
        settings,
        _digest_of_files(folder),
        tokenizer,
        _context_of(read_json(folder / "config.json")),
        lambda: load_model(folder, dtype, device, settings.trust_remote_code),
    )


def subject_in_memory(
    name: str, module: Any, tokenizer: Any, settings: TransformersSettings | None = None
) -> EvaluatedModel:
    """A module that is there already, on the device where it is. Its weights are taken as they are."""
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    settings = settings or TransformersSettings.model_validate({"model": name})
    settings = settings.model_copy(update={"model": name, "device": str(module.device), "dtype": dtype})
    context = _context_of(module.config.to_dict())
    return EvaluatedModel(name, settings, digest_of_module(module), tokenizer, context, lambda: module)


def checkpoint_folder(model: str) -> Path:
    place = locate(str(Path(model).expanduser()) if model.startswith("~") else model)
    if place.path is None or not place.path.is_dir():
        found = {"hub": "not in this machine's cache of the hub", "missing": "no such folder"}.get(
            place.status, "a file"
        )
        raise ModelError(
            f"model {model!r}: {found}; expected the folder of a checkpoint, or a name on the hub that is downloaded "
            f"already (hf download {model})"
        )
    return place.path.resolve()


def _context_of(config: Mapping[str, Any]) -> int | None:
    """Of the language part, where a config has several; GPT-2's generation calls it n_positions."""
    part = config.get("text_config") or config
    longest = part.get("max_position_embeddings") or part.get("n_positions")
    return longest if isinstance(longest, int) and longest > 0 else None


def _digest_of_files(folder: Path) -> str:
    facts = tokenizer_facts(folder)
    content = hashlib.sha256((folder / "config.json").read_bytes())
    content.update(f"{facts.digest} {facts.chat_template}".encode())
    for file in sorted(read_checkpoint(folder).files):
        with Path(file).open("rb") as opened:
            while block := opened.read(_BLOCK):
                content.update(block)
    return content.hexdigest()[:20]


def digest_of_module(module: Any) -> str:
    import torch

    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return content.hexdigest()[:20]


def batches_of(places: Sequence[int], orders: Sequence[Sequence[int]]) -> list[int]:
    """The batches that hold one of the places.

    A batch of which a part is known is computed again as a whole: rounding depends a little on what is in a batch, and
    a continued run gives what an undisturbed one gives.
    """
    wanted = set(places)
    return [number for number, order in enumerate(orders) if wanted.intersection(order)]
