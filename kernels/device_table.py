"""What kernels on a GPU read about a ``Table``, on its device: uploaded once, addresses again when they change."""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .table import Table

# Uploads that may be under way at once. Addresses rarely change, and each copy takes microseconds.
RING = 4

# Of a place in memory, in numbers of 8 bytes: every place begins 128 bytes after the last or more, as torch's own
# allocations would, for Triton compiles another kernel for an address that is no multiple of 16.
PLACE = 16

# Captures that may follow each other with no uncaptured step in between: a cycle unrolled into one graph, say.
SPARES = 32


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, where it is not: streams, events and launches are the current device's."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on that device's current stream."""
    if device.type != "cuda":
        return False
    with guard(device):
        return bool(torch.cuda.is_current_stream_capturing())


class Upload:
    """Numbers on a device, copied there only when they change, from a ring of pinned buffers; each has an event that
    says when it may be written again. To be called with the device current: ``guard``.

    While a graph is captured, they get a place of their own, on the host and on the device, that nothing writes to
    afterwards: the graph repeats the copy each time it runs. Such places are kept in store, because memory cannot be
    pinned in the middle of a capture.

    Args:
        size: how many numbers.
        dtype: int64 or float64.
        device: where they go.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._dtype, self._device = max(size, 1), dtype, device
        self._values: array[Any] | None = None
        ring = RING if device.type != "cpu" else 1
        self._hosts, self._copy = self._hosts_of(ring), self._places(1)[0]
        self._events: list[Any] = [None] * ring
        self._next = 0
        self._spares: list[tuple[Tensor, Tensor]] = []
        self._captured: list[tuple[Tensor, Tensor]] = []

    def _hosts_of(self, count: int) -> Tensor:
        pinned = self._device.type == "cuda"
        return torch.empty((count, self._size), dtype=self._dtype, device="cpu", pin_memory=pinned)

    def _places(self, count: int) -> Tensor:
        room = -(-self._size // PLACE) * PLACE
        return torch.empty((count, room), dtype=self._dtype, device=self._device)[:, : self._size]

    def prepare(self) -> None:
        """Keep places for captures in store."""
        if len(self._spares) < SPARES // 2:
            self._spares += zip(self._hosts_of(SPARES), self._places(SPARES))

    def __call__(self, values: array[Any]) -> Tensor:
        if capturing(self._device):
            return self._capture(values)
        if self._values is None or values != self._values:
            self._values = None  # until the copy is under way
            host, event = self._hosts[self._next], self._events[self._next]
            if event is not None:
                event.synchronize()
            host.copy_(torch.frombuffer(values, dtype=self._dtype))
            self._copy.copy_(host, non_blocking=True)
            if self._device.type != "cpu":
                event = torch.get_device_module(self._device).Event()
                event.record()
                self._events[self._next] = event
            self._next = (self._next + 1) % len(self._events)
            self._values = values[:]
        return self._copy

    def _capture(self, values: array[Any]) -> Tensor:
        if not self._spares:
            raise RuntimeError(
                f"more than {SPARES} captures of step() in a row: run one step() that is not captured in between, so "
                "that memory can be pinned for the next"
            )
        host, place = self._spares.pop()
        self._captured.append((host, place))
        host.copy_(torch.frombuffer(values, dtype=self._dtype))
        place.copy_(host, non_blocking=True)
        return place


class DeviceTable:
    """A ``Table`` on its device. To be made with the device current: ``guard``.

    Args:
        table: the table.
        chunk: elements of a chunk.
        capturable: also make what a capture needs and cannot make.

    Attributes:
        chunks: int32, shape (n, 2): tensor, and which of its pieces of ``chunk`` elements.
        tensors: int64, shape (t, 4): size, offset in the flat buffers, noise's parameter index, global start.
        weights: int64, shape (t,): addresses.
        grads: uploads the gradients' addresses, one a tensor.
        whole_calls: whether every chunk begins with the first element of a Philox call.
    """

    def __init__(self, table: Table, chunk: int, capturable: bool) -> None:
        chunks = table.chunks(chunk)[:, :2].clone()
        chunks[:, 1] //= chunk
        self.chunks = chunks.to(torch.int32).contiguous().to(table.device)
        self.tensors = table.meta.to(table.device)
        self.whole_calls = all(start % 4 == 0 for start in table.starts)
        addresses = torch.frombuffer(table.weight_addresses, dtype=torch.int64).clone()
        self.weights = addresses.to(table.device)
        self.grads = Upload(len(table.weights), torch.int64, table.device)
        if capturable:
            self.grads.prepare()
