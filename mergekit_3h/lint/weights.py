"""What only the weights themselves tell: values that are not finite, tensors that no expert changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

from mergekit_3h.checkpoints.headers import stream_tensors
from mergekit_3h.lint.findings import Finding, shortened
from mergekit_3h.lint.models import NamedModel


def weight_findings(models: list[NamedModel]) -> list[Finding]:
    """Reads every weight of every model once, one tensor in memory at a time."""
    whole = [model for model in models if model.is_whole]
    digests: dict[str, dict[str, str]] = {}
    findings: list[Finding] = []
    for model in whole:
        digests[model.name] = {}
        findings += _read_through(model, digests[model.name])
    return findings + list(_unchanged(whole, digests))


def _read_through(model: NamedModel, digests: dict[str, str]) -> Iterator[Finding]:
    import torch

    assert model.checkpoint is not None
    for name, tensor in stream_tensors(model.checkpoint):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            message = f"{name} of {model.name} has {nan} NaN and {inf} infinite values of {tensor.numel():,}"
            advice = "no merge can repair it; get the checkpoint anew"
            yield Finding(
                "error", "non-finite", message, where=model.where, advice=advice, model=model.name, tensor=name
            )
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        digests[name] = hashlib.blake2b(raw.numpy().data, digest_size=16).hexdigest()


def _unchanged(models: list[NamedModel], digests: dict[str, dict[str, str]]) -> Iterator[Finding]:
    bases = [model for model in models if model.is_base]
    experts = [model for model in models if not model.is_base and not model.lora]
    if not bases or not experts:
        return
    base = digests[bases[0].name]
    same: dict[str, list[str]] = defaultdict(list)
    for expert in experts:
        same[expert.name] = [name for name, digest in digests[expert.name].items() if base.get(name) == digest]
        if base and len(same[expert.name]) == len(base):
            message = f"{expert.name} equals the base {bases[0].name} in every tensor: it adds nothing"
            yield Finding("warning", "expert-equals-base", message, where=expert.where, model=expert.name)
    common = [name for name in base if all(name in same[expert.name] for expert in experts)]
    if common and len(common) < len(base):
        message = f"no expert changes {len(common)} of {len(base)} tensors: {shortened(common)}"
        yield Finding("note", "unchanged-tensors", message, where="base_model", tensor=common[0])
