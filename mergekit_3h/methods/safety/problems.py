"""The search problem of a request: checked with the files' headers alone, then opened with the base's weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.options import MergeOptions
from torch import nn

from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.checkpoints.locations import config_problem
from mergekit_3h.checkpoints.sources import CheckpointSource
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.errors import ModelError
from mergekit_3h.losses.answers import shared_tokenizer
from mergekit_3h.losses.records import by_set, located_records
from mergekit_3h.methods.safety.combining import StaticMerge
from mergekit_3h.methods.safety.request import Request, is_linear
from mergekit_3h.search.candidate_model import merged_parameters
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.problem import Problem, require_same_architecture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """A problem that has passed every check that needs no weights; its model has none yet."""

    problem: Problem
    folders: Mapping[str, Path]
    device: str
    trust_remote_code: bool

    def opened(self) -> Problem:
        """The problem with the base's weights loaded."""
        options = self.problem.options
        model = loaded_model(self.folders[self.problem.base.label], options, self.device, self.trust_remote_code)
        return replace(self.problem, model=model)

    def facts(self, request: Request) -> dict[str, Any]:
        """What was searched, for the report."""
        models = {"base": str(request.base), **{label: str(model) for label, model in request.experts.items()}}
        return {
            "models": models,
            "data": [str(path) for path in request.run.files()],
            "records": {name: len(members) for name, members in self.problem.answers.items()},
            "combine": request.options.combine,
            "parameters": dict(request.shared),
            "model_parameters": {label: dict(own) for label, own in request.own.items()},
        }


def checked_problem(request: Request, options: MergeOptions) -> Checked:
    """Everything about a request that can be wrong is found here; nothing is read but data and headers."""
    records = located_records(request.run.files())
    by_set(records, request.options.needed_sets())
    request.run.folder()
    method = request.method_options()
    trust = options.trust_remote_code
    folders = request.folders(options.transformers_cache, options.lora_merge_cache, trust)
    for label, folder in folders.items():
        damage = [*filter(None, [config_problem(folder)]), *read_checkpoint(folder).damage]
        if damage:
            raise ModelError(f"model {label!r}: {'; '.join(damage)}; download or save the model again")
    sources = [CheckpointSource(folder, label) for label, folder in folders.items()]
    require_same_architecture(sources)
    tokenizer = shared_tokenizer(
        {label: load_tokenizer(path, trust) for label, path in folders.items()}, request.options
    )
    model = empty_model(sources[0].folder, trust)
    parameters = list(merged_parameters(model, sources[0].names()))
    static = StaticMerge(request, dict.fromkeys(request.experts, 1.0), options)
    static.require_all(parameters)
    combine = None
    if not is_linear(request.options):
        static.try_parameters()
        combine = static.combine
    problem = Problem(sources[0], tuple(sources[1:]), model, tokenizer, records, request.options, method, combine)
    return Checked(problem, folders, str(options.device or "cpu"), trust)


def opened_problem(request: Request, options: MergeOptions) -> Problem:
    """The problem with its weights, in a process of a Ray cluster, on the device that Ray gives it."""
    return replace(checked_problem(request, options), device=request.given.worker_device).opened()


def empty_model(folder: Path, trust_remote_code: bool = False) -> nn.Module:
    """The model's architecture with all names and shapes, and no memory for weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except Exception as error:
        raise ModelError(
            f"the model in {folder} is no causal language model that transformers can load: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model


def loaded_model(folder: Path, options: SearchOptions, device: str, trust_remote_code: bool = False) -> nn.Module:
    """The model that candidates are written into."""
    from transformers import AutoModelForCausalLM

    dtype: Any = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code
    )
    return model.to(device)
