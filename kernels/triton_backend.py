"""The ``triton`` backend: one launch per call over a table of chunks, on any GPU that Triton serves.

With ``TRITON_INTERPRET=1`` in the environment before triton is imported it runs on CPU tensors, slowly.
"""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton.language as tl
from torch import Tensor

from . import triton_rules
from .calls import Call, EntropySGDCall, HeatCall, HJCall, Table
from .noise import Stream
from .triton_memory import Reals

DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

# Elements of one program, and consecutive ones of a thread. 16 bytes of a thread's weights are one access; float64
# takes two, since fewer than 4 elements would part the normals of one Philox call.
BLOCK = 1024
PER_THREAD = {torch.float64: 4, torch.float32: 4, torch.bfloat16: 8, torch.float16: 8}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: ``kernel[grid](**arguments, **options)``."""

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]


class Upload:
    """Numbers on a device, copied there only when they change."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values: array[Any] | None = None
        self._copy: Tensor | None = None

    def __call__(self, values: array[Any]) -> Tensor:
        if self._copy is None or values != self._values:
            self._values = values[:]
            host = torch.tensor(values, dtype=torch.float64 if values.typecode == "d" else torch.int64)
            if self._device.type != "cpu":
                host = host.pin_memory()  # a fresh one each time: the last copy may still be on its way
            self._copy = host.to(self._device, non_blocking=True)
        return self._copy


class DeviceTable:
    """What the kernels read about a ``Table``, on its device."""

    def __init__(self, table: Table) -> None:
        chunks = table.chunks(BLOCK)[:, :2].clone()
        chunks[:, 1] //= BLOCK
        self.chunks = chunks.to(torch.int32).to(table.device)
        self.tensors = table.meta.to(table.device)
        self.whole_calls = all(start % 4 == 0 for start in table.starts)
        self.weights = Upload(table.device)
        self.grads = Upload(table.device)
        self.scalars = Upload(table.device)


def signed(word: int) -> int:
    """A 32-bit word as an int32: Triton's type of an integer argument depends on its size."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def noise_arguments(stream: Stream, table: Table, whole_calls: bool) -> dict[str, Any]:
    key0, key1 = stream.key
    return {
        "key0": signed(key0),
        "key1": signed(key1),
        "step": signed(stream.step),
        "PER_THREAD": PER_THREAD[table.dtype],
        "WHOLE_CALLS": whole_calls,
    }


class Triton:
    """Triton kernels on GPU tensors."""

    name = "triton"

    def __init__(self) -> None:
        self._tables: WeakKeyDictionary[Table, DeviceTable] = WeakKeyDictionary()

    def launch(self, call: Call, table: Table, addresses: array[int], buffers: dict[str, Tensor]) -> Launch:
        """What ``run`` launches; the tests compile it ahead of time for GPUs that are not there."""
        on_device = self._tables.get(table)
        if on_device is None:
            on_device = self._tables[table] = DeviceTable(table)
        outer = call.outer
        scalars = Reals(*(getattr(call, name, getattr(outer, name, 0.0)) for name in Reals._fields))
        wide = table.compute_dtype == torch.float64
        has_momentum = call.last and outer.momentum != 0
        arguments: dict[str, Any] = {
            "chunks": on_device.chunks,
            "tensors": on_device.tensors,
            "weights": on_device.weights(table.weight_addresses),
            "grads": on_device.grads(addresses),
            "scalars": on_device.scalars(array("d", scalars)) if wide else scalars,
            "x": buffers["x"],
            "m": buffers["momentum_buffer"] if has_momentum else None,
            "P": DTYPES[table.dtype],
            "BLOCK": BLOCK,
            "FIRST": call.first,
            "LAST": call.last,
            "MAXIMIZE": call.maximize,
            "WEIGHT_DECAY": call.weight_decay != 0,
            "NESTEROV": has_momentum and outer.nesterov,
        }
        if isinstance(call, EntropySGDCall):
            has_velocity = call.inner_momentum != 0
            arguments |= {
                "y": buffers.get("y"),
                "z": buffers["z"],
                "v": buffers["inner_momentum_buffer"] if has_velocity else None,
                "IMPLICIT": call.implicit,
                "NOISE": call.noise_scale != 0,
                "FRESH_VELOCITY": has_velocity and call.fresh_velocity,
                "INNER_NESTEROV": has_velocity and call.inner_nesterov,
                "STOCHASTIC_ROUNDING": call.stochastic_rounding and table.dtype == torch.bfloat16,
            }
            arguments |= noise_arguments(call.stream, table, on_device.whole_calls)
        elif isinstance(call, HJCall):
            arguments |= {"p": buffers["p"], "WARM_START": call.warm_start, "READ_PARAM": call.read_param}
        else:
            assert isinstance(call, HeatCall)
            arguments |= {"s": buffers["s"], "TAKE_PARAM": call.take_param}
            arguments |= noise_arguments(call.stream, table, on_device.whole_calls)
        # Fused multiply-adds would round once where the reference rounds twice.
        options = {"num_warps": BLOCK // (32 * PER_THREAD[table.dtype]), "enable_fp_fusion": False}
        return Launch(getattr(triton_rules, call.rule), (on_device.chunks.shape[0],), arguments, options)

    def run(
        self,
        call: Call,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """One update of every weight of the table, in place: see ``eager.Eager.run``."""
        if not table.length:
            return
        # Triton launches on the current device.
        on_device: AbstractContextManager[Any] = (
            nullcontext() if table.device.type == "cpu" else torch.accelerator.device_index(table.device.index)
        )
        with on_device:
            launch = self.launch(call, table, addresses, buffers)
            launch.kernel[launch.grid](**launch.arguments, **launch.options)
