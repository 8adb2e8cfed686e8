"""How a batch of different requests is decoded in one pass, each row as if it were alone.

Sampling draws from softmax(logits / T) by the Gumbel-max rule: adding Gumbel noise to logits / T and taking
the largest is the same as sampling, and the noise comes from one generator per request. So a seed gives the same
answer whatever the batch, which ``torch.multinomial`` on the whole batch would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from mergekit_3h.data.backends.protocol import Request


class GumbelNoise(LogitsProcessor):
    """Turns the greedy choice of each row with a temperature into a seeded sample."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._rows = [
            (row, request.temperature, torch.Generator().manual_seed(request.seed))
            for row, request in enumerate(requests)
            if request.temperature > 0
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return scores
        noisy = scores.float().clone()
        smallest = torch.finfo(torch.float64).tiny
        for row, temperature, generator in self._rows:
            # On the CPU whatever the device, so that a seed means the same everywhere.
            uniform = torch.rand(noisy.shape[-1], generator=generator, dtype=torch.float64).clamp_min(smallest)
            gumbel = -torch.log(-torch.log(uniform))
            noisy[row] = noisy[row] / temperature + gumbel.to(noisy)
        return noisy


class RowLimits(StoppingCriteria):
    """Ends each row at its own length limit or stop string; transformers itself watches for the end token."""

    def __init__(self, requests: Sequence[Request], prompt_length: int, tokenizer: Any) -> None:
        self._requests, self._prompt_length, self._tokenizer = requests, prompt_length, tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        produced = input_ids[:, self._prompt_length :]
        ended = [self._ended(request, produced[row]) for row, request in enumerate(self._requests)]
        return torch.tensor(ended, device=input_ids.device)

    def _ended(self, request: Request, produced: torch.Tensor) -> bool:
        if produced.shape[0] >= request.max_new_tokens:
            return True
        if not request.stop:
            return False
        text = self._tokenizer.decode(produced, skip_special_tokens=True)
        return any(stop in text for stop in request.stop)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The part of a text before the first stop string in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
