"""Leading eigenvectors of a symmetric matrix on a CPU, by the steps of LAPACK that its driver takes all at once.

Reduced to a tridiagonal matrix, decomposed there, and only the eigenvectors that are kept are turned back, which is as
much work for each of them as two products. torch has no way to leave the others out, and its library, MKL, is slow on
processors that are not Intel's. scipy has these steps, without holding Python's lock.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.kernels.workers import blas_threads

SMALLEST = 160
"""Columns from which on this is faster than the driver."""

_LARGEST = 46_000
"""Columns up to which 32 bits can say how large the workspace is."""

_BLOCK = 64
"""Columns that a step works on at once, as far as its workspace goes."""

_SCALES = (1.0, 1.1, 1.3, 1.7)
"""Of a tridiagonal matrix, to be tried one after the other."""

_APART = 1e-12
"""How far a decomposition may be off; of 3,800 matrices of a real model the worst was by 3e-15."""

_SEED = 241200081

_STEPS = {"dsytrd": 10, "dstedc": 11, "dormtr": 13}
"""Names and numbers of arguments, all of which are addresses."""

Step = Callable[..., None]


def can_decompose(gram: Tensor) -> bool:
    """Whether ``leading_vectors`` is for this matrix, here."""
    is_numbers = gram.device.type == "cpu" and gram.dtype == torch.float64
    is_worth_it = is_numbers and SMALLEST <= gram.shape[0] <= _LARGEST and blas_threads() == 1
    return is_worth_it and _steps() is not None


def leading_vectors(gram: Tensor, count: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """All eigenvalues, ascending, and the eigenvectors of the largest, as many as ``count`` says of the values.

    The matrix is given by its upper triangle, contiguous, and its memory used up: the eigenvectors, which are columns,
    take what they need of it. Always one BLAS thread.
    """
    steps, n = _steps(), gram.shape[0]
    assert steps is not None, "can_decompose says no"
    with _one_thread():
        diagonal, beside, reflectors = (gram.new_empty(n) for _ in range(3))
        work = gram.new_empty(n * _BLOCK)
        _call(steps["dsytrd"], b"L", n, gram, n, diagonal, beside, reflectors, work, work.numel())
        beside[n - 1] = 0.0
        if not bool(torch.isfinite(diagonal).all() & torch.isfinite(beside).all()):
            raise _error("eigendecomposition of a matrix that is not finite")
        values, vectors = _tridiagonal(steps["dstedc"], diagonal, beside)
        kept = count(values)
        vectors = vectors[n - kept :]
        _call(steps["dormtr"], b"L", b"L", b"N", n, kept, gram, n, reflectors, vectors, n, work, work.numel())
    gram[:kept] = vectors
    return values, gram[:kept].T


def _tridiagonal(step: Step, diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, as rows, by divide and conquer. ``beside`` ends with a number that does not count.

    The step gave up on one of 3,800 matrices of a real model, and not on the same one with other last digits.
    """
    n = diagonal.numel()
    vectors, work, places = diagonal.new_empty(n, n), diagonal.new_empty(1 + 4 * n + n * n), _integers(3 + 5 * n)
    for scale in _SCALES:
        values, other = diagonal * scale, beside * scale
        info = _info(step, b"I", n, values, other, vectors, n, work, work.numel(), places, places.numel())
        values /= scale
        if info == 0 and _decomposes(values, vectors, diagonal, beside):
            return values, vectors
    raise _error("eigendecomposition did not converge")


def _decomposes(values: Tensor, vectors: Tensor, diagonal: Tensor, beside: Tensor) -> bool:
    """Whether the rows are orthonormal and eigenvectors, as one vector sees it that has a part of each of them."""
    generator = torch.Generator().manual_seed(_SEED)
    probe = torch.randn(values.numel(), generator=generator, dtype=torch.float64)
    size = torch.maximum(diagonal.abs().max(), beside.abs().max()).clamp(min=torch.finfo(torch.float64).tiny)
    across, off = diagonal / size, beside[:-1] / size
    image = across * probe
    image[:-1] += off * probe[1:]
    image[1:] += off * probe[:-1]
    parts = vectors @ probe
    apart = torch.stack([parts @ vectors - probe, (parts * (values / size)) @ vectors - image])
    return bool(apart.square().sum() < _APART**2 * probe.square().sum())


def _integers(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int32)


def _call(step: Step, *arguments: bytes | int | Tensor) -> None:
    info = _info(step, *arguments)
    if info != 0:
        raise _error(f"LAPACK says {info} of its arguments")


def _info(step: Step, *arguments: bytes | int | Tensor) -> int:
    """As Fortran wants them: the address of everything, and of a number for what went wrong."""
    info = ctypes.c_int()
    step(*(_address(each) for each in arguments), ctypes.byref(info))
    return info.value


def _error(message: str) -> RuntimeError:
    """As torch's."""
    return torch.linalg.LinAlgError(message)  # pyright: ignore


def _address(argument: bytes | int | Tensor) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))


@cache
def _steps() -> dict[str, Step] | None:
    """LAPACK as scipy gives it to other compiled code. None where it is not what is known here: without OpenBLAS, whose
    threads can be told from outside, or with integers of another size."""
    if not _libraries():
        return None
    capsules: dict[str, Any] = importlib.import_module("scipy.linalg.cython_lapack").__pyx_capi__
    found: dict[str, Step] = {}
    for name, arguments in _STEPS.items():
        step = _function(capsules.get(name), arguments)
        if step is None:
            return None
        found[name] = step
    return found


def _function(capsule: Any, arguments: int) -> Step | None:
    """What a capsule of Cython points to; its name is its signature in C."""
    if capsule is None:
        return None
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    types = re.fullmatch(rb"void \((.*)\)", signature)
    known = types is not None and all(re.fullmatch(rb"(char|int|\w+_d) \*", each) for each in types[1].split(b", "))
    if types is None or not known or types[1].count(b"*") != arguments:
        return None
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)  # a call lets other threads run
    return prototype(api.PyCapsule_GetPointer(capsule, signature))


@dataclass(frozen=True)
class Threads:
    """How many threads one BLAS library of this process uses, whoever calls it."""

    read: Callable[[], int]
    write: Callable[[int], None]


@cache
def _libraries() -> list[Threads]:
    """Those of OpenBLAS with threads of its own. threadpoolctl finds them, and would let one thread alone write."""
    importlib.import_module("scipy.linalg")  # loads its library
    found: list[dict[str, Any]] = importlib.import_module("threadpoolctl").threadpool_info()
    own = [one for one in found if one["internal_api"] == "openblas" and one.get("threading_layer") == "pthreads"]
    every = [_threads_of(ctypes.CDLL(one["filepath"])) for one in own]
    return [one for one in every if one is not None]


def _threads_of(library: ctypes.CDLL) -> Threads | None:
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            read, write = (
                getattr(library, f"{prefix}openblas_{verb}_num_threads{suffix}", None) for verb in ("get", "set")
            )
            if read is not None and write is not None:
                return Threads(read, write)
    return None


_turn = threading.Lock()
_threads_before: list[int] = []
_running = 0


@contextmanager
def _one_thread() -> Generator[None]:
    """While anything runs in here these libraries use one thread; then as many as before."""
    global _running
    with _turn:
        if _running == 0:
            _threads_before[:] = [library.read() for library in _libraries()]
            for library in _libraries():
                library.write(1)
        _running += 1
    try:
        yield
    finally:
        with _turn:
            _running -= 1
            if _running == 0:
                for library, threads in zip(_libraries(), _threads_before, strict=True):
                    library.write(threads)
