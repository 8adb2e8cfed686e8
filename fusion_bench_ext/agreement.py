"""Whether the models of a pool fit together, found out from names and shapes alone, before anything is merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion_bench_ext.models import OpenModel
from mergekit_3h.errors import ModelError, TensorError


def names_to_merge(reference: OpenModel, others: Sequence[OpenModel]) -> list[str]:
    """The tensors of ``reference`` to merge, tied ones once; an error if another model does not have the same ones."""
    names = [name for name in reference.facts if _is_target(reference, name)]
    names = [name for i, name in enumerate(names) if not set(reference.ties.get(name, ())) & set(names[:i])]
    for model in [reference, *others]:
        _require_full_precision(model, names)
    for model in others:
        _require_same_class(reference, model)
        _require_same_tensors(reference, model, names)
        _require_same_ties(reference, model, names)
    return names


def _is_target(reference: OpenModel, name: str) -> bool:
    """FusionBench models may name the submodules that merging is confined to; the others stay as in the base."""
    targets = getattr(reference.module, "_fusion_bench_target_modules", None)
    return targets is None or any(name == target or name.startswith(f"{target}.") for target in targets)


def _require_same_class(reference: OpenModel, model: OpenModel) -> None:
    expected, got = type(reference.module).__name__, type(model.module).__name__
    if got != expected:
        raise ModelError(
            f"{model.label} is a {got} but {reference.label} is a {expected}; only models of one architecture can be "
            "merged"
        )


def _require_same_tensors(reference: OpenModel, model: OpenModel, names: Sequence[str]) -> None:
    missing = [name for name in names if model.stored_name(name) is None]
    if missing:
        raise TensorError(f"{model.label} lacks the tensor {_first_of(missing)} that {reference.label} has")
    surplus = [name for name in model.facts if _is_target(reference, name) and reference.stored_name(name) is None]
    if surplus:
        raise TensorError(f"{model.label} has the tensor {_first_of(surplus)} that {reference.label} lacks")
    for name in names:
        expected, got = reference.describe(name).shape, model.describe(name).shape
        if got != expected:
            raise TensorError(
                f"tensor {name!r} is {list(got)} in {model.label} but {list(expected)} in {reference.label}; the "
                "models must share one architecture. Where only the vocabulary differs, mergekit-yaml can align it "
                "(tokenizer: {source: base})."
            )


def _require_full_precision(model: OpenModel, names: Sequence[str]) -> None:
    for name in names:
        dtype = model.describe(name).dtype if model.stored_name(name) else torch.float32
        if dtype.is_floating_point and dtype.itemsize < 2:
            raise TensorError(
                f"tensor {name!r} of {model.label} is quantised ({dtype}); save the model in bfloat16 or float32 first"
            )


def _require_same_ties(reference: OpenModel, model: OpenModel, names: Sequence[str]) -> None:
    """A tensor that the reference ties must not have two values in another model: one of them would be lost."""
    for name in names:
        for alias in reference.ties.get(name, ()):
            if alias in model.ties.get(name, ()) or model.stored_name(alias) is None:
                continue
            if not torch.equal(model.load(name), model.load(alias)):
                raise ModelError(
                    f"{model.label} has different tensors {name!r} and {alias!r}, which {reference.label} ties into "
                    "one; save the base untied (tie_word_embeddings: false) to merge them separately"
                )


def _first_of(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"
