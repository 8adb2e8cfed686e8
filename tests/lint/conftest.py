"""Copies of the tiny models that one test may damage."""

from lint.workshop import llamas, workshop

__all__ = ["llamas", "workshop"]
