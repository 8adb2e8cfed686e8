"""Cross-entropies of single tokens, without a copy of all logits in float32 or of their gradient before it is rounded.

With a vocabulary of 128 thousand, a thousand bfloat16 logits rows take 0.26 GB. In float32, with their log-softmax and
the gradients of both, they would take 2 GB, more than the weights of a small model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS, BLOCK_ELEMENTS_ON_DEVICE
from mergekit_3h.kernels.workers import spans


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability of ``targets[i]`` under ``logits[i]``, in float32 or better."""
    apply: Any = _TokenLosses.apply
    return apply(logits, targets)


class _TokenLosses(torch.autograd.Function):
    """A block of tokens at a time. The backward pass computes the softmax anew from the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        blocks = [cross_entropy(_raised(logits[part]), targets[part], reduction="none") for part in _blocks(logits)]
        return torch.cat(blocks)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (by_loss,) = grad_outputs
        logits, targets = ctx.saved_tensors
        by_logits = torch.empty_like(logits)
        for part in _blocks(logits):
            chosen = targets[part, None]
            probabilities = _raised(logits[part]).softmax(dim=1)
            probabilities.scatter_(1, chosen, probabilities.gather(1, chosen) - 1.0)
            by_logits[part] = probabilities.mul_(by_loss[part, None])
        return by_logits, None


def _blocks(logits: Tensor) -> list[slice]:
    elements = BLOCK_ELEMENTS if logits.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE
    return spans(logits.shape[0], max(1, elements // logits.shape[1]))


def _raised(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
