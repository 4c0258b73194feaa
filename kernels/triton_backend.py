"""The ``triton`` backend: one launch per call over a table of chunks, on any GPU that Triton serves.

With ``TRITON_INTERPRET=1`` in the environment before triton is imported it runs on CPU tensors, slowly.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import native, triton_clock, triton_kernels
from .calls import Call, Table
from .clock import REALS, Clock, Tick
from .device_table import DeviceTable, Upload, capturing
from .native import encode, encode_tick, static_flags
from .settings import EntropySGDSettings
from .triton_memory import Reals
from .triton_sizes import SIZES, Kind, Sizes

DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: ``kernel[grid](**arguments, **options)``."""

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]


def signed(word: int) -> int:
    """A 32-bit word as an int32: Triton's type of an integer argument depends on its size."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


class Shape(NamedTuple):
    """What decides which kernel serves a call."""

    rule: str
    flags: int  # of csrc/call.h; of a ticked call those that do not depend on the moment
    weight_decay: bool
    momentum: bool
    inner_momentum: bool
    scaled: bool
    ticked: bool

    @property
    def noise(self) -> bool:
        return self.rule == "heat" or self.flags & native.NOISE != 0

    def constants(self, dtype: torch.dtype) -> dict[str, Any]:
        """The constants of ``triton_kernels.update`` that say what to do; ``dtype`` is the weights'."""

        def on(flag: int) -> bool:
            return self.flags & flag != 0

        return {
            "RULE": self.rule,
            "TICKED": self.ticked,
            "FIRST": on(native.FIRST),
            "LAST": on(native.LAST),
            "SCALED": self.scaled,
            "MAXIMIZE": on(native.MAXIMIZE),
            "WEIGHT_DECAY": self.weight_decay,
            "NESTEROV": self.momentum and on(native.NESTEROV),
            "IMPLICIT": on(native.IMPLICIT),
            "NOISE": self.noise,
            "FRESH_VELOCITY": self.inner_momentum and on(native.FRESH_VELOCITY),
            "INNER_NESTEROV": self.inner_momentum and on(native.INNER_NESTEROV),
            "STOCHASTIC_ROUNDING": on(native.STOCHASTIC_ROUNDING) and dtype == torch.bfloat16,
            "WARM_START": on(native.WARM_START),
            "READ_PARAM": on(native.READ_PARAM),
            "TAKE_PARAM": on(native.TAKE_PARAM),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change from one call of a shape to the next."""

    on_device: DeviceTable
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]


class Plans:
    """What the kernels read about one table, and the plans for it."""

    def __init__(self, table: Table) -> None:
        self.tables: dict[int, DeviceTable] = {}  # by chunk
        self.scalars = Upload(REALS, torch.float64, table.device) if table.dtype == torch.float64 else None
        self.plans: dict[Shape, Plan] = {}

    def on_device(self, table: Table, block: int) -> DeviceTable:
        if block not in self.tables:
            self.tables[block] = DeviceTable(table, block)
        return self.tables[block]

    def plan(self, shape: Shape, table: Table, sizes: Mapping[Kind, Sizes]) -> Plan:
        known = self.plans.get(shape)
        if known is not None:
            return known
        size = sizes[shape.rule, table.dtype.itemsize, shape.noise]
        on_device = self.on_device(table, size.block)
        arguments = shape.constants(table.dtype) | {
            "chunks": on_device.chunks,
            "tensors": on_device.tensors,
            "P": DTYPES[table.dtype],
            "BLOCK": size.block,
            "PER_THREAD": size.per_thread,
            "WHOLE_CALLS": on_device.whole_calls,
        }
        # Fused multiply-adds would round once where the reference rounds twice.
        options = {"num_warps": size.warps, "enable_fp_fusion": False}
        plan = Plan(on_device, (on_device.chunks.shape[0],), arguments, options)
        self.plans[shape] = plan
        return plan


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def start(launch: Launch, device: torch.device) -> None:
    """Launch it. While a graph is captured a kernel that is new cannot be: CUDA forbids to load it then.

    Raises:
        RuntimeError: it would have to be compiled in a capture.
    """
    if not capturing(device):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)
        return

    def refuse(*, fn: Any, **_: Any) -> bool:
        if fn.jit_function is not launch.kernel:  # another thread's
            return False
        raise RuntimeError(
            f"Triton has no {launch.arguments['RULE']} kernel yet for the options, dtypes and scaler of the step() "
            "that is being captured, and cannot load one in a capture: run one step() with the same settings before it"
        )

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = refuse  # called before anything is compiled
        launch.kernel[launch.grid](**launch.arguments, **launch.options)


class Triton:
    """Triton kernels on GPU tensors.

    Args:
        sizes: how much one program does; default those of ``triton_sizes``.
    """

    name = "triton"
    capturable = True

    def __init__(self, sizes: Mapping[Kind, Sizes] = SIZES) -> None:
        self._sizes = sizes
        self._plans: WeakKeyDictionary[Table, Plans] = WeakKeyDictionary()
        self._settings: WeakKeyDictionary[Clock, Upload] = WeakKeyDictionary()

    def _plans_of(self, table: Table) -> Plans:
        plans = self._plans.get(table)
        if plans is None:
            plans = self._plans[table] = Plans(table)
        return plans

    def _launch(
        self,
        shape: Shape,
        scalars: Reals | Tensor,
        stream: Sequence[int],
        table: Table,
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> Launch:
        plans = self._plans_of(table)
        plan = plans.plan(shape, table, self._sizes)
        if isinstance(scalars, Reals) and plans.scalars is not None:
            scalars = plans.scalars(array("d", scalars))
        needs_momentum = shape.momentum and (shape.ticked or shape.flags & native.LAST)
        key0, key1, step = stream
        arguments = plan.arguments | {
            "weights": plan.on_device.weights,
            "grads": plan.on_device.grads(addresses),
            "x": buffers["x"],
            "y": buffers.get("y"),
            "a": buffers.get("z", buffers.get("p", buffers.get("s"))),
            "m": buffers["momentum_buffer"] if needs_momentum else None,
            "v": buffers["inner_momentum_buffer"] if shape.inner_momentum else None,
            "scalars": scalars,
            "key0": signed(key0),
            "key1": signed(key1),
            "step": signed(step),
        }
        return Launch(triton_kernels.update, plan.grid, arguments, plan.options)

    def launch(self, call: Call, table: Table, addresses: array[int], buffers: dict[str, Tensor]) -> Launch:
        """What ``run`` launches; the tests compile it ahead of time for GPUs that are not there."""
        flags, reals, stream = encode(call)
        scalars = Reals(*map(float, reals))  # a Python int, of gamma=1 say, would make another kernel
        shape = Shape(
            call.rule,
            flags,
            call.weight_decay != 0,
            call.outer.momentum != 0,
            scalars.inner_momentum != 0,
            call.inv_scale != 1,
            ticked=False,
        )
        return self._launch(shape, scalars, stream, table, addresses, buffers)

    def run(
        self,
        call: Call,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """One update of every weight of the table, in place: see ``eager.Eager.run``."""
        if table.length:
            with on_device(table.device):
                start(self.launch(call, table, addresses, buffers), table.device)

    def prepare(self, table: Table, capturable: bool) -> None:
        """The table on its device, and what a capture cannot make."""
        blocks = {size.block for (_, itemsize, _), size in self._sizes.items() if itemsize == table.dtype.itemsize}
        for block in blocks if table.length else ():
            self._plans_of(table).on_device(table, block).prepare(capturable)

    def launch_tick(self, tick: Tick) -> Launch:
        """What ``tick`` launches."""
        clock, (_, settings, _) = tick.clock, encode_tick(tick)
        inner_steps, reals, flags, absorb_gamma, carry_inner_momentum, missing = settings
        device = clock.words.device
        upload = self._settings.get(clock)
        if upload is None:
            if capturing(device):
                raise RuntimeError("run one step() before capturing one: Triton's kernels are compiled in it")
            upload = self._settings[clock] = Upload(len(reals), torch.float64, device)
        if not capturing(device):
            upload.prepare()
        arguments = {
            "clock": clock.words,
            "numbers": clock.numbers,
            "settings": upload(array("d", reals)),
            "lr": tick.lr,
            "inner_lr": tick.inner_lr,
            "grad_scale": tick.grad_scale,
            "found_inf": tick.found_inf,
            "inner_steps": inner_steps,
            "flags": flags,
            "missing": int(missing),
            "RULE": tick.settings.rule,
            "ABSORB": absorb_gamma,
            "CARRY": carry_inner_momentum,
        }
        return Launch(triton_clock.tick, (1,), arguments, {"num_warps": 1, "enable_fp_fusion": False})

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call on the device, and advance its clock there."""
        device = tick.clock.words.device
        with on_device(device):
            start(self.launch_tick(tick), device)

    def launch_ticked(self, tick: Tick, table: Table, addresses: array[int], buffers: dict[str, Tensor]) -> Launch:
        """What ``run_ticked`` launches."""
        settings = tick.settings
        inner_momentum, fresh = False, 0
        if isinstance(settings, EntropySGDSettings):
            inner_momentum = settings.inner_momentum != 0
            fresh = 0 if settings.carry_inner_momentum else native.FRESH_VELOCITY
        shape = Shape(
            settings.rule,
            static_flags(settings) | fresh,
            settings.weight_decay != 0,
            settings.momentum != 0,
            inner_momentum,
            tick.grad_scale is not None,
            ticked=True,
        )
        return self._launch(shape, tick.clock.numbers, native.NO_STREAM, table, addresses, buffers)

    def run_ticked(
        self,
        tick: Tick,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        if table.length:
            with on_device(table.device):
                start(self.launch_ticked(tick, table, addresses, buffers), table.device)
