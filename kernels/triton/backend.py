"""The ``triton`` backend: one launch per call over a table of chunks, on any GPU that Triton supports.

With ``TRITON_INTERPRET=1`` in the environment before triton is imported it runs on CPU tensors, slowly.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..abi import REALS, WIDE, DeviceScalars, Flag, Scalars
from ..clock import Tick
from ..device_table import DeviceTable, Upload, capturing
from ..scalars import Rule
from ..table import Table
from . import clock, kernels
from .memory import Reals
from .sizes import SIZES, Kind, Sizes

DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# As plain integers: operations on IntFlag members take microseconds.
FIRST, LAST, MAXIMIZE, IMPLICIT = map(int, (Flag.FIRST, Flag.LAST, Flag.MAXIMIZE, Flag.IMPLICIT))
NESTEROV, FRESH_VELOCITY, TAKE_PARAM = map(int, (Flag.NESTEROV, Flag.FRESH_VELOCITY, Flag.TAKE_PARAM))
STOCHASTIC_ROUNDING, WARM_START, NOISE = map(int, (Flag.STOCHASTIC_ROUNDING, Flag.WARM_START, Flag.NOISE))
ABSORB_GAMMA, CARRY_INNER_MOMENTUM = int(Flag.ABSORB_GAMMA), int(Flag.CARRY_INNER_MOMENTUM)
PULL, AVERAGE = int(Flag.PULL), int(Flag.AVERAGE)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch for a rule: ``kernel[grid](**arguments, **options)``."""

    rule: str
    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]


