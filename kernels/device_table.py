"""What kernels on a GPU read about a ``Table``, on its device."""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .table import Table

# ``bounds`` of a chunk is LEADS * end + lead; every lead is less.
LEADS = 8


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
    """Numbers on a device, copied there only when they change. To be called with the device current: ``guard``.

    The source is pageable memory, which the driver copies before the call returns. A graph cannot capture such a copy:
    while one is captured, the numbers get a place of their own, and travel there as parameters of torch's kernels.

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
        """Where the numbers are on the device."""
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
    """A ``Table`` on its device. To be made with the device current: ``guard``.

    A weight's ``lead`` is the number of elements by which its start in the unsharded parameter exceeds a whole pack of
    16 bytes (float64: of 4 elements). Chunks count from ``lead`` elements before the weight, so that packs consist of
    whole Philox calls and their state is aligned.

    The copies are over when the constructor returns, so that any stream may use the tables; like other tensors they
    must outlive the work on streams other than the one that was current here.

    Args:
        table: the table.
        chunk: elements of a chunk, a multiple of ``Table.ALIGN``.

    Attributes:
        chunks: int32, shape (n, 4): tensor; number of the chunk in it; place of the chunk in the flat buffers, in units
            of ``Table.ALIGN`` elements; ``LEADS * end + lead``. The weight's elements in the chunk end before ``end``;
            those of the first chunk begin at ``lead``, those of others at 0.
        tensors: int64, shape (t, 3): address of the weight less its lead, noise's parameter index, global start less
            the lead.
        counts: number of chunks of each tensor, int64, on the host.
    """

    def __init__(self, table: Table, chunk: int) -> None:
        sizes, offsets, indices, starts = table.meta.unbind(1)
        lead = table.leads
        self.counts = (sizes + lead + chunk - 1) // chunk * (sizes > 0)
        tensor = torch.repeat_interleave(self.counts)
        number = torch.arange(len(tensor), device="cpu") - torch.repeat_interleave(
            self.counts.cumsum(0) - self.counts, self.counts
        )
        first = number * chunk
        end = torch.clamp((sizes + lead)[tensor] - first, max=chunk)
        place = ((offsets - lead)[tensor] + first) // table.ALIGN
        rows = torch.stack((tensor, number, place, LEADS * end + lead[tensor]), dim=1)
        self.chunks = rows.to(torch.int32).contiguous().to(table.device)
        addresses = torch.frombuffer(table.weight_addresses, dtype=torch.int64) - lead * table.dtype.itemsize
        self.tensors = torch.stack((addresses, indices, starts - lead), dim=1).to(table.device)
