"""The clock of a captured step in Triton: ``scalars.py`` and ``Tick.on_host`` with the same names and the same order of
operations.

One program derives the scalars of the next call and advances the clock. Float64 throughout, except the noise's scale.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..abi import REALS, DeviceScalars, Flag, NarrowScalars, Scalars
from ..clock import WORDS
from .memory import NARROW, Reals
from .update import power

# DeviceScalars.wide, in words of 4 bytes.
FLAGS, KEY0 = tl.constexpr(Scalars.flags.offset // 4), tl.constexpr(Scalars.key0.offset // 4)
KEY1, STEP = tl.constexpr(Scalars.key1.offset // 4), tl.constexpr(Scalars.step.offset // 4)
# DeviceScalars.narrow has the same four words.
NARROW_FLAGS = tl.constexpr((DeviceScalars.narrow.offset + NarrowScalars.flags.offset) // 4)
COUNT = tl.constexpr(len(REALS))
# Of both, abi.WIDE, in words of 8 bytes.
WIDE = tl.constexpr(Scalars.wide_rate.offset // 8)
NARROW_WIDE = tl.constexpr((DeviceScalars.narrow.offset + NarrowScalars.wide_rate.offset) // 8)

FIRST_FLAG, LAST_FLAG = tl.constexpr(int(Flag.FIRST)), tl.constexpr(int(Flag.LAST))
NOISE_FLAG, SKIP_FLAG = tl.constexpr(int(Flag.NOISE)), tl.constexpr(int(Flag.SKIP))
FRESH_VELOCITY_FLAG, TAKE_PARAM_FLAG = tl.constexpr(int(Flag.FRESH_VELOCITY)), tl.constexpr(int(Flag.TAKE_PARAM))
PULL_FLAG, AVERAGE_FLAG = tl.constexpr(int(Flag.PULL)), tl.constexpr(int(Flag.AVERAGE))

# ClockMemory.words.
AT_STEP, AT_PHASE = tl.constexpr(WORDS["step"]), tl.constexpr(WORDS["phase"])
AT_CYCLE_STEPS, AT_FRESH = tl.constexpr(WORDS["cycle_steps"]), tl.constexpr(WORDS["fresh"])
AT_OUTER_STEP_HAPPENED = tl.constexpr(WORDS["outer_step_happened"])
AT_SEED, AT_REPLICA = tl.constexpr(WORDS["seed"]), tl.constexpr(WORDS["replica"])
AT_GAMMA, AT_CYCLE_GAMMA = tl.constexpr(WORDS["gamma"]), tl.constexpr(WORDS["cycle_gamma"])


@triton.jit
def flag(condition, FLAG: tl.constexpr):
    """The flag where the condition holds, else 0."""
    return tl.where(condition, FLAG, 0)


@triton.jit
def float64(low, high):
    """The float64 of these bits: as an argument it would be a float32."""
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def noise_scale(value):
    """The float32 square root of a float32."""
    return tl.sqrt_rn(value).to(tl.float64)


class Hyper(NamedTuple):
    """The float64 fields of ``abi.Hyper``."""

    keep: Any
    momentum: Any
    weight_decay: Any
    alpha: Any
    temperature: Any
    inner_momentum: Any
    beta1: Any
    beta2: Any
    epsilon: Any


@triton.jit
def entropy_sgd(h, gamma, lr, inner_lr, inv_scale, ABSORB: tl.constexpr):
    """Section 6.1."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(
        inner_lr,
        one / gamma,
        inner_lr / gamma,
        one + inner_lr / gamma,
        h.alpha,
        one - h.alpha,
        0.0,
        h.weight_decay,
        h.inner_momentum,
        noise_scale(inner_lr.to(tl.float32) * h.temperature.to(tl.float32)),
        lr if ABSORB else lr / gamma,
        1.0 if ABSORB else one / gamma,
        lr,
        h.momentum,
        inv_scale,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )


@triton.jit
def hj(h, gamma, lr, inv_scale):
    """Section 6.2."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(
        0.0,
        0.0,
        0.0,
        0.0,
        h.alpha,
        one - h.alpha,
        gamma,
        h.weight_decay,
        0.0,
        0.0,
        lr,
        1.0,
        lr,
        h.momentum,
        inv_scale,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )


@triton.jit
def heat(h, next_gamma, lr, cycle_steps, inv_scale):
    """Section 6.3, eq. 26. The noise is that of the next gradient."""
    one = tl.full((), 1.0, tl.float64)
    steps = cycle_steps.to(tl.float64)
    return Reals(
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        h.weight_decay,
        0.0,
        noise_scale(next_gamma.to(tl.float32)),
        lr / steps,
        one / steps,
        lr,
        h.momentum,
        inv_scale,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )


@triton.jit
def outer(h, lr, inv_scale):
    """The outer loop around another optimizer."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(
        0.0,
        0.0,
        0.0,
        0.0,
        h.alpha,
        one - h.alpha,
        0.0,
        h.weight_decay,
        0.0,
        0.0,
        one - lr,
        1.0,
        lr,
        h.momentum,
        inv_scale,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )


@triton.jit
def entropy_adamw(h, gamma, lr, inner_lr, step, inv_scale):
    """AdamW inside the two loops."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(
        inner_lr,
        one / gamma,
        0.0,
        0.0,
        h.alpha,
        one - h.alpha,
        0.0,
        h.weight_decay,
        0.0,
        noise_scale(inner_lr.to(tl.float32) * h.temperature.to(tl.float32)),
        one - lr,
        1.0,
        lr,
        h.momentum,
        inv_scale,
        h.beta1,
        one - h.beta1,
        h.beta2,
        one - h.beta2,
        h.epsilon,
        one - inner_lr * h.weight_decay,
        inner_lr / (one - power(h.beta1, step + 1)),
        one / tl.sqrt(one - power(h.beta2, step + 1)),
    )


@triton.jit
def store_words(words, flags, key0, key1, step):
    """The four words that end ``Scalars`` and ``NarrowScalars``."""
    tl.store(words, flags)
    tl.store(words + 1, key0)
    tl.store(words + 2, key1)
    tl.store(words + 3, step)


@triton.jit
def store_wide(wide, h, inner_rate, step):
    """``abi.WIDE``."""
    tl.store(wide, inner_rate)
    tl.store(wide + 1, h.beta1)
    tl.store(wide + 2, h.beta2)
    tl.store(wide + 3, (step + 1).to(tl.float64))


@triton.jit
def advance(
    clock,
    scalars,
    h,
    lr,
    inner_lr,
    grad_scale,
    inner_steps,
    flags,
    RULE: tl.constexpr,
    ABSORB: tl.constexpr,
    CARRY: tl.constexpr,
):
    """``tick`` without an overflow."""
    gammas = clock.to(tl.pointer_type(tl.float64))
    step, phase, fresh = tl.load(clock + AT_STEP), tl.load(clock + AT_PHASE), tl.load(clock + AT_FRESH) != 0
    begins = phase == 0
    cycle_steps = tl.where(begins, inner_steps, tl.load(clock + AT_CYCLE_STEPS))
    group_gamma = tl.load(gammas + AT_GAMMA)
    gamma = tl.where(begins, group_gamma, tl.load(gammas + AT_CYCLE_GAMMA))
    seed, replica = tl.load(clock + AT_SEED), tl.load(clock + AT_REPLICA)
    first, last = fresh | begins, phase + 1 >= cycle_steps
    scoped_gamma = group_gamma * h.keep
    rate = tl.load(lr).to(tl.float64)
    inv_scale = 1.0 if grad_scale is None else unscale(tl.load(grad_scale))
    flags = flags | flag(first, FIRST_FLAG) | flag(last, LAST_FLAG)
    ahead = 0
    inner_rate = 0.0 if inner_lr is None else tl.load(inner_lr).to(tl.float64)
    if RULE == "entropy_sgd":
        reals = entropy_sgd(h, gamma, rate, inner_rate, inv_scale, ABSORB)
        if not CARRY:
            flags = flags | flag(first, FRESH_VELOCITY_FLAG)
    elif RULE == "hj":
        reals = hj(h, gamma, rate, inv_scale)
    elif RULE == "outer":
        reals = outer(h, rate, inv_scale)
        flags = flags | flag(h.alpha != 0, AVERAGE_FLAG)
    elif RULE == "entropy_adamw":
        reals = entropy_adamw(h, gamma, rate, inner_rate, step, inv_scale)
        flags = flags | flag(reals.inv_gamma != 0, PULL_FLAG) | flag(h.alpha != 0, AVERAGE_FLAG)
    else:
        reals = heat(h, tl.where(last, scoped_gamma, gamma), rate, cycle_steps, inv_scale)
        flags = flags | flag(fresh, TAKE_PARAM_FLAG)
        ahead = 1
    if RULE != "hj" and RULE != "outer":
        flags = flags | flag(reals.noise_scale != 0, NOISE_FLAG)
    for k in tl.static_range(COUNT):
        tl.store(scalars.to(tl.pointer_type(tl.float64)) + k, tl.cast(reals[k], tl.float64))
        tl.store(scalars.to(tl.pointer_type(tl.float32)) + NARROW + k, tl.cast(reals[k], tl.float32))
    wide = scalars.to(tl.pointer_type(tl.float64))
    store_wide(wide + WIDE, h, inner_rate, step)
    store_wide(wide + NARROW_WIDE, h, inner_rate, step)
    words = scalars.to(tl.pointer_type(tl.int32))
    key0, key1, at_step = seed.to(tl.int32), ((seed >> 32) ^ replica).to(tl.int32), (step + ahead).to(tl.int32)
    store_words(words + FLAGS, flags, key0, key1, at_step)
    store_words(words + NARROW_FLAGS, flags, key0, key1, at_step)
    tl.store(gammas + AT_GAMMA, tl.where(last, scoped_gamma, group_gamma))
    tl.store(gammas + AT_CYCLE_GAMMA, gamma)
    tl.store(clock + AT_STEP, step + 1)
    tl.store(clock + AT_PHASE, tl.where(last, 0, phase + 1))
    tl.store(clock + AT_CYCLE_STEPS, cycle_steps)
    tl.store(clock + AT_FRESH, 0)
    tl.store(clock + AT_OUTER_STEP_HAPPENED, last.to(tl.int64))


@triton.jit
def unscale(scale):
    """What the gradients of a loss multiplied by ``scale`` are multiplied by: a float32."""
    return (1.0 / scale.to(tl.float64)).to(tl.float32).to(tl.float64)


# The bits of the float64 hyper-parameters, as int32: low word, high word.
HYPER_WORDS = [f"{name}_{half}" for name in Hyper._fields for half in ("low", "high")]


# An address that is no multiple of 16 or a word that is 1 must not make another kernel: a capture cannot compile one.
@triton.jit(
    do_not_specialize=["inner_steps", "flags", *HYPER_WORDS],
    do_not_specialize_on_alignment=["lr", "inner_lr", "grad_scale", "found_inf"],
)
def tick(
    clock,
    scalars,
    lr,
    inner_lr,
    grad_scale,
    found_inf,
    inner_steps,
    flags,
    keep_low,
    keep_high,
    momentum_low,
    momentum_high,
    weight_decay_low,
    weight_decay_high,
    alpha_low,
    alpha_high,
    temperature_low,
    temperature_high,
    inner_momentum_low,
    inner_momentum_high,
    beta1_low,
    beta1_high,
    beta2_low,
    beta2_high,
    epsilon_low,
    epsilon_high,
    RULE: tl.constexpr,
    ABSORB: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Derives the scalars of the next call and advances the clock; with infinities in the gradients neither.

    ``clock`` and ``scalars`` are those of ``ClockMemory``. ``lr`` and ``inner_lr`` point to float32 or float64;
    ``grad_scale`` and ``found_inf`` are None without a scaler.
    """
    overflow = False if found_inf is None else tl.load(found_inf) != 0
    if overflow:
        words = scalars.to(tl.pointer_type(tl.int32))
        tl.store(words + FLAGS, SKIP_FLAG)
        tl.store(words + NARROW_FLAGS, SKIP_FLAG)
        tl.store(clock + AT_OUTER_STEP_HAPPENED, 0)
    else:
        h = Hyper(
            float64(keep_low, keep_high),
            float64(momentum_low, momentum_high),
            float64(weight_decay_low, weight_decay_high),
            float64(alpha_low, alpha_high),
            float64(temperature_low, temperature_high),
            float64(inner_momentum_low, inner_momentum_high),
            float64(beta1_low, beta1_high),
            float64(beta2_low, beta2_high),
            float64(epsilon_low, epsilon_high),
        )
        advance(clock, scalars, h, lr, inner_lr, grad_scale, inner_steps, flags, RULE, ABSORB, CARRY)
