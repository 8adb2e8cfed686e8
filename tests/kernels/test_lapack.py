"""The steps of LAPACK that scipy lends: the same decomposition as the driver's, of what is wanted alone."""

from __future__ import annotations

import ctypes
import threading

import pytest
import scipy.linalg
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

from mergekit_3h.kernels import lapack
from mergekit_3h.kernels.dense import eigh_in_place


def symmetric(side: int, kind: str = "decaying") -> Tensor:
    generator = torch.Generator().manual_seed(side)
    turned = torch.linalg.qr(torch.randn(side, side, generator=generator, dtype=torch.float64)).Q
    values = {
        "decaying": torch.arange(1, side + 1, dtype=torch.float64) ** -1.4,
        "equal": torch.ones(side, dtype=torch.float64),
        "clustered": 1e-3 + torch.arange(1, side + 1, dtype=torch.float64) ** -2.0,
        "few": (torch.arange(side) < 5).to(torch.float64),
        "none": torch.zeros(side, dtype=torch.float64),
        "huge": 1e280 * torch.arange(1, side + 1, dtype=torch.float64),
        "tiny": 1e-280 * torch.arange(1, side + 1, dtype=torch.float64),
    }[kind]
    whole = (turned * values) @ turned.T
    return (whole + whole.T) / 2


@pytest.fixture
def lent() -> None:
    if not lapack.can_decompose(symmetric(lapack.SMALLEST)):
        pytest.skip("scipy's LAPACK is not OpenBLAS here")


def openblas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"]


@pytest.mark.parametrize("kind", ["decaying", "equal", "clustered", "few", "none", "huge", "tiny"])
@pytest.mark.parametrize("kept", [0, 1, 50, 170])
@pytest.mark.usefixtures("lent")
def test_the_largest_pairs_are_those_of_the_matrix(kind: str, kept: int) -> None:
    whole = symmetric(170, kind)
    values, vectors = eigh_in_place(whole.triu(), lambda every: kept)
    size = float(whole.abs().max()) or 1.0
    driver = torch.linalg.eigvalsh(whole)
    assert torch.allclose(values / size, driver / size, rtol=0, atol=1e-13)
    assert vectors.shape == (170, kept)
    assert torch.allclose(vectors.T @ vectors, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-13)
    left = (whole / size) @ vectors - vectors * (values[170 - kept :] / size)
    assert float(left.abs().max() if kept else 0.0) < 1e-13


@pytest.mark.usefixtures("lent")
def test_how_many_are_kept_is_told_by_all_the_values() -> None:
    seen: list[Tensor] = []

    def keep(values: Tensor) -> int:
        seen.append(values.clone())
        return int((values > 0.01).sum())

    values, vectors = eigh_in_place(symmetric(200), keep)
    assert torch.equal(seen[0], values)
    assert vectors.shape[1] == 26  # j^-1.4 > 0.01


@pytest.mark.usefixtures("lent")
def test_the_vectors_take_the_memory_of_the_matrix() -> None:
    whole = symmetric(170)
    _, vectors = eigh_in_place(whole, lambda every: 40)
    assert vectors.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.usefixtures("lent")
def test_threads_side_by_side_give_the_bits_of_one_and_leave_openblas_its_own() -> None:
    scipy.linalg.eigvalsh(symmetric(8).numpy())
    before, whole = openblas_threads(), symmetric(300)
    values, vectors = eigh_in_place(whole.clone(), lambda every: 100)
    found: list[tuple[Tensor, Tensor]] = []
    threads = [
        threading.Thread(target=lambda: found.append(eigh_in_place(whole.clone(), lambda every: 100))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(values, v) and torch.equal(vectors, w) for v, w in found)
    assert openblas_threads() == before


@pytest.mark.usefixtures("lent")
def test_openblas_has_one_thread_meanwhile() -> None:
    seen: list[list[int]] = []
    eigh_in_place(symmetric(170), lambda every: seen.append(openblas_threads()) or 3)
    assert set(seen[0]) == {1}


class Failing:
    """LAPACK, whose divide and conquer fails in some way in its first attempts."""

    def __init__(self, attempts: int, way: str) -> None:
        self._attempts, self._way, self._step = attempts, way, lapack._info

    def __call__(self, step: lapack.Step, *arguments: bytes | int | Tensor) -> int:
        info = self._step(step, *arguments)
        if arguments[0] != b"I" or self._attempts == 0:
            return info
        self._attempts -= 1
        values, vectors = arguments[2], arguments[4]
        assert isinstance(values, Tensor) and isinstance(vectors, Tensor)
        if self._way == "says so":
            return 124_883
        if self._way == "turns a vector":
            vectors[3] += 1e-9 * vectors[4]
        else:
            values[3] *= 1 + 1e-7
        return 0


@pytest.mark.parametrize("way", ["says so", "turns a vector", "moves a value"])
@pytest.mark.usefixtures("lent")
def test_a_step_that_fails_is_taken_again_with_other_digits(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapack, "_info", Failing(2, way))
    whole = symmetric(170, "clustered")
    values, vectors = eigh_in_place(whole.clone(), lambda every: 60)
    assert torch.allclose(values, torch.linalg.eigvalsh(whole), rtol=0, atol=1e-14)
    assert float((whole @ vectors - vectors * values[110:]).abs().max()) < 1e-14


@pytest.mark.usefixtures("lent")
def test_a_step_that_always_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapack, "_info", Failing(99, "says so"))
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        eigh_in_place(symmetric(170))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.usefixtures("lent")
def test_what_is_not_finite_is_refused(bad: float) -> None:
    whole = symmetric(170)
    whole[3, 7] = whole[7, 3] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        eigh_in_place(whole)
    eigh_in_place(symmetric(170))  # and the next is none the worse


def test_small_and_huge_matrices_other_dtypes_and_a_choice_of_threads_are_the_drivers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not lapack.can_decompose(symmetric(lapack.SMALLEST - 1))
    assert not lapack.can_decompose(torch.empty(50_000, 1, dtype=torch.float64).expand(-1, 50_000))
    assert not lapack.can_decompose(symmetric(200).to(torch.float32))
    monkeypatch.setattr(lapack, "blas_threads", lambda: 8)
    assert not lapack.can_decompose(symmetric(200))


def test_without_the_steps_the_driver_decomposes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapack, "_steps", lambda: None)
    whole = symmetric(170)
    values, vectors = eigh_in_place(whole.clone(), lambda every: 40)
    assert vectors.shape == (170, 40)
    assert float((whole @ vectors - vectors * values[130:]).abs().max()) < 1e-13


@pytest.mark.parametrize("signature", [b"void (char *, int64_t *)", b"int (char *, int *)", b"void (char *)"])
def test_a_step_with_other_arguments_is_not_taken(signature: bytes) -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    assert lapack._function(new(1, signature, None), 2) is None
    assert lapack._function(None, 2) is None
