"""Our errors as the ``fusion_bench`` command shows them: one message, no traceback, exit status 1.

Hydra prints a CompactHydraException as its message alone. FusionBench's command logs every exception with its
traceback before it hands it on to Hydra; a filter on that one logger leaves that out for the errors that Hydra shows.
``HYDRA_FULL_ERROR=1`` brings the whole traceback back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import CompactHydraException

from mergekit_3h.errors import ModelError, OptionError, TensorError, ThreeHError


class HydraError(ThreeHError, CompactHydraException):
    """Any other error of this package."""


class HydraOptionError(OptionError, CompactHydraException):
    """An OptionError that Hydra prints as one message."""


class HydraTensorError(TensorError, CompactHydraException):
    """A TensorError that Hydra prints as one message."""


class HydraModelError(ModelError, CompactHydraException):
    """A ModelError that Hydra prints as one message."""


_SHOWN_AS: list[tuple[type[ThreeHError], type[ThreeHError]]] = [
    (OptionError, HydraOptionError),
    (TensorError, HydraTensorError),
    (ModelError, HydraModelError),
    (ThreeHError, HydraError),
]


@contextmanager
def shown_by_hydra() -> Iterator[None]:
    """Turn any error of this package into its counterpart above; callers in Python catch it by the same class."""
    try:
        yield
    except ThreeHError as error:
        if isinstance(error, CompactHydraException):
            raise
        counterpart = next(shown for own, shown in _SHOWN_AS if isinstance(error, own))
        raise counterpart(str(error)).with_traceback(error.__traceback__) from error.__cause__


def _not_shown_by_hydra(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    is_ours = isinstance(error, ThreeHError) and isinstance(error, CompactHydraException)
    return not (is_ours and Path(record.pathname).parts[-3:] == ("fusion_bench", "scripts", "cli.py"))


# The command's module has the second name when it is run by ``python -m``.
for _name in ("fusion_bench.scripts.cli", "__main__"):
    logging.getLogger(_name).addFilter(_not_shown_by_hydra)
