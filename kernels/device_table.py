"""What kernels on a GPU read about a ``Table``, on its device."""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .table import Table

# The last number of a chunk holds the tensor's index in its upper 32 bits, and in its lower ones LEADS * end + begin,
# where begin is less than LEADS.
LEADS, TENSOR_SHIFT = 8, 32


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one if it is not: streams, events and launches are the current device's."""
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
    """Numbers on a device, copied there only when they change. Call it with the device current: ``guard``.

    The source is pageable memory, which the driver copies before the call returns. A graph cannot capture such a copy:
    during a capture, the numbers get a separate buffer, and are passed as parameters of torch's kernels.

    Args:
        size: how many numbers.
        dtype: int64 or float64.
        device: where they go.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._values: array[Any] | None = None
        self._copy = torch.zeros(max(size, 1), dtype=dtype, device=device)
        self._captured: list[Tensor] = []

    def __call__(self, values: array[Any]) -> Tensor:
        """The numbers on the device."""
        if capturing(self._copy.device):
            place = torch.zeros_like(self._copy)
            torch._foreach_add_(place.unbind(), values.tolist())
            self._captured.append(place)  # the graph writes to it each time that it runs
            return place
        if self._values is None or values != self._values:
            self._values = None  # until the copy is under way
            self._copy.copy_(torch.frombuffer(values, dtype=self._copy.dtype), non_blocking=True)
            self._values = values[:]
        return self._copy


class DeviceTable:
    """A ``Table`` on its device. Create it with the device current: ``guard``.

    The copies are complete when the constructor returns, so that any stream may use the tables; like other tensors they
    must outlive the work on streams other than the one that was current here.

    Args:
        table: the table.
        chunk: elements of a chunk, a multiple of ``Table.ALIGN``.

    Attributes:
        chunks: ``table.chunks`` in packs as int64, shape (n, 4): the chunk's element 0 in the weight, in the unsharded
            parameter and in the flat buffers; ``tensor << TENSOR_SHIFT | LEADS * end + begin``.
        tensors: int64, shape (t, 2): address of the weight, noise's parameter index.
        counts: number of chunks of each tensor, int64, on the host.
    """

    def __init__(self, table: Table, chunk: int) -> None:
        tensor, first, start, place, begin, end = table.chunks(chunk, packs=True).unbind(1)
        self.counts = torch.bincount(tensor, minlength=len(table.weights))
        rows = torch.stack((first, start, place, (tensor << TENSOR_SHIFT) + LEADS * end + begin), dim=1)
        self.chunks = rows.to(table.device)
        addresses = torch.frombuffer(table.weight_addresses, dtype=torch.int64)
        indices = torch.tensor(table.indices, dtype=torch.int64, device="cpu")
        self.tensors = torch.stack((addresses, indices), dim=1).to(table.device)
