"""The addresses of a list of tensors, and whether they are still those that a launch was planned for."""

from __future__ import annotations

import ctypes
import importlib
from array import array
from collections.abc import Sequence
from ctypes import addressof
from functools import cache
from itertools import repeat
from operator import attrgetter, eq, is_
from typing import Any

import torch
from torch import Tensor

from .abi import Expected

# DLPack's type codes.
FLOAT, BFLOAT = 2, 4

# dlpack::Match of csrc/exchange.h.
SOME_MISSING = 2

LAYOUT, DTYPE, DEVICE, SHAPE = map(attrgetter, ("layout", "dtype", "device", "shape"))
GRAD, NEEDS_GRAD, LOCAL = map(attrgetter, ("grad", "requires_grad", "_local_tensor"))


@cache
def _native() -> tuple[Any, int] | None:
    """The native module and the address of torch's exchange API (torch 2.11 and newer have it), or None."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        return None if capsule is None else (importlib.import_module("deeprelax._cpu"), _pointer(capsule))
    except ImportError:
        return None


def _pointer(capsule: Any) -> int:
    """The pointer in a capsule."""
    name, get = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(get(capsule, name(capsule)))


def same_strides(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two tensors of that shape have the same layout: strides of dimensions of size 1 do not matter."""
    return all(size <= 1 or x == y for size, x, y in zip(shape, a, b))


class Layout:
    """The properties that the tensors of a list must have.

    Args:
        dtype: of all of them.
        device: of all of them.
        shapes: of each.
        strides: of each, in elements.
        specs: for DTensors the ``_spec`` of each; the other arguments are then those of their local tensors, and the
            methods take DTensors.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        shapes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        specs: Sequence[Any] | None = None,
    ) -> None:
        self.dtype, self.device, self._sharded = dtype, device, specs is not None
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.strides = [tuple(s) for s in strides]
        numbers = [n for shape, s in zip(shapes, strides) for n in (len(shape), *shape, *s)]
        self._flat = array("q", numbers or [0])
        self._none = array("q", bytes(8 * len(self.shapes)))
        self._specs = list(specs or repeat(None, len(self.shapes)))
        self._native = _native() if device.type in ("cpu", "cuda") else None
        if self._native is not None:
            device_type, device_id = torch.empty(0, device=device).__dlpack_device__()
            self._expected = Expected(
                api=self._native[1],
                layouts=self._flat.buffer_info()[0],
                count=len(self.shapes),
                type_code=BFLOAT if dtype == torch.bfloat16 else FLOAT,
                type_bits=dtype.itemsize * 8,
                device_type=int(device_type),
                device_id=device_id,
                sharded=self._sharded,
            )

    def parameters(self, planned: list[Tensor], found: list[Tensor]) -> array[int] | None:
        """The addresses of parameters; None unless they are the planned objects, require gradients, and have the
        expected layouts."""
        if self._native is None:
            same = all(map(is_, planned, found)) and all(map(NEEDS_GRAD, found))
            tensors: list[Tensor | None] = list(map(LOCAL, found)) if same and self._sharded else list(found)
            in_python = self._addresses_in_python(tensors) if same else None
            return None if in_python is None else in_python[0]
        addresses = self._none[:]
        out = addresses.buffer_info()[0]
        with torch._C.DisableTorchFunctionSubclass():
            matched = self._native[0].match_parameters(addressof(self._expected), planned, found, out)
        return addresses if matched else None

    def gradients(self, params: list[Tensor]) -> tuple[list[Tensor | None], array[int], bool] | None:
        """The gradients of parameters (of DTensors the local tensors), their addresses, 0 for None, and whether any is
        None; or None if one does not have the expected layout."""
        if self._native is None:
            if self._sharded:
                return None
            found: list[Tensor | None] = list(map(GRAD, params))
            in_python = self._addresses_in_python(found)
            return None if in_python is None else (found, *in_python)
        grads: list[Any] = self._specs[:]
        addresses = self._none[:]
        out = addresses.buffer_info()[0]
        with torch._C.DisableTorchFunctionSubclass():
            matched = self._native[0].match_gradients(addressof(self._expected), params, grads, out)
        return (grads, addresses, matched == SOME_MISSING) if matched else None

    def _addresses_in_python(self, tensors: list[Tensor | None]) -> tuple[array[int], bool] | None:
        if not any(map(is_, tensors, repeat(None))) and self._are_as_planned(tensors):  # type: ignore[arg-type]
            found = array("q", map(Tensor.data_ptr, tensors))  # type: ignore[arg-type]
            if 0 not in found:
                return found, False
        if not all(t is None or self.fits(k, t) for k, t in enumerate(tensors)):
            return None
        return array("q", [0 if t is None else t.data_ptr() for t in tensors]), any(t is None for t in tensors)

    def _are_as_planned(self, tensors: list[Tensor]) -> bool:
        """Whether all fit, even in the strides of dimensions of size 1, as nearly always. Lists are compared by C code:
        two to three times faster than calling ``fits`` on each."""
        return (
            all(map(is_, map(LAYOUT, tensors), repeat(torch.strided)))
            and all(map(is_, map(DTYPE, tensors), repeat(self.dtype)))
            and all(map(eq, map(DEVICE, tensors), repeat(self.device)))
            and list(map(SHAPE, tensors)) == self.shapes
            and list(map(Tensor.stride, tensors)) == self.strides
            and not any(map(Tensor.is_neg, tensors))
        )

    def fits(self, k: int, t: Tensor) -> bool:
        """Whether ``t`` has the properties of the k-th."""
        return (
            t.layout is torch.strided
            and t.dtype == self.dtype
            and t.device == self.device
            and t.shape == self.shapes[k]
            and same_strides(t.shape, t.stride(), self.strides[k])
            and not t.is_neg()
            and (t.data_ptr() != 0 or t.numel() == 0)
        )
