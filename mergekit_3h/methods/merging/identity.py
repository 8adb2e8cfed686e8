"""What the bits of a merged model follow from: a merge is only continued if all of it is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_3h.checkpoints.headers import Checkpoint, fingerprint, read_checkpoint
from mergekit_3h.checkpoints.locations import locate
from mergekit_3h.inspection.packages import PACKAGE, version_of

_OPTIONS = (
    "out_shard_size",
    "safe_serialization",
    "random_seed",
    "lora_merge_dtype",
    "allow_crimes",
    "unsafe_truncate_embeddings",
    "num_threads",
)
_SMALL_FILES = ("*.json", "tokenizer.model", "*.txt", "*.jinja")
_PACKAGES = (PACKAGE, "mergekit", "torch", "transformers", "safetensors")


def request_of(config: MergeConfiguration, options: MergeOptions) -> dict[str, Any]:
    """Config, options, versions, and the files of all models, each under a name that a refusal shows."""
    raw = config.model_dump(mode="json", exclude_none=True)
    files = {f"files of {name}": files_of(folder) for name, folder in _folders(config, options).items()}
    return {
        **raw,
        **{f"--{name.replace('_', '-')}": getattr(options, name) for name in _OPTIONS},
        "device": torch.device(options.device or "cpu").type,
        **{f"the version of {name}": version_of(name) for name in _PACKAGES},
        **files,
        **{f"files of {path}": _times(path) for path in _named_files(raw)},
    }


def contents_of(config: MergeConfiguration, options: MergeOptions) -> dict[str, str]:
    """A digest of every model: the same wherever the same files are, whenever they were copied there."""
    return {
        name: " ".join(files_of(folder)[part] for part in ("weights", "settings"))
        for name, folder in _folders(config, options).items()
    }


def environment_of(options: MergeOptions) -> dict[str, Any]:
    """What the last bits may depend on where a method does not take care of it."""
    device = torch.device(options.device or "cpu")
    on_cuda = device.type == "cuda" and torch.cuda.is_available()
    name = torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability()
    return {"device": str(name), "threads": torch.get_num_threads()}


def _folders(config: MergeConfiguration, options: MergeOptions) -> dict[str, Path]:
    """Where mergekit reads the models, and where the adapters are. It fetches those of the hub if it has to."""
    cache, models = LoaderCache(), config.referenced_models()
    adapters = {str(model.lora): model.lora for model in models if model.lora is not None}
    placed = {name: locate(each.path, each.revision, options.transformers_cache) for name, each in adapters.items()}
    return {
        **{str(model): Path(cache.get(model).index.base_path) for model in models},
        **{name: place.path for name, place in placed.items() if place.path is not None},
    }


def files_of(folder: Path) -> dict[str, str]:
    """Digests of a model's content, or of an adapter's: samples of the weights, everything of the small files."""
    small = sorted({file for pattern in _SMALL_FILES for file in folder.glob(pattern) if file.is_file()})
    digest = hashlib.sha256()
    for file in small:
        digest.update(f"{file.name};".encode() + file.read_bytes())
    adapter = sorted(folder.glob("adapter_model.*"))
    weights = Checkpoint(folder, files=adapter) if adapter else read_checkpoint(folder)
    written = {str(file.name): _times(file) for file in weights.files}
    return {"weights": fingerprint(weights), "settings": digest.hexdigest(), **written}


def _times(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} bytes, written at {status.st_mtime_ns}"


def _named_files(content: Any) -> Iterator[Path]:
    """Files that a config names as the value of an option, such as data that weights are searched on."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in ("model", "base_model"):
                yield from _named_files(value)
    elif isinstance(content, list):
        for value in content:
            yield from _named_files(value)
    elif isinstance(content, str) and len(content) < 4096 and "\n" not in content:
        for part in content.split(","):
            path = Path(part.strip())
            if part.strip() and path.is_file():
                yield path
