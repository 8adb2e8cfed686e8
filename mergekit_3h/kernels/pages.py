"""Weights of a mapped file, asked for before they are used, so that reading them and computing overlap."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable
from functools import cache

from torch import Tensor

_WILL_NEED = 3  # MADV_WILLNEED of madvise(2), on Linux and macOS


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Have the system begin to read the pages of these tensors; the call does not wait for them.

    It changes no number. Nothing happens to tensors that are in memory already, nor where the system has no such call.
    """
    advise = _advise()
    if advise is None:
        return
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.numel() and tensor.is_contiguous():
            start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
            advise(start, tensor.data_ptr() + tensor.nbytes - start, _WILL_NEED)


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith(("linux", "darwin")):
        return None
    call = getattr(ctypes.CDLL(None), "madvise", None)
    if call is not None:
        call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
