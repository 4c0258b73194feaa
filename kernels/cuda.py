"""The ``cuda`` backend: hands addresses and scalars to the CUDA kernels of ``csrc/``, one launch per 460 tensors."""

from __future__ import annotations

from array import array
from ctypes import addressof
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .abi import DTYPES, CudaLaunch, Scalars, Sources, data_address
from .clock import Tick
from .device_table import DeviceTable, guard
from .scalars import Rule
from .table import Table


class CudaUpdate:
    """A ``CudaLaunch``, complete except for the gradients."""

    __slots__ = ("_address", "_backend", "_device", "_kept", "_launch")

    def __init__(self, backend: Cuda, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool) -> None:
        self._backend, self._device = backend, table.device
        with guard(table.device):
            on_device = DeviceTable(table, backend.module.chunk(DTYPES[table.dtype]))
        # The first chunk of each set of tensors that one launch serves, and the end.
        sets = [0, *(int(n) for n in map(torch.sum, torch.split(on_device.counts, backend.module.tensors)))]
        first_chunks = array("q", accumulate(sets))
        self._kept = buffers, on_device, first_chunks  # the launch has their addresses
        self._launch = launch = CudaLaunch(
            tensors=on_device.tensors.data_ptr(),
            chunks=on_device.chunks.data_ptr(),
            n_chunks=len(on_device.chunks),
            n_tensors=len(table.weights),
            first_chunks=first_chunks.buffer_info()[0],
            device=backend.index(table.device),
            emulated=backend.emulated,
        )
        launch.bind(rule, table.dtype, buffers)
        self._address = addressof(launch)
        if capturable and launch.n_chunks:
            backend.load(table.dtype, table.device)

    def run(self, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
        """One update of every weight of the table, in place: see ``Update.run`` in ``__init__.py``."""
        launch = self._launch
        if launch.n_chunks:
            launch.grads = addresses.buffer_info()[0]
            with guard(self._device):
                self._backend.module.run(self._address, addressof(scalars), self._backend.stream(launch.device))

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        launch = self._launch
        if launch.n_chunks:
            launch.grads = addresses.buffer_info()[0]
            with guard(self._device):
                stream = self._backend.stream(launch.device)
                ticked = tick.clock.scalars.data_ptr()
                self._backend.module.run_ticked(self._address, addressof(tick.hyper), ticked, stream)


class Cuda:
    """CUDA kernels on GPU tensors.

    Args:
        module: the compiled module.
        emulated: run the kernels' code on the host, on CPU tensors, thread by thread; for tests.
    """

    name = "cuda"
    capturable = True

    def __init__(self, module: Any, emulated: bool = False) -> None:
        self.module, self.emulated = module, emulated
        self._loaded: set[tuple[int, torch.dtype]] = set()

    def index(self, device: torch.device) -> int:
        """The GPU's number."""
        if self.emulated:
            return 0
        return torch.cuda.current_device() if device.index is None else device.index

    def stream(self, index: int) -> int:
        """The address of that GPU's current stream."""
        return 0 if self.emulated else torch._C._cuda_getCurrentRawStream(index)

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load the kernels for weights of that type: CUDA loads a kernel when it is first launched, which may fail
        during a capture."""
        index = self.index(device)
        if not self.emulated and (index, dtype) not in self._loaded:
            with guard(device):
                self.module.load(DTYPES[dtype], index)
            self._loaded.add((index, dtype))

    def bind(self, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool = False) -> CudaUpdate:
        """Prepare what stays the same from call to call: see ``Backend.bind`` in ``__init__.py``."""
        return CudaUpdate(self, rule, table, buffers, capturable)

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call on the device, and advance its clock there."""
        clock, lr, inner_lr = tick.clock, tick.lr, tick.inner_lr
        sources = Sources(
            lr=lr.data_ptr(),
            inner_lr=data_address(inner_lr),
            grad_scale=data_address(tick.grad_scale),
            found_inf=data_address(tick.found_inf),
            lr_is_double=lr.dtype == torch.float64,
            inner_lr_is_double=inner_lr is not None and inner_lr.dtype == torch.float64,
        )
        device = clock.words.device
        with guard(device):
            index = self.index(device)
            self.module.tick(
                tick.rule.number,
                addressof(tick.hyper),
                addressof(sources),
                clock.words.data_ptr(),
                clock.scalars.data_ptr(),
                index,
                self.emulated,
                self.stream(index),
            )
