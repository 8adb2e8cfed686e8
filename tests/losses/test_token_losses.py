"""Logits are made for the places that answers need, and their losses and gradients are those of the plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from mergekit_3h.losses import token_losses as module
from mergekit_3h.losses.answers import Answer, Batch, batched
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.token_losses import token_losses

LENGTHS = [(20, 15), (19, 17), (18, 12)]
"""Of a record and of its prompt, the longest first as batches are."""


def batch() -> Batch:
    answers = [Answer(tuple(torch.arange(7 * i, 7 * i + n).tolist()), p, 1.0) for i, (n, p) in enumerate(LENGTHS)]
    return batched({"x": answers}, 8)[0]


def by_formula(model: nn.Module) -> torch.Tensor:
    """One record after the other, without padding, from the logits of all places in float64."""
    losses = []
    for n, p in LENGTHS:
        ids = torch.arange(7 * len(losses), 7 * len(losses) + n)
        logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        losses.append(-torch.stack([logs[place - 1, ids[place]] for place in range(p, n)]).mean())
    return torch.stack(losses)


class Plain(nn.Module):
    """A model whose forward knows no ``logits_to_keep``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_only_places_that_answers_need_have_logits(wants_gradient: bool) -> None:
    model, rows = tiny_model("llama").eval(), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: rows.append(logits.numel() // 384))
    with torch.set_grad_enabled(wants_gradient):
        record_losses(model, batch())
    # answers begin at the 12th token at the earliest, and the last of 20 predicts nothing: places 11 to 18, three times
    assert rows == [3 * 8]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "qwen2", "gpt2", "mixtral"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_losses_and_gradients_are_those_of_the_formula(architecture: str, is_plain: bool) -> None:
    model = tiny_model(architecture).eval()
    expected = by_formula(model)
    expected.sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = record_losses(Plain(model) if is_plain else model, batch())
    losses.sum().backward()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        if name in wanted:  # float32 sums in another order
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_block_at_a_time_is_the_same_as_all_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 100)  # three rows of 30
    torch.manual_seed(0)
    logits = (4 * torch.randn(10, 30)).to(dtype).requires_grad_()
    targets, factors = torch.randint(30, (10,)), torch.rand(10, dtype=torch.promote_types(dtype, torch.float32))
    losses = token_losses(logits, targets)
    (losses * factors).sum().backward()
    other = logits.detach().to(losses.dtype).requires_grad_()
    expected = nn.functional.cross_entropy(other, targets, reduction="none")
    (expected * factors).sum().backward()
    assert torch.equal(losses, expected)
    torch.testing.assert_close(logits.grad, other.grad.to(dtype))


def test_memory_of_the_losses_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is as large as the logits is in float32, forward or backward."""
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1000)
    logits = torch.randn(50, 500).bfloat16().requires_grad_()
    largest: dict[torch.dtype, int] = {}

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest[out.dtype] = max(largest.get(out.dtype, 0), out.numel())
            return out

    with Watch():
        losses = token_losses(logits, torch.arange(50))
        module._TokenLosses.backward(losses.grad_fn, torch.ones(50))
    assert largest[torch.float32] == 2 * 500
    assert largest[torch.bfloat16] == 50 * 500
