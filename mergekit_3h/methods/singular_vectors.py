"""``tsvm`` and ``rtsvm`` as mergekit merge methods: parameters from the options, one tensor at a time to the kernel."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)
from pydantic import BaseModel, PlainValidator
from typing_extensions import Annotated  # noqa: UP035 - mergekit compares with this one on Python 3.10

from mergekit_3h.kernels.workers import blas_threads
from mergekit_3h.methods.host_errors import HostError, shown_by_mergekit
from mergekit_3h.methods.planning import check_plan
from mergekit_3h.options import METHODS, PAPER_URLS, ModelOptions, checked
from mergekit_3h.spectral.tensors import merge_tensor


class SingularVectorMethod(GroupMergeMethod):
    """A method of ``mergekit_3h.options.METHODS`` under mergekit's contract."""

    def __init__(self, name: str) -> None:
        self.options = METHODS[name]
        self.spec = MergeMethodSpec(
            name=name,
            pretty_name=self.options.pretty_name,
            reference_url=PAPER_URLS[name],
            contract=InputContract(base=BasePolicy.REQUIRED),
            parameters=(
                *_parameters(name, self.options, ParameterScope.SHARED),
                *_parameters(name, ModelOptions, ParameterScope.NON_BASE),
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
            check_plan(self.spec)
        super().validate_inputs(input_ids, base_id, group_name=group_name)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        weight = parameters.pop("weight")
        base = group.base
        assert base is not None  # the contract requires one
        with shown_by_mergekit():
            return merge_tensor(
                group.metadata.name or "unnamed",
                base.tensor,
                {str(entry.id): entry.tensor for entry in group.non_base},
                {str(entry.id): weight[entry.id] for entry in group.non_base},
                self.options(**parameters),
                base_label=f"the base model {base.id}",
            )


def _parameters(method: str, declaration: type[BaseModel], scope: ParameterScope) -> list[ParameterSpec]:
    def validate(name: str, value: Any) -> Any:
        with shown_by_mergekit():
            try:
                return checked(declaration, name, value)
            except Exception as error:
                raise HostError(f"{method}: {error}") from None

    return [
        ParameterSpec(
            name=field.alias or key,
            value_type=Annotated[Any, PlainValidator(partial(validate, field.alias or key))],
            scope=scope,
            default=field.default,
            description=field.description,
        )
        for key, field in declaration.model_fields.items()
    ]
