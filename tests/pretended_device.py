"""A device that is none: its tensors are on the CPU, but whatever mixes them with others fails, as it does on a GPU.

A tensor there is a shell around one on the CPU. ``pretended`` sees every operation, refuses tensors of both places in
one, and computes on the CPU. So code that makes a tensor without saying where shows on a machine without a GPU, and
results have to be those of the CPU, bit for bit. torch keeps the device for the life of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from mergekit_3h.kernels.passages import Passage, Stage

DEVICE = torch.device("privateuseone", 0)
_aten = torch.ops.aten  # type: ignore[attr-defined]
_CROSSING = (_aten.copy_.default, _aten._to_copy.default, _aten.index.Tensor, _aten.index_put_.default)
"""What a GPU does with tensors of two places."""


class There(Tensor):
    """The shell of a tensor on the pretended device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.__dict__["held"] = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors that torch makes of lists, as numbers or as places, which it does past the mode above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == DEVICE.type:
            del kwargs["device"]
            return func(*args, **kwargs).to(device)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        return func(*args, **kwargs)


def _computed(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    shells = [tensor for tensor in given if isinstance(tensor, There)]
    outside = [tensor for tensor in given if not isinstance(tensor, There) and tensor.dim()]
    if shells and outside and func not in _CROSSING:
        raise RuntimeError(f"{func}: tensors of {DEVICE} and of the cpu in one operation")
    target = kwargs.get("device")
    is_there = bool(shells) if target is None else torch.device(target).type == DEVICE.type
    if func is _aten.copy_.default:
        is_there = isinstance(args[0], There)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(tensor.held): tensor for tensor in shells}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_there:
            return value
        shell = known.get(id(value))  # what was computed in place stays the same tensor
        return There(value) if shell is None else shell

    return tree_map(placed, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


@contextmanager
def pretended() -> Generator[torch.device]:
    """Within, ``tensor.to(device)`` brings a tensor to the device that is given."""
    _known_to_torch()
    with _Everywhere(), _Made():
        yield DEVICE


class PretendedPassage(Passage):
    """The way there for what merges on a device: each of its threads sees the device, and no other does."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        _known_to_torch()

    @contextmanager
    def stage(self, stage: Stage) -> Generator[None]:
        with pretended():
            yield


@cache
def _known_to_torch() -> None:
    _setup_privateuseone_for_python_backend()
    device_module: Any = torch.get_device_module(DEVICE)
    device_module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # asked to leave autocast out
