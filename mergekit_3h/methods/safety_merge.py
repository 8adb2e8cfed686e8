"""The mergekit merge method ``safety_merge``: weights chosen by losses on safety and domain data, arXiv 2406.14563."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    TensorGroup,
)
from mergekit.merge_methods.registry import get

from mergekit_3h.methods.groups import Lookahead, begin_ahead
from mergekit_3h.methods.host_errors import HostError, shown_by_mergekit
from mergekit_3h.methods.parameters import parameter_specs
from mergekit_3h.methods.planning import check_models, lookahead, planned_merge
from mergekit_3h.options import checked
from mergekit_3h.safety.options import DECLARATIONS, REQUIRED
from mergekit_3h.search.options import SearchOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mergekit_3h.methods.fixed_merge import MergekitFixedMerge
    from mergekit_3h.safety.merge import SearchedMerge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Planned:
    """The merge that mergekit has planned last."""

    config: Any
    merge: SearchedMerge[MergekitFixedMerge]
    models: set[str]
    ahead: Lookahead | None
    """For its tensors to begin ahead of their turn; None where they do not."""
    memory_gb: float | None
    """What these may take."""

    def has(self, parameters: Mapping[str, Any]) -> bool:
        """Whether these are the options of its search: as the config has them, or unset."""
        given = self.config.parameters or {}
        return all(
            _is_same(declaration, name, parameters[name], given.get(name, field.default))
            for declaration in DECLARATIONS
            for name, field in declaration.model_fields.items()
            if name in parameters
        )


def _is_same(declaration: type[BaseModel], name: str, *values: Any) -> bool:
    """Whether two values of an option mean the same, as they are or, which takes longer, as they are read."""
    first, second = (declaration.model_fields[name].default if value is None else value for value in values)
    return first == second or checked(declaration, name, first) == checked(declaration, name, second)


class SafetyMergeMethod(GroupMergeMethod):
    """A method that needs the whole merge: it is checked while mergekit plans, and searched at the first tensor.

    mergekit says nothing of the whole to a method that merges a tensor, but plans and runs one merge after the other;
    so the merge that was planned last is the one that is run.
    """

    name = "safety_merge"

    def __init__(self) -> None:
        self.spec = MergeMethodSpec(
            name=self.name,
            pretty_name="Safety-data-driven merging",
            reference_url="https://arxiv.org/abs/2406.14563",
            contract=InputContract(base=BasePolicy.REQUIRED),
            parameters=tuple(
                spec
                for declaration in DECLARATIONS
                for spec in parameter_specs(self.name, declaration, ParameterScope.SHARED, refused_by_us=REQUIRED)
            ),
        )
        self._lock = threading.Lock()
        self._planned: _Planned | None = None

    def spec_for(self, config: Any) -> MergeMethodSpec:
        """The options that a config may have: those of the search, and those of the method whose weights it finds."""
        from mergekit.merge_methods import registered_methods

        name = (config.parameters or {}).get("combine", SearchOptions.model_fields["combine"].default)
        method = next((known for known in registered_methods() if known.spec.name == name), None)
        known = {parameter.name for parameter in self.spec.parameters} | {"weight"}
        others = [parameter for parameter in (method.spec.parameters if method else ()) if parameter.name not in known]
        return replace(self.spec, parameters=(*self.spec.parameters, *others))

    def validate_inputs(
        self, input_ids: Sequence[Hashable], base_id: Hashable | None = None, *, group_name: str | None = None
    ) -> None:
        """mergekit calls this while it plans and again for every tensor."""
        config, options = planned_merge()
        if config is not None:
            with self._lock, shown_by_mergekit():
                planned = self._plan(config, options)
            if planned.ahead is not None:
                begin_ahead(planned.ahead, planned.memory_gb)
        place = f" (for {group_name})" if group_name else ""
        if base_id is None:
            raise HostError(f"safety_merge needs a base model{place}: add `base_model:` to the config")
        if base_id not in input_ids:
            raise HostError(f"safety_merge: the base model {base_id} lacks a tensor that the experts have{place}")
        super().validate_inputs(input_ids, base_id, group_name=group_name)

    def _plan(self, config: Any, options: Any) -> _Planned:
        if self._planned is not None and self._planned.config is config:
            return self._planned
        from mergekit.options import MergeOptions

        from mergekit_3h.methods.safety_host import MergekitHost
        from mergekit_3h.methods.safety_request import read_request
        from mergekit_3h.safety.merge import SearchedMerge

        request = read_request(config)
        plan = check_models(self.spec, config, options)
        host = MergekitHost(request, options or MergeOptions())
        method = get(host.combination.method)
        # mergekit's own methods say nothing of memory, and are merged one tensor after the other as ever.
        ahead = lookahead(config, plan, options) if hasattr(method, "bytes_to_merge") else None
        models = set(host.names.values())
        self._planned = _Planned(config, SearchedMerge(host), models, ahead, host.combination.memory_gb)
        return self._planned

    def bytes_to_merge(self, name: str, tensors: Sequence[torch.Tensor], parameters: Mapping[str, Any]) -> int:
        """What merging a tensor takes of memory. mergekit's thread asks before the first one begins, so that is where
        the search runs, with all cores and nothing on the device yet."""
        planned = self._of_plan()
        with shown_by_mergekit():
            return planned.merge.found()[1].bytes_to_merge(name, tensors)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        if parameters["data"] is None:
            return _uniform_merge(group, parameters)
        planned = self._of_plan()
        if {str(entry.id) for entry in group.entries} != planned.models or not planned.has(parameters):
            raise HostError(
                f"safety_merge: {group.metadata.name} is of another merge than the one that was planned last; run each "
                "merge before the next one is planned"
            )
        with shown_by_mergekit():
            tensors: dict[Any, torch.Tensor] = {entry.id: entry.tensor for entry in group.entries}
            merged = planned.merge.found()[1].merged(group.metadata.name or "", tensors)
        assert merged is not None  # only an optional tensor that models lack gives none, and none is lacking here
        return merged

    def _of_plan(self) -> _Planned:
        if self._planned is None:
            raise HostError(
                "safety_merge evaluates whole models, so single tensors cannot be merged with it; use mergekit-yaml, "
                "or mergekit_3h.search from Python"
            )
        return self._planned


def _uniform_merge(group: TensorGroup, parameters: dict[str, Any]) -> torch.Tensor:
    """Where the search starts: all experts alike. A config must name its data; tensors merged from Python may not."""
    log.warning("safety_merge was given no data: %s is merged with uniform weights", group.metadata.name)
    options = SearchOptions(**{name: parameters[name] for name in SearchOptions.model_fields})
    weight = options.start_value(len(group.non_base))
    (merged,) = get(options.combine)((group,), parameters={"weight": weight})
    return merged


METHOD = SafetyMergeMethod()