def signed(word: int) -> int:
    """A 32-bit word as an int32: Triton's type of an integer argument depends on its size."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def reals_of(scalars: Scalars) -> Any:
    """The scalars as arguments of a launch."""
    return Reals(*(getattr(scalars, name) for name in REALS))


def device_scalars(scalars: Scalars) -> array[int]:
    """The bytes of ``DeviceScalars``, but for the flags and what selects the noise, which are arguments."""
    both = DeviceScalars(wide=scalars)
    for name in (*REALS, *WIDE):
        setattr(both.narrow, name, getattr(scalars, name))
    return array("q", bytes(both))


class Shape(NamedTuple):
    """What selects the kernel for a call of a rule."""

    flags: int  # of abi.py; of a ticked call those that do not depend on the clock
    weight_decay: bool
    momentum: bool
    inner_momentum: bool
    scaled: bool
    ticked: bool

    def constants(self, rule: str, noise: bool, dtype: torch.dtype) -> dict[str, Any]:
        """The constants of ``kernels.update`` that say what to do; ``dtype`` is the weights'."""

        def on(flag: int) -> bool:
            return self.flags & flag != 0

        return {
            "RULE": rule,
            "TICKED": self.ticked,
            "FIRST": on(FIRST),
            "LAST": on(LAST),
            "SCALED": self.scaled,
            "MAXIMIZE": on(MAXIMIZE),
            "WEIGHT_DECAY": self.weight_decay,
            "NESTEROV": (self.momentum or self.inner_momentum) and on(NESTEROV),
            "IMPLICIT": on(IMPLICIT),
            "NOISE": noise,
            "FRESH_VELOCITY": self.inner_momentum and on(FRESH_VELOCITY),
            "STOCHASTIC_ROUNDING": on(STOCHASTIC_ROUNDING) and dtype == torch.bfloat16,
            "WARM_START": on(WARM_START),
            "TAKE_PARAM": on(TAKE_PARAM),
            "PULL": on(PULL),
            "AVERAGE": on(AVERAGE),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change from one call of a shape to the next."""

    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def start(launch: Launch, device: torch.device) -> None:
    """Launch it. A new kernel cannot be launched during a capture, since CUDA forbids loading it then.

    Raises:
        RuntimeError: it would have to be compiled during a capture.
    """
    if not capturing(device):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)
        return

    def refuse(*, fn: Any, **_: Any) -> bool:
        if fn.jit_function is not launch.kernel:  # another thread's
            return False
        raise RuntimeError(
            f"Triton has no {launch.rule} kernel yet for the options, dtypes and scaler of the step() "
            "that is being captured, and cannot load one in a capture: run one step() with the same settings before it"
        )

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = refuse  # called before anything is compiled
        launch.kernel[launch.grid](**launch.arguments, **launch.options)


class TritonUpdate:
    """A rule on the tensors of one table, with a plan for each shape of call so far."""

    def __init__(self, sizes: Mapping[Kind, Sizes], rule: Rule, table: Table, buffers: dict[str, Tensor]) -> None:
        self._sizes, self._rule, self._table, self._buffers = sizes, rule, table, buffers
        in_memory = table.dtype == torch.float64 or rule.counts
        self._scalars = Upload(ctypes.sizeof(DeviceScalars) // 8, torch.int64, table.device) if in_memory else None
        self._plans: dict[Shape, Plan] = {}
        kinds = [(rule.name, table.dtype.itemsize, noise) for noise in (False, True)]
        chunks = {sizes[kind].block * sizes[kind].passes for kind in kinds if kind in sizes}
        self._tables = {chunk: DeviceTable(table, chunk) for chunk in chunks} if table.length else {}
        self._grads = Upload(len(table.weights), torch.int64, table.device)

    def _plan(self, shape: Shape) -> Plan:
        known = self._plans.get(shape)
        if known is not None:
            return known
        table, rule, buffers = self._table, self._rule, self._buffers
        noise = shape.flags & NOISE != 0 if False in rule.draws else True
        size = self._sizes[rule.name, table.dtype.itemsize, noise]
        tables = self._tables[size.block * size.passes]
        needs_momentum = shape.momentum and (shape.ticked or shape.flags & LAST)
        arguments = shape.constants(rule.name, noise, table.dtype) | {
            "chunks": tables.chunks,
            "tensors": tables.tensors,
            "x": buffers["x"],
            "y": buffers.get("y"),
            "acc": buffers.get(rule.acc),
            "m": buffers["momentum_buffer"] if needs_momentum else None,
            "v": buffers[rule.velocity] if shape.inner_momentum or rule.counts else None,
            "q": buffers.get("exp_avg_sq"),
            "missed": buffers.get("missed"),
            "P": DTYPES[table.dtype],
            "BLOCK": size.block,
            "PASSES": size.passes,
            "PER_THREAD": size.per_thread,
        }
        # Fused multiply-adds would round once where the reference rounds twice.
        options = {"num_warps": size.warps, "enable_fp_fusion": False}
        self._plans[shape] = plan = Plan((len(tables.chunks),), arguments, options)
        return plan

    def launch(self, scalars: Scalars, addresses: array[int]) -> Launch:
        """What ``run`` launches; the tests compile it ahead of time for GPUs that this machine lacks."""
        shape = Shape(
            scalars.flags,
            scalars.weight_decay != 0,
            scalars.momentum != 0,
            scalars.inner_momentum != 0,
            scalars.inv_scale != 1,
            ticked=False,
        )
        plan = self._plan(shape)
        arguments = plan.arguments | {
            "grads": self._grads(addresses),
            "scalars": reals_of(scalars) if self._scalars is None else self._scalars(device_scalars(scalars)),
            "key0": signed(scalars.key0),
            "key1": signed(scalars.key1),
            "step": signed(scalars.step),
        }
        return Launch(self._rule.name, kernels.update, plan.grid, arguments, plan.options)

    def launch_ticked(self, tick: Tick, addresses: array[int]) -> Launch:
        """What ``run_ticked`` launches."""
        hyper = tick.hyper
        flags = hyper.flags & ~(ABSORB_GAMMA | CARRY_INNER_MOMENTUM)
        if not hyper.flags & CARRY_INNER_MOMENTUM:
            flags |= FRESH_VELOCITY
        if hyper.temperature != 0:
            flags |= NOISE
        if ("alpha", tick.rule.acc) in tick.rule.optional and hyper.alpha != 0:
            flags |= AVERAGE
        shape = Shape(
            flags,
            hyper.weight_decay != 0,
            hyper.momentum != 0,
            hyper.inner_momentum != 0,
            tick.grad_scale is not None,
            ticked=True,
        )
        plan = self._plan(shape)
        arguments = plan.arguments | {
            "grads": self._grads(addresses),
            "scalars": tick.clock.scalars,
            "key0": 0,
            "key1": 0,
            "step": 0,
        }
        return Launch(self._rule.name, kernels.update, plan.grid, arguments, plan.options)

    def run(self, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
        """One update of every weight of the table, in place: see ``Update.run`` in ``__init__.py``."""
        device = self._table.device
        if self._tables:
            with on_device(device):
                start(self.launch(scalars, addresses), device)

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        device = self._table.device
        if self._tables:
            with on_device(device):
                start(self.launch_ticked(tick, addresses), device)


class Triton:
    """Triton kernels on GPU tensors.

    Args:
        sizes: how much one program does; default those of ``sizes.py``.
    """

    name = "triton"
    capturable = True

    def __init__(self, sizes: Mapping[Kind, Sizes] = SIZES) -> None:
        self._sizes = sizes

    def bind(self, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool = False) -> TritonUpdate:
        """Prepare what stays the same from call to call: see ``Backend.bind`` in ``__init__.py``."""
        with on_device(table.device):
            return TritonUpdate(self._sizes, rule, table, buffers)

    def launch_tick(self, tick: Tick) -> Launch:
        """What ``tick`` launches."""
        hyper = tick.hyper
        reals = struct.pack(f"<{len(clock.DOUBLES)}d", *(getattr(hyper, name) for name in clock.DOUBLES))
        arguments = {
            "clock": tick.clock.words,
            "scalars": tick.clock.scalars,
            "lr": tick.lr,
            "inner_lr": tick.inner_lr,
            "grad_scale": tick.grad_scale,
            "found_inf": tick.found_inf,
            "inner_steps": hyper.inner_steps,
            **dict(zip(clock.HYPER_WORDS, struct.unpack(f"<{len(clock.HYPER_WORDS)}i", reals))),
            "HYPER_FLAGS": hyper.flags,
        }
        return Launch(
            tick.rule.name, clock.TICKS[tick.rule.name], (1,), arguments, {"num_warps": 1, "enable_fp_fusion": False}
        )

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call on the device, and advance its clock there."""
        device = tick.clock.words.device
        with on_device(device):
            start(self.launch_tick(tick), device)
