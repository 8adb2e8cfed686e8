"""Which tensors an option means: comma-separated patterns for their names, or presets of such patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

PRESETS: dict[str, tuple[str, ...]] = {
    # All but the linear layers of the language tower. mlp1 is InternVL's projector, vpm MiniCPM-V's vision tower.
    "vlm": (
        *("vision", "visual", "vpm.", "image_newline"),
        *("projector", "connector", "resampler", "qformer", "query_tokens", "language_projection", "mlp1.*"),
        *("embed_tokens", "lm_head", "wte.", "wpe."),
        *("norm", "ln_"),
    ),
    # The gates that choose experts; gate_proj of an MLP and the gate of a shared expert are others.
    "router": ("*.gate.*", "*.router.*", "*e_score_correction_bias"),
}
"""Of the option ``keep_base``."""


def listed(patterns: str) -> list[str]:
    """One by one."""
    return [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]


def matches(name: str, patterns: str) -> bool:
    """Whether one of them fits: whole-name with wildcards, else anywhere in the name."""
    return any(_fits(name, pattern) for pattern in listed(patterns))


def is_kept(name: str, keep_base: str) -> bool:
    """The same where a pattern may be a preset's name."""
    return any(_fits(name, each) for pattern in listed(keep_base) for each in PRESETS.get(pattern, (pattern,)))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) if "*" in pattern or "?" in pattern else pattern in name
