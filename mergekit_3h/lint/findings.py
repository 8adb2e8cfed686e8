"""What the lint reports: one finding, its severity, and where it was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
# Every rule has its row in docs/check.md and its test.
Rule = Literal[
    "yaml", "config", "duplicate-key", "unknown-key", "other-tool", "merge-name",
    "unknown-method", "autoload-off", "unknown-option", "no-effect", "bad-value", "missing-option",
    "list-of-strings", "fractional-gradient", "empty-list", "unreachable-filter", "dead-filter",
    "dtype", "no-base", "base-forbidden", "base-not-in-slice", "no-experts", "inputs", "layer-range",
    "tokenizer-base", "tokenizer-source", "chat-template",
    "missing-model", "missing-adapter", "offline", "download", "relative-path", "lora-cache", "adapter-as-model",
    "weight-files", "model-config", "remote-code", "file-as-folder", "folder-as-file",
    "architecture", "layer-count", "model-settings",
    "missing-tensor", "listed-tensor", "lost-tensor", "left-out", "shape", "mixed-dtypes",
    "vocabulary", "special-token", "tokenizer-missing",
    "duplicate-model", "equal-experts", "base-as-expert", "expert-equals-base",
    "plan", "non-finite", "unchanged-tensors", "rounded-update", "near-duplicates",
]  # fmt: skip
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One remark on a config. ``where`` is a path into it, as ``models[1].parameters.weight``."""

    severity: Severity
    rule: Rule
    message: str
    where: str = ""
    advice: str = ""
    model: str | None = None
    tensor: str | None = None
    line: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{place}{self.message}{advice}"


def shortened(names: list[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
