"""What a step did with its items: kept, dropped, failed, unscored, and why."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

_PASSED_ON = "the request failed: "


class StepReport(BaseModel):
    """Counts of one step; every reason has its own number."""

    model_config = ConfigDict(extra="forbid")

    step: str
    requests: int = Field(default=0, description="Requests to a model.")
    wanted: int | None = Field(default=None, description="How many records were asked for, if there is such a number.")
    kept: int = Field(default=0, description="Records in the result.")
    dropped: dict[str, int] = Field(default_factory=dict[str, int], description="Left out on purpose, by reason.")
    failed: dict[str, int] = Field(default_factory=dict[str, int], description="Requests without an answer.")
    unscored: dict[str, int] = Field(default_factory=dict[str, int], description="Replies without a verdict.")
    examples: dict[str, str] = Field(
        default_factory=dict[str, str], description="The first full reason behind each short one that has more to say."
    )
    labels: dict[str, int] = Field(default_factory=dict[str, int], description="Replies by verdict.")

    def drop(self, reason: str, count: int = 1) -> None:
        _count(self.dropped, reason, count)

    def fail(self, reason: str) -> None:
        self._count_reason(self.failed, reason)

    def leave_unscored(self, reason: str) -> None:
        self._count_reason(self.unscored, reason)

    def label(self, label: str) -> None:
        _count(self.labels, label, 1)

    def _count_reason(self, counts: dict[str, int], reason: str) -> None:
        short = short_reason(reason)
        _count(counts, short, 1)
        if short != reason:
            self.examples.setdefault(short, reason)

    @property
    def failed_share(self) -> float:
        return sum(self.failed.values()) / self.requests if self.requests else 0.0

    @property
    def unscored_share(self) -> float:
        judged = sum(self.unscored.values()) + sum(self.labels.values())
        return sum(self.unscored.values()) / judged if judged else 0.0


def short_reason(reason: str) -> str:
    """The part of a reason that many items share: up to the first colon."""
    return reason.removeprefix(_PASSED_ON).split(": ")[0].split(" (after ")[0]


def listed(counts: Mapping[str, int]) -> str:
    """``3 duplicate, 1 too long``, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def _count(counts: dict[str, int], reason: str, count: int) -> None:
    if count:
        counts[reason] = counts.get(reason, 0) + count
