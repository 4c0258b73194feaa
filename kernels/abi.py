"""The layout of what Python and the compiled kernels exchange: ``csrc/abi.h`` in Python.

``csrc/abi.h`` exports its own names, values and offsets (``_cpu.abi()``, ``_cuda.abi()``), and
``tests/kernels/test_abi.py`` compares them with these.
"""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .scalars import Rule

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# The type of a weight's state, in which its update is computed.
COMPUTE_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


class Flag(IntFlag):
    """Bits of ``Scalars.flags`` and ``Hyper.flags``."""

    FIRST = 1 << 0  # first call of the cycle
    LAST = 1 << 1  # last call of the cycle: makes the outer update
    MAXIMIZE = 1 << 2
    IMPLICIT = 1 << 3  # implicit coupling
    NESTEROV = 1 << 4  # of the outer and of the inner momentum
    FRESH_VELOCITY = 1 << 5  # the inner momentum starts again in this call
    STOCHASTIC_ROUNDING = 1 << 6
    WARM_START = 1 << 7  # HJ: the first call sets p <- g, undamped
    TAKE_PARAM = 1 << 8  # Heat: x is what the parameter holds, not what the state holds
    NOISE = 1 << 9  # noise_scale is not 0
    SKIP = 1 << 10  # the gradients overflowed: change nothing
    PAST_CACHE = 1 << 11  # CPU: the tensors are larger than the caches
    ABSORB_GAMMA = 1 << 12  # of Hyper only: the outer step is lr, not lr/gamma
    CARRY_INNER_MOMENTUM = 1 << 13  # of Hyper only
    PULL = 1 << 14  # EntropyAdamW: gamma is finite, and x pulls y
    AVERAGE = 1 << 15  # EntropyAdamW: alpha is not 0, and z is not y


REALS = (
    "inner_lr",  # eta'
    "inv_gamma",  # 1/gamma
    "pull",  # eta'/gamma, implicit coupling only
    "denominator",  # 1 + eta'/gamma, implicit coupling only
    "alpha",
    "one_minus_alpha",
    "gamma",
    "weight_decay",
    "inner_momentum",
    "noise_scale",  # a float32; 0: no noise is drawn
    "outer_step",  # the outer update without momentum: x <- x - outer_step f
    "outer_scale",  # with it: m <- momentum m + outer_scale f, and x <- x - lr m
    "lr",
    "momentum",
    "inv_scale",  # the gradient is multiplied by it first: 1 / the loss's scale, a float32
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "epsilon",
    "decay",  # 1 - eta' weight_decay
    "step_size",  # eta' / (1 - beta1^t): AdamW's correction of its bias, for a weight that has had every gradient
    "inv_root_bias2",  # 1 / sqrt(1 - beta2^t)
)

# What the correction is derived from for a weight that has had fewer gradients: float64 in every precision. ``count``
# is t.
WIDE = ("wide_rate", "wide_beta1", "wide_beta2", "count")


