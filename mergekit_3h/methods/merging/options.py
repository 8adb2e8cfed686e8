"""mergekit's options from plain values, with errors in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml
from mergekit.common import dtype_from_name, parse_kmb
from mergekit.options import MergeOptions

from mergekit_3h.errors import OptionError


def mergekit_options(given: Mapping[str, Any], *, is_here: bool) -> MergeOptions:
    """``out_shard_size`` may be a text such as 5B. ``is_here``: this machine has to have the device."""
    size, device = given["out_shard_size"], given["device"]
    try:
        parsed_size = parse_kmb(size)
    except ValueError:
        raise OptionError(f"--out-shard-size: got {size!r}; expected bytes, as 5000000000, 5B or 500M") from None
    try:
        dtype_from_name(given["lora_merge_dtype"])
    except RuntimeError:
        raise OptionError(
            f"--lora-merge-dtype: got {given['lora_merge_dtype']!r}; expected bfloat16, float16 or float32"
        ) from None
    options = MergeOptions(**{**given, "out_shard_size": parsed_size, "quiet": True})
    _require_device(options.device or "cpu", device, is_here=is_here)
    return options


def _require_device(device: str, given: str | None, *, is_here: bool) -> None:
    try:
        found = torch.device(device)
    except RuntimeError:
        raise OptionError(f"--merge-device: got {given!r}; expected cpu, cuda, cuda:1 or auto") from None
    if is_here and found.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("there is no CUDA device on this machine (--cuda, --merge-device); leave the option out")


def read_merge(text: str, place: object) -> dict[str, Any]:
    """The one merge of a YAML text."""
    found = [document for document in yaml.safe_load_all(text) if document is not None]
    if len(found) != 1:
        raise OptionError(f"{place}: holds {len(found)} merges; expected one, so give each a file of its own")
    if not isinstance(found[0], dict) or "merge_method" not in found[0]:
        raise OptionError(f"{place}: names no merge_method, so it is no config of mergekit-yaml")
    return found[0]
