"""The ``cuda`` backend: hands addresses and scalars to the CUDA kernels of ``csrc/``, one launch a call."""

from __future__ import annotations

from array import array
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .calls import Call, Table
from .clock import Tick
from .device_table import DeviceTable, guard
from .native import DTYPES, NO_NUMBERS, NO_STREAM, RULES, buffer_addresses, encode, encode_tick, is_fast, static_flags


class Cuda:
    """CUDA kernels on GPU tensors.

    Args:
        module: the compiled module.
        emulated: run the kernels' code on the host, on CPU tensors, thread by thread; for tests.
    """

    name = "cuda"
    capturable = True

    def __init__(self, module: Any, emulated: bool = False) -> None:
        self._module = module
        self._emulated = emulated
        self._tables: WeakKeyDictionary[Table, DeviceTable] = WeakKeyDictionary()
        self._loaded: set[tuple[torch.device, torch.dtype]] = set()

    def _where(self, device: torch.device) -> tuple[int, int, bool]:
        """Device, the current stream's address, and whether to emulate."""
        if self._emulated:
            return 0, 0, True
        index = torch.cuda.current_device() if device.index is None else device.index
        return index, torch._C._cuda_getCurrentRawStream(index), False

    def _table(self, table: Table) -> DeviceTable:
        on_device = self._tables.get(table)
        if on_device is None:
            on_device = self._tables[table] = DeviceTable(table, self._module.chunk)
        return on_device

    def _launch(
        self,
        table: Table,
        addresses: array[int],
        buffers: dict[str, Tensor],
        numbers: tuple[int, list[float], list[int]],
        rule: str,
        ticked: int,
        fast: bool,
    ) -> None:
        if not table.length:
            return
        on_device = self._table(table)
        flags, reals, stream = numbers
        with guard(table.device):
            tables = (on_device.weights, on_device.grads(addresses), on_device.tensors, on_device.chunks)
            self._module.run(
                RULES[rule],
                DTYPES[table.dtype],
                flags,
                reals,
                stream,
                ticked,
                fast,
                [t.data_ptr() for t in tables],
                on_device.chunks.shape[0],
                buffer_addresses(buffers),
                self._where(table.device),
            )

    def run(
        self,
        call: Call,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """One update of every weight of the table, in place: see ``eager.Eager.run``."""
        self._launch(table, addresses, buffers, encode(call), call.rule, 0, is_fast(call))

    def prepare(self, table: Table, capturable: bool) -> None:
        """The table on its device, and what a capture cannot make."""
        if not table.length:
            return
        self._table(table).prepare(capturable)
        of = table.device, table.dtype
        if capturable and of not in self._loaded:
            # CUDA loads a kernel when it is first launched, and in the midst of a capture it may not be able to.
            with guard(table.device):
                self._module.load(DTYPES[table.dtype], self._where(table.device))
            self._loaded.add(of)

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call on the device, and advance its clock there."""
        clock = tick.clock
        device = clock.words.device
        with guard(device):
            where = self._where(device)
            self._module.tick(*encode_tick(tick), clock.words.data_ptr(), clock.numbers.data_ptr(), where)

    def run_ticked(
        self,
        tick: Tick,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        settings = tick.settings
        numbers = static_flags(settings), NO_NUMBERS, NO_STREAM
        ticked = tick.clock.numbers.data_ptr()
        self._launch(table, addresses, buffers, numbers, settings.rule, ticked, is_fast(settings))
