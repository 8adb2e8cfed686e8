"""A search problem: models, data and options in, everything that a runner and a solver need out.

Cheap checks come first (options, data, tokenizers, names and shapes of tensors), then the components, then passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mergekit_3h.checkpoints.opening import load_model, require_same_architecture
from mergekit_3h.checkpoints.sources import (
    CheckpointSource,
    StateDictSource,
    WeightSource,
    require_nothing_besides,
    require_same_tensors,
)
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.losses import records as data
from mergekit_3h.losses.answers import Answer, tokenized
from mergekit_3h.losses.objective import Objective
from mergekit_3h.losses.records import LocatedRecord
from mergekit_3h.losses.tokenizers import shared_tokenizer
from mergekit_3h.search.candidate_model import CandidateModel, merged_parameters
from mergekit_3h.search.combinations import is_held, is_linear, linear_combinations
from mergekit_3h.search.components import Combine
from mergekit_3h.search.families import block_families, families, placed
from mergekit_3h.search.layout import Layout, divided, layout_of
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.runner import LocalRunner
from mergekit_3h.search.tuned_families import Tuning, spectral_merge, tuned_families
from mergekit_3h.search.tuning import WEIGHT, searched_names, searched_options, spectral_axes
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.block_weights import block_weights_text
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import merge_tensor


@dataclass(frozen=True)
class Problem:
    """What is merged, on which data it is judged, and how. Checked as far as that is cheap when it is made.

    ``model`` is a loaded model of the base's architecture, which the search overwrites. ``method`` are the options of
    the spectral method, if one combines. ``combine`` merges one tensor where the combination is not linear in them,
    ``tuning`` under other options of the method, where those are searched. ``weights`` are those of the experts where
    blocks of their components are searched, 1 if unset.
    """

    base: WeightSource
    experts: tuple[WeightSource, ...]
    model: nn.Module
    tokenizer: Any
    records: Sequence[LocatedRecord]
    options: SearchOptions
    method: SpectralMethod | None = None
    combine: Combine | None = None
    tuning: Tuning | None = None
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        labels = [self.base.label, *(expert.label for expert in self.experts)]
        if len(set(labels)) < len(labels):
            raise ModelError(f"models have the labels {', '.join(labels)}; expected a different one for each")
        if not self.experts:
            raise ModelError("got no expert to merge; expected at least one besides the base")
        _require_method(self)
        if self.method is not None:
            self.method.require_experts(len(self.experts))
        _ = self.answers
        names = merged_parameters(self.model, self.base.names())
        for source in (self.base, *self.experts):
            if isinstance(source, StateDictSource):
                source.require_apart_from(names)
        require_same_tensors(self.base, self.experts, names.keys())
        require_nothing_besides(self.experts, self.model.state_dict().keys())

    @cached_property
    def answers(self) -> dict[str, list[Answer]]:
        """The records of each set as token ids."""
        needed = self.options.needed_sets()
        sets = data.by_set(self.records, needed)
        if "safety" in needed:
            data.require_refusals(sets["safety"], strict=self.options.strict)
        context = cast("int | None", getattr(getattr(self.model, "config", None), "max_position_embeddings", None))
        return {name: tokenized(members, self.tokenizer, self.options, context) for name, members in sets.items()}

    @property
    def set_weights(self) -> dict[str, float]:
        """The sum of the records' weights in each set."""
        return {name: math.fsum(answer.weight for answer in members) for name, members in self.answers.items()}

    @cached_property
    def layout(self) -> Layout:
        names = merged_parameters(self.model, self.base.names()).keys()
        return layout_of(
            names,
            [expert.label for expert in self.experts],
            self.options.layer_granularity,
            self.tuning.axes if self.tuning else (),
            with_weights=WEIGHT in searched_names(self.options.over),
            blocks=self.options.component_blocks,
        )

    def identity(self) -> dict[str, object]:
        """What tells this problem from others, for the trace."""
        return {
            "records": data.digest(self.records),
            "models": {model.label: model.digest() for model in (self.base, *self.experts)},
            "method": self.method.model_dump() if self.method else None,
            **({"starts": {axis.name: axis.start for axis in self.tuning.axes}} if self.tuning else {}),
        }

    def local_runner(self) -> LocalRunner:
        """Computes the components and evaluates candidates in this process. This is where the work begins."""
        parameters = merged_parameters(self.model, self.base.names())
        device = next(iter(parameters.values())).device
        names = list(parameters)
        if self.method is not None and self.options.component_blocks:
            made = block_families(names, self.base, self.experts, self.options, self.method, self.weights, device)
        elif self.tuning is not None:
            made = tuned_families(names, self.base, self.experts, self.tuning)
        else:
            made = families(names, self.base, self.experts, self.options, self.method, self.combine, device)
        kept = placed(made, device, self.options.component_memory_gb)
        candidates = CandidateModel(self.model, kept, self.layout)
        objective = Objective(self.answers, self.options.batch_size)
        return LocalRunner(candidates, (self.base, *self.experts), objective, self.merged)

    def merged(self, name: str, coefficients: Sequence[float]) -> Tensor:
        """One tensor as a spectral method merges it with these coefficients, nothing held."""
        method, weights = self.method, self.layout.of_tensor(coefficients, name)
        if method is None:
            raise OptionError(f"{self.options.combine} is no spectral method, so nothing of it is held")
        if self.options.component_blocks:
            factors = divided(weights, self.options.component_blocks)
            method = method.model_copy(update={"block_weights": block_weights_text(factors)})
            weights = list(self.weights or [1.0] * len(self.experts))
        labels = [expert.label for expert in self.experts]
        device = next(self.model.parameters()).device
        tensors = {expert.label: expert.tensor(name).to(device) for expert in self.experts}
        own = dict(zip(labels, weights, strict=True))
        return merge_tensor(name, self.base.tensor(name).to(device), tensors, own, method)


