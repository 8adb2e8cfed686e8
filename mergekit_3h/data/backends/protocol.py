"""What a caller asks of a model and what it gets back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mergekit_3h.errors import OptionError, ThreeHError


class BackendError(ThreeHError):
    """A model cannot be used at all: not found, refused, out of memory, or failing again and again."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One conversation or one raw prompt, and how it is to be answered."""

    messages: Sequence[Mapping[str, Any]] | None = None
    """Turns as chat templates take them; put through the model's own template."""
    prompt: str | None = None
    """A raw prompt, continued as it stands, without any template."""
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of this request alone: the answer does not depend on what else is in the batch."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            got = "neither" if self.messages is None else "both"
            raise OptionError(f"a request has either messages or a raw prompt, got {got}")
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens: got {self.max_new_tokens}, expected at least 1")
        if self.temperature < 0:
            raise OptionError(f"temperature: got {self.temperature}, expected 0 (greedy) or more")


@dataclass(frozen=True)
class TokensUsed:
    """Of one request, counted by the model's own tokenizer."""

    prompt: int
    reply: int
    is_cut: bool
    """The reply ends because it has as many tokens as it may, or as the model holds."""


@dataclass(frozen=True)
class Completion:
    """The answer to one request: a text, or the reason why there is none."""

    text: str | None = None
    failure: str | None = None
    tokens: TokensUsed | None = field(default=None, compare=False)
    """None where the model is not in this process, or the answer was given earlier."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.failure is None):
            raise OptionError("a completion has either a text or a failure")


class Backend(Protocol):
    """A model that answers requests."""

    @property
    def batch_size(self) -> int:
        """How many requests are computed together; 1 where a request has no influence on its neighbours."""
        ...

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, in their order, each as soon as those before it are there."""
        ...

    def close(self) -> None:
        """Free the memory or the connections."""
        ...
