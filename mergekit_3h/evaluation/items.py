"""What a metric finds: one value for every item, and what the value rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Direction = Literal["higher", "lower"]


class EvaluatedItem(BaseModel):
    """One question put to a model, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="The same for the same question, whatever the model.")
    prompt: str = Field(description="What the model was asked.")
    reply: str | None = Field(default=None, description="What it answered, or the choice it preferred.")
    value: float | None = Field(default=None, description="The item's share of the score; none: unscored, see reason.")
    verdict: str | None = Field(default=None, description="The judge's label.")
    reason: str | None = Field(default=None, description="Why there is no value, or what the judge said.")


@dataclass(frozen=True)
class Measured:
    """All items of a metric. The score is ``scale`` times the mean of the values that are there."""

    items: Sequence[EvaluatedItem]
    better: Direction = "higher"
    scale: float = 100.0
    score: float | None = None
    """A score that is no mean of values, as another harness computed it."""
    standard_error: float | None = None
    """Of that score."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """The values of the scored items, by id, in the order of the ids."""
        scored = {item.id: item.value for item in self.items if item.value is not None}
        return {name: scored[name] for name in sorted(scored)}

    def unscored(self) -> dict[str, int]:
        """How many items have no value, by reason."""
        return dict(Counter(item.reason or "no reason given" for item in self.items if item.value is None))


def unique_ids(names: Sequence[str]) -> list[str]:
    """The names, the second and later ones of a kind numbered."""
    seen: Counter[str] = Counter()
    ids: list[str] = []
    for name in names:
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids
