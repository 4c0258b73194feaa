"""From hyper-parameters and a clock to the scalars of one call.

A step derives them here on the host, a captured step on the device: ``csrc/clock.h`` repeats these functions for CUDA,
and Triton compiles them from this file (``triton/clock.py``), which is why they write constants out instead of naming
them. Everything is computed in float64 in the order written, except the scale of the noise: the float32 root of a
float32 product.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

from .abi import Flag, Hyper, Scalars

MASK32 = 0xFFFFFFFF
# As plain integers: operations on IntFlag members take microseconds.
FIRST, LAST, NOISE, ABSORB_GAMMA = map(int, (Flag.FIRST, Flag.LAST, Flag.NOISE, Flag.ABSORB_GAMMA))
FRESH_VELOCITY, TAKE_PARAM = int(Flag.FRESH_VELOCITY), int(Flag.TAKE_PARAM)
PULL, AVERAGE = int(Flag.PULL), int(Flag.AVERAGE)
CARRY_INNER_MOMENTUM = int(Flag.CARRY_INNER_MOMENTUM)


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return ctypes.c_float(value).value


def noise_scale(*factors: float) -> float:
    """The float32 square root of the float32 product of the factors."""
    product = 1.0
    for factor in factors:
        product = float32(product * float32(factor))
    return float32(math.sqrt(product))


@dataclass(slots=True)
class CycleState:
    """Where a group stands in its cycle when a gradient arrives.

    Attributes:
        lr: η.
        inner_lr: η′, 0 where the rule has none.
        gamma: γ of this cycle.
        next_gamma: γ after the call; it differs only if the call is the last of its cycle.
        step: completed, unskipped calls.
        phase: gradients taken in this cycle.
        cycle_steps: L of this cycle.
        fresh: whether x is what the parameters hold.
        seed: of the noise, 64 bits.
        replica: of the noise, 32 bits.
        inv_scale: 1 / the loss's scale, a float32.
    """

    lr: float
    inner_lr: float
    gamma: float
    next_gamma: float
    step: int
    phase: int
    cycle_steps: int
    fresh: bool
    seed: int
    replica: int = 0
    inv_scale: float = 1.0

    @property
    def first(self) -> bool:
        """Whether the call begins a cycle; a group that joined in mid-cycle begins its own."""
        return self.fresh or self.phase == 0

    @property
    def last(self) -> bool:
        """Whether the call makes the outer update."""
        return self.phase + 1 >= self.cycle_steps


def entropy_sgd(h: Hyper, cycle: CycleState) -> Scalars:
    """Section 6.1."""
    return Scalars(
        inner_lr=cycle.inner_lr,
        inv_gamma=1 / cycle.gamma,
        pull=cycle.inner_lr / cycle.gamma,
        denominator=1 + cycle.inner_lr / cycle.gamma,
        alpha=h.alpha,
        one_minus_alpha=1 - h.alpha,
        inner_momentum=h.inner_momentum,
        noise_scale=noise_scale(cycle.inner_lr, h.temperature),
        outer_step=cycle.lr if h.flags & ABSORB_GAMMA else cycle.lr / cycle.gamma,
        outer_scale=1.0 if h.flags & ABSORB_GAMMA else 1 / cycle.gamma,
        flags=FRESH_VELOCITY if cycle.first and not h.flags & CARRY_INNER_MOMENTUM else 0,
    )


def hj(h: Hyper, cycle: CycleState) -> Scalars:
    """Section 6.2."""
    return Scalars(
        alpha=h.alpha, one_minus_alpha=1 - h.alpha, gamma=cycle.gamma, outer_step=cycle.lr, outer_scale=1.0, flags=0
    )


def heat(h: Hyper, cycle: CycleState) -> Scalars:
    """Section 6.3, eq. 26. The noise is that of the next gradient."""
    return Scalars(
        noise_scale=noise_scale(cycle.next_gamma if cycle.last else cycle.gamma),
        outer_step=cycle.lr / cycle.cycle_steps,
        outer_scale=1 / cycle.cycle_steps,
        flags=TAKE_PARAM if cycle.fresh else 0,
    )


def power(base: float, exponent: int) -> float:
    """base^exponent by multiplications alone, whose result is the same on every machine; that of ``pow`` is not."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def bias_correction(rate: float, beta1: float, beta2: float, count: int) -> tuple[float, float]:
    """AdamW's ``step_size`` and ``inv_root_bias2`` for a weight that has had ``count`` gradients, with this one."""
    return rate / (1 - power(beta1, count)), 1 / math.sqrt(1 - power(beta2, count))


def entropy_adamw(h: Hyper, cycle: CycleState) -> Scalars:
    """AdamW inside, Entropy-SGD's two loops around it: Chaudhari et al. 2017, "Entropy-SGD", and arXiv 2510.15830."""
    step_size, inv_root_bias2 = bias_correction(cycle.inner_lr, h.beta1, h.beta2, cycle.step + 1)
    inv_gamma = 1 / cycle.gamma
    return Scalars(
        inner_lr=cycle.inner_lr,
        inv_gamma=inv_gamma,
        alpha=h.alpha,
        one_minus_alpha=1 - h.alpha,
        noise_scale=noise_scale(cycle.inner_lr, h.temperature),
        outer_step=1 - cycle.lr,
        outer_scale=1.0,
        beta1=h.beta1,
        one_minus_beta1=1 - h.beta1,
        beta2=h.beta2,
        one_minus_beta2=1 - h.beta2,
        epsilon=h.epsilon,
        decay=1 - cycle.inner_lr * h.weight_decay,
        step_size=step_size,
        inv_root_bias2=inv_root_bias2,
        wide_rate=cycle.inner_lr,
        wide_beta1=h.beta1,
        wide_beta2=h.beta2,
        count=cycle.step + 1,
        flags=(PULL if inv_gamma != 0 else 0) | (AVERAGE if h.alpha != 0 else 0),
    )


def outer(h: Hyper, cycle: CycleState) -> Scalars:
    """The outer loop around another optimizer."""
    return Scalars(
        alpha=h.alpha,
        one_minus_alpha=1 - h.alpha,
        outer_step=1 - cycle.lr,
        outer_scale=1.0,
        flags=AVERAGE if h.alpha != 0 else 0,
    )


def elastic_sgd(h: Hyper, cycle: CycleState) -> Scalars:
    """Eq. 3, on one worker. The outer update is not the kernel's."""
    return Scalars(
        inner_lr=cycle.inner_lr,
        inv_gamma=1 / cycle.gamma,
        pull=cycle.inner_lr / cycle.gamma,
        denominator=1 + cycle.inner_lr / cycle.gamma,
        inner_momentum=h.inner_momentum,
        noise_scale=noise_scale(cycle.inner_lr, h.temperature),
        flags=(FRESH_VELOCITY if cycle.first and not h.flags & CARRY_INNER_MOMENTUM else 0)
        | (TAKE_PARAM if cycle.fresh else 0),
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """An update rule, as the backends and the optimizers see it.

    Attributes:
        name: the name of its function in ``reference.py``, ``triton/rules.py`` and of its header in ``csrc``.
        number: its place in the list of ``csrc/abi.h``.
        acc: the buffer that accumulates over a cycle: z, p or s; "" for none.
        kept: the buffers that it always has, apart from y.
        derive: derives its scalars; ``scalars`` adds those that all rules have.
        ahead: how many steps ahead of its gradient the noise of a call is.
        keeps_y: whether weights of a lower precision than their state need a buffer for the inner point, y.
        optional: hyper-parameters that need a buffer unless they are 0, and its name.
        velocity: the buffer of the inner momentum.
        rates: the hyper-parameters that are η and η′; "" for none.
        draws: whether a call draws noise: the possible values.
        counts: whether it counts the gradients that each weight has had. Its scalars then differ in every call.
    """

    name: str
    number: int
    acc: str
    kept: tuple[str, ...]
    derive: Callable[[Hyper, CycleState], Scalars]
    ahead: int = 0
    keeps_y: bool = False
    optional: tuple[tuple[str, str], ...] = (("momentum", "momentum_buffer"),)
    velocity: str = "inner_momentum_buffer"
    rates: tuple[str, str] = ("lr", "")
    draws: tuple[bool, ...] = (False,)
    counts: bool = False

    def scalars(self, h: Hyper, cycle: CycleState) -> Scalars:
        """The scalars of one call."""
        s = self.derive(h, cycle)
        s.lr, s.momentum, s.weight_decay, s.inv_scale = cycle.lr, h.momentum, h.weight_decay, cycle.inv_scale
        s.flags |= STATIC_MASK & h.flags
        if cycle.first:
            s.flags |= FIRST
        if cycle.last:
            s.flags |= LAST
        if s.noise_scale != 0:
            s.flags |= NOISE
        s.key0, s.key1 = cycle.seed & MASK32, (cycle.seed >> 32 & MASK32) ^ cycle.replica
        s.step = cycle.step + self.ahead & MASK32
        return s


# The bits of Hyper.flags that a call takes over unchanged.
STATIC_MASK = ~(ABSORB_GAMMA | CARRY_INNER_MOMENTUM)

ENTROPY_SGD = Rule(
    "entropy_sgd",
    0,
    "z",
    ("x", "z"),
    entropy_sgd,
    keeps_y=True,
    optional=(("momentum", "momentum_buffer"), ("inner_momentum", "inner_momentum_buffer")),
    rates=("lr", "inner_lr"),
    draws=(False, True),
)
HJ = Rule("hj", 1, "p", ("x", "p"), hj)
HEAT = Rule("heat", 2, "s", ("x", "s"), heat, ahead=1, draws=(True,))
ENTROPY_ADAMW = Rule(
    "entropy_adamw",
    3,
    "z",
    ("x", "exp_avg", "exp_avg_sq", "missed"),
    entropy_adamw,
    keeps_y=True,
    optional=(("momentum", "momentum_buffer"), ("alpha", "z")),
    velocity="exp_avg",
    rates=("outer_lr", "lr"),
    draws=(False, True),
    counts=True,
)
OUTER = Rule("outer", 4, "z", ("x",), outer, optional=(("momentum", "momentum_buffer"), ("alpha", "z")))
ELASTIC_SGD = Rule(
    "elastic_sgd",
    5,
    "",
    ("x",),
    elastic_sgd,
    keeps_y=True,
    optional=(("momentum", "momentum_buffer"), ("inner_momentum", "inner_momentum_buffer")),
    rates=("lr", "inner_lr"),
    draws=(False, True),
)
RULES = {rule.name: rule for rule in (ENTROPY_SGD, HJ, HEAT, ENTROPY_ADAMW, OUTER, ELASTIC_SGD)}
