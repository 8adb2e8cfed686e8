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


class DeviceMemoryError(ThreeHError):
    """A tensor is too large for the memory of the device that is to merge it."""


def about_tensor(name: str, error: BaseException) -> BaseException:
    """An error that says which tensor was merged: this one, if it does, else one that came of it."""
    if isinstance(error, ThreeHError) or not isinstance(error, Exception) or name in str(error):
        return error
    found = RuntimeError(f"cannot merge tensor {name!r}: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found