class Scalars(ctypes.Structure):
    """The scalars of one call, for all rules: each rule reads those of its equation.

    Every scalar is derived in float64 and rounded once to the type that the kernel computes in (float64 for float64
    weights, float32 for all others).
    """

    _fields_ = [(name, ctypes.c_double) for name in (*REALS, *WIDE)] + [
        ("flags", ctypes.c_uint32),
        ("key0", ctypes.c_uint32),
        ("key1", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
    ]


class NarrowScalars(ctypes.Structure):
    """``Scalars`` rounded to float32, as a captured step keeps them on the device next to the float64 ones."""

    _fields_ = [(name, ctypes.c_float) for name in REALS] + Scalars._fields_[len(REALS) :]


class DeviceScalars(ctypes.Structure):
    """What ``tick`` derives on the device for a captured step."""

    _fields_ = [("wide", Scalars), ("narrow", NarrowScalars)]


class Hyper(ctypes.Structure):
    """The hyper-parameters of a group that stay on the host in a captured step."""

    _fields_ = [
        ("inner_steps", ctypes.c_int64),
        ("keep", ctypes.c_double),  # 1 - scoping
        ("momentum", ctypes.c_double),
        ("weight_decay", ctypes.c_double),
        ("alpha", ctypes.c_double),
        ("temperature", ctypes.c_double),
        ("inner_momentum", ctypes.c_double),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("flags", ctypes.c_uint32),
    ]


class ClockWords(ctypes.Structure):
    """The clock of a captured step, on the device."""

    _fields_ = [
        ("step", ctypes.c_int64),  # completed, unskipped calls
        ("phase", ctypes.c_int64),  # gradients taken in this cycle
        ("cycle_steps", ctypes.c_int64),  # L of this cycle
        ("fresh", ctypes.c_int64),  # x is what the parameters hold
        ("outer_step_happened", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("replica", ctypes.c_int64),
        ("gamma", ctypes.c_double),  # the group's
        ("cycle_gamma", ctypes.c_double),  # of this cycle
    ]


class Sources(ctypes.Structure):
    """Addresses of what a captured step reads on the device, 0 for none."""

    _fields_ = [
        ("lr", ctypes.c_uint64),
        ("inner_lr", ctypes.c_uint64),
        ("grad_scale", ctypes.c_uint64),  # float32
        ("found_inf", ctypes.c_uint64),  # float32
        ("lr_is_double", ctypes.c_int32),  # else float32
        ("inner_lr_is_double", ctypes.c_int32),
    ]


class Launch(ctypes.Structure):
    """What a launch of a compiled module is bound to: addresses of tables and of flat state buffers, 0 for none."""

    _fields_ = [
        ("grads", ctypes.c_uint64),  # their addresses, on the host
        ("tensors", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("n_chunks", ctypes.c_int64),
        ("x", ctypes.c_uint64),
        ("y", ctypes.c_uint64),
        ("acc", ctypes.c_uint64),  # the rule's own: z, p or s
        ("momentum", ctypes.c_uint64),
        ("velocity", ctypes.c_uint64),  # the inner momentum, or AdamW's average of gradients
        ("square", ctypes.c_uint64),  # AdamW's average of their squares
        ("missed", ctypes.c_uint64),  # int64, for each tensor the calls without a gradient; only of rules that count
        ("rule", ctypes.c_uint32),
        ("dtype", ctypes.c_uint32),
    ]

    def bind(self, rule: Rule, dtype: torch.dtype, buffers: dict[str, Tensor]) -> None:
        """Fill in the rule, the weights' type and the buffers."""
        self.rule, self.dtype = rule.number, DTYPES[dtype]
        self.x, self.y, self.acc = (data_address(buffers.get(name)) for name in ("x", "y", rule.acc))
        self.momentum = data_address(buffers.get("momentum_buffer"))
        self.velocity, self.square = data_address(buffers.get(rule.velocity)), data_address(buffers.get("exp_avg_sq"))
        self.missed = data_address(buffers.get("missed"))


class CpuLaunch(Launch):
    """A launch of ``_cpu``, and how its chunks are shared among threads."""

    _fields_ = [
        ("weights", ctypes.c_uint64),  # their addresses
        ("flags", ctypes.c_uint32),  # Flag.PAST_CACHE
        ("instruction_set", ctypes.c_uint32),  # index into _cpu.instruction_sets()
        ("threads", ctypes.c_uint32),
        ("pieces", ctypes.c_uint32),  # of the work for each thread
        ("parallel", ctypes.c_uint64),  # GOMP_parallel, or 0
    ]


class CudaLaunch(Launch):
    """A launch of ``_cuda``; its tables are on the device, except ``first_chunks``."""

    _fields_ = [
        ("n_tensors", ctypes.c_int64),
        ("first_chunks", ctypes.c_uint64),  # of each set of _cuda.tensors tensors, and the end
        ("device", ctypes.c_int32),
        ("emulated", ctypes.c_int32),  # run on the host, thread by thread
    ]


class Expected(ctypes.Structure):
    """What ``_cpu.match`` compares tensors with."""

    _fields_ = [
        ("api", ctypes.c_uint64),  # DLPack's exchange API
        ("layouts", ctypes.c_uint64),  # of each tensor ndim, sizes and strides
        ("count", ctypes.c_int64),
        ("type_code", ctypes.c_int32),
        ("type_bits", ctypes.c_int32),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("sharded", ctypes.c_int32),  # they are DTensors
    ]


def data_address(tensor: Tensor | None) -> int:
    """The address of a tensor's first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
