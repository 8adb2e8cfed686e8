"""The package's own exceptions. Each message says what was got, what was expected, and what to do."""

from __future__ import annotations


class ThreeHError(Exception):
    """Base of every error this package raises on purpose; hosts show its message without a traceback.

    Deliberately no ValueError: pydantic would wrap one raised inside a validator into a message of its own.
    """


class OptionError(ThreeHError):
    """An option has a value it cannot have, or there is no such option."""


class TensorError(ThreeHError):
    """A tensor of a model cannot be merged: non-finite, missing, or of another shape."""


class ModelError(ThreeHError):
    """A model cannot take part in the merge: missing files, another architecture, another tokenizer."""
