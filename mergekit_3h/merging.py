"""One tensor of the merged model, as both hosts compute it: base and experts in, merged tensor out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_3h.options import TSVMOptions


def merge_tensor(
    name: str,
    base: Tensor,
    experts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    options: TSVMOptions,
) -> Tensor:
    """Merge the tensor ``name``: of the base, and of each expert under the label that error messages use.

    The result has the promoted dtype of the inputs and is rounded once, after the base was added.
    """
    raise SystemExit("under construction")