def _require_method(problem: Problem) -> None:
    options, method = problem.options, problem.method
    if options.combine in registry.names() and (method is None or method.name != options.combine):
        raise OptionError(f"combine {options.combine!r}: expected its options beside it, got {method!r}")
    if problem.tuning is not None:
        return
    if searched_options(options.over):
        raise OptionError(
            f"option 'over': got {options.over!r}, but nothing says how {options.combine} merges under other options; "
            "search them by mergekit-3h search, or take a spectral method"
        )
    if problem.combine is None and not (is_linear(options.combine) or is_held(options.combine, options.solver)):
        raise OptionError(
            f"option 'combine': got {options.combine!r}; expected one of {', '.join(linear_combinations())}, or a "
            "merge method of the host"
        )


def open_problem(
    base: str | Path,
    experts: Mapping[str, str | Path],
    data_files: str | Path | Iterable[str | Path],
    options: SearchOptions,
    *,
    method: SpectralMethod | None = None,
    combine: Combine | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> Problem:
    """The problem of local checkpoint folders and JSONL files. ``experts`` are folders by label."""
    records = data.located_records(data_files)
    data.by_set(records, options.needed_sets())  # what is wrong with the data shows before anything is loaded
    sources = [CheckpointSource(base, "base"), *(CheckpointSource(path, label) for label, path in experts.items())]
    require_same_architecture(sources, trust_remote_code)
    tokenizers = {source.label: load_tokenizer(source.folder, trust_remote_code) for source in sources}
    tokenizer = shared_tokenizer(tokenizers, options.chat_template)
    options = options.settled(sources[0].folder, str(device))
    model = load_model(sources[0].folder, options.dtype, device, trust_remote_code)
    if options.combine in registry.names() and method is None:
        method = registry.parse_options(options.combine, {})
    tuning = None
    if method is not None and (searched := searched_options(options.over)):
        tuning = Tuning(spectral_axes(searched, method, len(experts)), spectral_merge(method), scales=True)
    return Problem(sources[0], tuple(sources[1:]), model, tokenizer, records, options, method, combine, tuning)
