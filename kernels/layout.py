"""Where tensors lie, asked for all of them at once, and whether they are still what a launch was planned for."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# DLPack's type codes.
FLOAT, BFLOAT = 2, 4

# dlpack::Match of csrc/exchange.h.
SOME_MISSING = 2


@cache
def _native() -> tuple[Any, Any] | None:
    """The native module and torch's exchange capsule (torch 2.13 has it), or None where one is missing."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        return None if capsule is None else (importlib.import_module("deeprelax._cpu"), capsule)
    except ImportError:
        return None


def same_strides(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two tensors of that shape lie alike: strides of dimensions of size 1 do not matter."""
    return all(size <= 1 or x == y for size, x, y in zip(shape, a, b))


class Layout:
    """What the tensors of a list have to be like.

    Args:
        dtype: of all of them.
        device: of all of them.
        shapes: of each.
        strides: of each, in elements.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        shapes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
    ) -> None:
        self.dtype, self.device = dtype, device
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.strides = [tuple(s) for s in strides]
        numbers = [n for shape, s in zip(shapes, strides) for n in (len(shape), *shape, *s)]
        self._flat = array("q", numbers or [0])
        self._dtype = (BFLOAT if dtype == torch.bfloat16 else FLOAT, dtype.itemsize * 8)
        self._device: tuple[int, int] | None = None

    def addresses(self, tensors: list[Tensor | None]) -> tuple[array[int], bool] | None:
        """The tensors' addresses, 0 for None, and whether any is None; or None if one is not as it has to be."""
        native = _native()
        if native is None or self.device.type not in ("cpu", "cuda"):
            if all(t is None or self.fits(k, t) for k, t in enumerate(tensors)):
                found = array("q", [0 if t is None else t.data_ptr() for t in tensors])
                return found, any(t is None for t in tensors)
            return None
        if self._device is None:
            self._device = tuple(map(int, torch.empty(0, device=self.device).__dlpack_device__()))  # type: ignore[assignment]
        module, capsule = native
        found = array("q", bytes(8 * len(tensors)))
        matched = module.match(capsule, tensors, self._dtype, self._device, self._flat, found)
        return (found, matched == SOME_MISSING) if matched else None

    def fits(self, k: int, t: Tensor) -> bool:
        """Whether ``t`` could be the k-th."""
        return (
            t.layout is torch.strided
            and t.dtype == self.dtype
            and t.device == self.device
            and t.shape == self.shapes[k]
            and same_strides(t.shape, t.stride(), self.strides[k])
            and not t.is_neg()
            and (t.data_ptr() != 0 or t.numel() == 0)
        )
