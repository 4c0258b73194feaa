"""What kernels on a GPU read about a ``Table``, on its device: uploaded once, addresses again when they change."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from .calls import Table

# Uploads that may be under way at once. Addresses rarely change, and each copy takes microseconds.
RING = 4


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return device.type == "cuda" and bool(torch.cuda.is_current_stream_capturing())


class Slot:
    """A pinned buffer of the host and an event: the buffer may be written again when the event has come to pass."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.host = torch.empty(size, dtype=dtype, pin_memory=device.type == "cuda")
        self._device = device
        self._event: Any = None

    def upload(self, values: array[Any], target: Tensor) -> None:
        """Copy ``values`` to ``target``, in the order of the current stream."""
        if self._event is not None:
            self._event.synchronize()
        self.host.copy_(torch.frombuffer(values, dtype=self.host.dtype))
        target.copy_(self.host, non_blocking=True)
        if self._device.type != "cpu":
            self._event = torch.get_device_module(self._device).Event()
            self._event.record()


class Upload:
    """Numbers on a device, copied there only when they change.

    While a graph is captured, they get a place of their own, on the host and on the device, that nothing writes to
    afterwards: the graph repeats the copy each time it runs. One such place is always in store, because memory can
    hardly be pinned in the middle of a capture.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._dtype, self._device = max(size, 1), dtype, device
        self._values: array[Any] | None = None
        self._copy = self._place()
        self._ring = [self._slot() for _ in range(RING if device.type != "cpu" else 1)]
        self._spare: tuple[Tensor, Slot] | None = None
        self._captured: list[tuple[Tensor, Slot]] = []

    def _place(self) -> Tensor:
        return torch.empty(self._size, dtype=self._dtype, device=self._device)

    def _slot(self) -> Slot:
        return Slot(self._size, self._dtype, self._device)

    def prepare(self) -> None:
        """Store a place for the next capture."""
        if self._spare is None:
            self._spare = self._place(), self._slot()

    def __call__(self, values: array[Any]) -> Tensor:
        if capturing(self._device):
            return self._capture(values)
        if self._values is None or values != self._values:
            self._values = values[:]
            slot = self._ring.pop(0)
            slot.upload(values, self._copy)
            self._ring.append(slot)
        return self._copy

    def _capture(self, values: array[Any]) -> Tensor:
        place, slot = self._spare or (self._place(), self._slot())
        self._spare = None
        self._captured.append((place, slot))
        slot.host.copy_(torch.frombuffer(values, dtype=self._dtype))
        place.copy_(slot.host, non_blocking=True)
        return place


class DeviceTable:
    """A ``Table`` on its device.

    Args:
        table: the table.
        chunk: elements of a chunk.

    Attributes:
        chunks: int32, shape (n, 2): tensor, and which of its pieces of ``chunk`` elements.
        tensors: int64, shape (t, 4): size, offset in the flat buffers, noise's parameter index, global start.
        weights, grads: uploads of addresses, one a tensor.
        whole_calls: whether every chunk begins with the first element of a Philox call.
    """

    def __init__(self, table: Table, chunk: int) -> None:
        chunks = table.chunks(chunk)[:, :2].clone()
        chunks[:, 1] //= chunk
        self.chunks = chunks.to(torch.int32).contiguous().to(table.device)
        self.tensors = table.meta.to(table.device)
        self.whole_calls = all(start % 4 == 0 for start in table.starts)
        self.weights = Upload(len(table.weights), torch.int64, table.device)
        self.grads = Upload(len(table.weights), torch.int64, table.device)

    def prepare_capture(self) -> None:
        """What a capture will need and cannot make."""
        self.weights.prepare()
        self.grads.prepare()
