"""Spectral methods as mergekit merge methods: parameters from the options, one tensor at a time to the kernel.

Every method of ``mergekit_3h.spectral.registry`` is an attribute of this module, under its name.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    TensorGroup,
)

from mergekit_3h.diagnostics.record import watcher
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
from mergekit_3h.kernels.workers import blas_threads
from mergekit_3h.methods.adapter_experts import current_experts
from mergekit_3h.methods.groups import begin_ahead
from mergekit_3h.methods.host_errors import HostError, shown_by_mergekit
from mergekit_3h.methods.parameters import parameter_specs
from mergekit_3h.methods.planning import CheckedMerge, checked_merge
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.gate import roles_of
from mergekit_3h.spectral.method import ExpertOptions, RunningOptions, SpectralMethod
from mergekit_3h.spectral.rounding_log import RoundingLog
from mergekit_3h.spectral.tensors import bytes_to_merge, merge_tensor


class SpectralMergeMethod(GroupMergeMethod):
    """A spectral method under mergekit's contract."""

    def __init__(self, name: str) -> None:
        self.method = registry.method(name)
        self._rounding = RoundingLog()
        self._merge: CheckedMerge | None = None
        self.spec = MergeMethodSpec(
            name=name,
            pretty_name=self.method.title,
            reference_url=self.method.paper,
            contract=InputContract(base=BasePolicy.REQUIRED),
            parameters=(
                *parameter_specs(name, self.method, ParameterScope.SHARED),
                *parameter_specs(name, ExpertOptions, ParameterScope.NON_BASE),
                *parameter_specs(name, RunningOptions, ParameterScope.SHARED),
            ),
        )

    def validate_inputs(
        self, input_ids: Sequence[Hashable], base_id: Hashable | None = None, *, group_name: str | None = None
    ) -> None:
        """mergekit calls this while it plans and again for every tensor."""
        method, place = self.spec.name, f" (for {group_name})" if group_name else ""
        if base_id is None:
            raise HostError(
                f"{method} needs a base model{place}: add `base_model:` with the model the experts come from"
            )
        if base_id not in input_ids:
            raise HostError(f"{method}: the base model {base_id} lacks a tensor that the experts have{place}")
        if len(input_ids) < 2:
            raise HostError(f"{method} needs at least one expert beside the base model {base_id}{place}")
        with shown_by_mergekit():
            blas_threads()  # raises if the environment asks for what is no number
            merge = checked_merge(self.spec)
            if merge is not None and merge is not self._merge:
                self._merge, self._rounding = merge, RoundingLog()
        if merge is not None:
            begin_ahead(merge.ahead)
        return_large_blocks_when_freed()
        super().validate_inputs(input_ids, base_id, group_name=group_name)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        weight, role, base = parameters.pop("weight"), parameters.pop("role"), group.base
        assert base is not None  # the contract requires one
        with shown_by_mergekit():
            method = self._with_options(parameters)
            experts = current_experts()
            if experts is not None:
                return experts.merge(group, method, {str(entry.id): weight[entry.id] for entry in group.non_base})
            roles = roles_of({str(entry.id): role[entry.id] for entry in group.non_base})
            return merge_tensor(
                group.metadata.name or "unnamed",
                base.tensor,
                {str(entry.id): entry.tensor for entry in group.non_base},
                {str(entry.id): weight[entry.id] for entry in group.non_base},
                method,
                base_label=f"the base model {base.id}",
                roles=roles,
                watch=watcher(method, roles.experts),
                rounding=self._rounding,
            )

    def bytes_to_merge(self, name: str, tensors: Sequence[torch.Tensor], parameters: Mapping[str, Any]) -> int:
        """What merging a tensor takes of memory, the tensors themselves and their promoted copies included."""
        experts = current_experts()
        with shown_by_mergekit():
            method = self._with_options(parameters)
            if experts is not None:
                return experts.bytes_to_merge(name, tensors[0], method)
            own = bytes_to_merge(name, tensors, method)
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        copied = sum(tensor.numel() * dtype.itemsize for tensor in tensors if tensor.dtype != dtype)
        return own + copied + sum(tensor.nbytes for tensor in tensors)

    def _with_options(self, parameters: Mapping[str, Any]) -> SpectralMethod:
        own = {name: value for name, value in parameters.items() if name not in RunningOptions.model_fields}
        return self.method(**own)


_made: dict[str, SpectralMergeMethod] = {}
_making = threading.Lock()


def __getattr__(name: str) -> SpectralMergeMethod:
    if name not in registry.names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _making:  # mergekit takes a second object of one name for another method
        if name not in _made:
            _made[name] = SpectralMergeMethod(name)
        return _made[name]
