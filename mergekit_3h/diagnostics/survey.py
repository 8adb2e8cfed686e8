"""The pass over a model's tensors, one at a time, and the folder in which it can be continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mergekit_3h.checkpoints.headers import StoredTensor
from mergekit_3h.diagnostics.lines import GrowingLines, LinesError, read_lines
from mergekit_3h.diagnostics.matrices import measure_tensor
from mergekit_3h.diagnostics.rows import TensorMeasures, layer_and_type
from mergekit_3h.diagnostics.subjects import InspectedModels, StoredVersions
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.whole_tensors import is_finite
from mergekit_3h.options import parsed
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import without_expert_options
from mergekit_3h.spectral.rtsvm import RTSVM
from mergekit_3h.spectral.tensors import merges_as_matrices
from mergekit_3h.spectral.tsvm import TSVM

MEASURES = "measures.jsonl"
FLOATING = {"F16", "BF16", "F32", "F64"}

FORMAT = 2
"""Changes when lines of older files mean something else."""


@dataclass
class OpenedFiles:
    """Tensors out of checkpoint files, which stay open: the same few are asked for again and again."""

    opened: dict[Path, Any] = field(default_factory=dict)

    def load(self, stored: StoredTensor) -> Tensor:
        if stored.file not in self.opened:
            self.opened[stored.file] = self._open(stored.file)
        file = self.opened[stored.file]
        return file[stored.name] if isinstance(file, dict) else file.get_tensor(stored.name)

    def _open(self, file: Path) -> Any:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            return safe_open(str(file), framework="pt")
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return content.get("state_dict", content)


def survey(
    subject: InspectedModels,
    options: TSVM,
    *,
    folder: Path | None = None,
    sample: float = 1.0,
    device: str = "cpu",
    quiet: bool = False,
) -> list[TensorMeasures]:
    """Measure every tensor, or the share ``sample`` of the layers; with a folder, those it does not hold yet."""
    header = {"format": FORMAT, "models": subject.digest, "settings": repr(options.settings())}
    known = _known(folder / MEASURES, header) if folder else {}
    files, found = OpenedFiles(), list[TensorMeasures]()
    with _lines(folder, header) as lines:
        for versions in tqdm(sampled(subject.tensors, sample), desc="inspect", disable=True if quiet else None):
            measured = known.get(versions.name)
            if measured is None:
                measured = list(_measured(versions, files, options, torch.device(device)))
                if lines is not None:
                    lines.append(
                        {versions.name: [each.model_dump(mode="json", exclude_defaults=True) for each in measured]}
                    )
            found += measured
    return found


def options_of(config: Any) -> TSVM:
    """What the R-TSVM measures are taken for: the config's options, or R-TSVM's own for any other method.

    An option that differs by layer or by tensor has its default here: the record of a merge says what each took.
    """
    name = config.merge_method
    method = registry.method(name) if name in registry.names() else None
    if method is None or not issubclass(method, TSVM):
        return parsed(RTSVM, {}, RTSVM.name)
    names = registry.option_names(method.name)
    given = {name: value for name, value in (config.parameters or {}).items() if name in names}
    plain = {name: value for name, value in given.items() if not isinstance(value, list | dict)}
    return parsed(method, without_expert_options(plain), method.name)


def sampled(tensors: Sequence[StoredVersions], share: float) -> list[StoredVersions]:
    """The tensors of evenly spread layers, the first and the last among them, and all outside the layers."""
    layers = sorted({layer for layer, _ in map(_place, tensors) if layer is not None})
    count = len(layers) if share >= 1 else min(len(layers), max(2, round(share * len(layers))))
    kept = {layers[round(i * (len(layers) - 1) / max(1, count - 1))] for i in range(count)}
    return [tensor for tensor in tensors if _place(tensor)[0] is None or _place(tensor)[0] in kept]


def _place(tensor: StoredVersions) -> tuple[int | None, str]:
    return layer_and_type(tensor.name)


def _known(file: Path, header: dict[str, Any]) -> dict[str, list[TensorMeasures]]:
    """What an earlier run left in the folder; an error if it looked at something else."""
    if not file.exists():
        return {}
    lines = read_lines(file)
    if next(lines, header) != header:
        raise LinesError(
            f"{file} holds measures of other models, or for other options. Name another folder, or remove this one."
        )
    return {
        name: [TensorMeasures.model_validate(each) for each in measured]
        for line in lines
        for name, measured in line.items()
    }


@contextmanager
def _lines(folder: Path | None, header: dict[str, Any]) -> Iterator[GrowingLines | None]:
    if folder is None:
        yield None
        return
    with GrowingLines(folder / MEASURES) as lines:
        if lines.is_empty:
            lines.append(header)
        yield lines


def _measured(
    versions: StoredVersions, files: OpenedFiles, options: TSVM, device: torch.device
) -> Iterator[TensorMeasures]:
    """One entry, or one for each matrix of a tensor of fused experts."""
    stored = [versions.base, *versions.experts]
    present = [version for version in stored if version is not None]
    problem = _mismatch(versions)
    if problem or not present or present[0].elements == 0:
        shape = present[0].shape if present else ()
        dtypes = [version.dtype if version else "none" for version in stored]
        yield TensorMeasures(tensor=versions.name, shape=shape, dtypes=dtypes, problem=problem or "no elements")
        return
    base, *experts = (files.load(version).to(computing_device(device)) for version in present)
    is_matrix = merges_as_matrices(versions.name, base, options)
    settings = options.settings()
    if is_matrix and base.ndim == 3:
        for i in range(base.shape[0]):
            yield _of_finite(f"{versions.name}[{i}]", base[i], [expert[i] for expert in experts], settings, is_matrix)
    else:
        yield _of_finite(versions.name, base, experts, settings, is_matrix)


def _mismatch(versions: StoredVersions) -> str:
    """Why the base's and the experts' versions cannot be subtracted, or an empty string."""
    base = versions.base
    if base is None:
        return "the base stores no such tensor"
    for number, expert in enumerate(versions.experts, start=1):
        if expert is None:
            return f"expert {number} stores no such tensor"
        if expert.shape != base.shape:
            return f"expert {number} has the shape {expert.shape}, the base {base.shape}"
        if not {expert.dtype, base.dtype} <= FLOATING:
            return f"stored as {base.dtype} and {expert.dtype}, expected floating-point numbers of 16 bits or more"
    return ""


def _of_finite(name: str, base: Tensor, experts: list[Tensor], settings: Settings, is_matrix: bool) -> TensorMeasures:
    broken = {
        i: int(tensor.numel() - torch.isfinite(tensor).sum())
        for i, tensor in enumerate([base, *experts])
        if not is_finite(tensor)
    }
    if not broken:
        return measure_tensor(name, base, experts, settings, is_matrix=is_matrix)
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in (base, *experts)]
    return TensorMeasures(
        tensor=name, shape=tuple(base.shape), dtypes=dtypes, problem="NaN or infinite values", broken=broken
    )
