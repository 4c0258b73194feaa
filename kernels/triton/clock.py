"""The clock of a captured step in Triton: one program derives the scalars of the next call and advances the clock.

What a rule derives is compiled from its function in ``scalars.py``; the rest is ``Tick.on_host``, in its order. Float64
throughout, except the noise's scale.
"""

from collections import namedtuple
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import scalars as derivation
from ..abi import REALS, WIDE, DeviceScalars, Flag, NarrowScalars, Scalars
from ..clock import WORDS
from .memory import NARROW
from .update import power

# DeviceScalars.wide, in words of 4 bytes; its narrow part has the same four words.
FLAGS, KEY0 = tl.constexpr(Scalars.flags.offset // 4), tl.constexpr(Scalars.key0.offset // 4)
KEY1, STEP = tl.constexpr(Scalars.key1.offset // 4), tl.constexpr(Scalars.step.offset // 4)
NARROW_FLAGS = tl.constexpr((DeviceScalars.narrow.offset + NarrowScalars.flags.offset) // 4)
COUNT, WIDE_COUNT = tl.constexpr(len(REALS)), tl.constexpr(len(WIDE))
AT_LR, AT_MOMENTUM = tl.constexpr(REALS.index("lr")), tl.constexpr(REALS.index("momentum"))
AT_WEIGHT_DECAY, AT_INV_SCALE = tl.constexpr(REALS.index("weight_decay")), tl.constexpr(REALS.index("inv_scale"))
# abi.WIDE in both parts, in words of 8 bytes.
AT_WIDE = tl.constexpr(Scalars.wide_rate.offset // 8)
AT_NARROW_WIDE = tl.constexpr((DeviceScalars.narrow.offset + NarrowScalars.wide_rate.offset) // 8)

FIRST_FLAG, LAST_FLAG = tl.constexpr(int(Flag.FIRST)), tl.constexpr(int(Flag.LAST))
NOISE_FLAG, SKIP_FLAG = tl.constexpr(int(Flag.NOISE)), tl.constexpr(int(Flag.SKIP))
TAKE_PARAM_FLAG, PULL_FLAG = tl.constexpr(int(Flag.TAKE_PARAM)), tl.constexpr(int(Flag.PULL))
STATIC_MASK = tl.constexpr(derivation.STATIC_MASK)

# Indices into ClockMemory.words.
AT_STEP, AT_PHASE = tl.constexpr(WORDS["step"]), tl.constexpr(WORDS["phase"])
AT_CYCLE_STEPS, AT_FRESH = tl.constexpr(WORDS["cycle_steps"]), tl.constexpr(WORDS["fresh"])
AT_OUTER_STEP_HAPPENED = tl.constexpr(WORDS["outer_step_happened"])
AT_SEED, AT_REPLICA = tl.constexpr(WORDS["seed"]), tl.constexpr(WORDS["replica"])
AT_GAMMA, AT_CYCLE_GAMMA = tl.constexpr(WORDS["gamma"]), tl.constexpr(WORDS["cycle_gamma"])


class Hyper(NamedTuple):
    """The float64 fields of ``abi.Hyper``, and its flags, which are constants."""

    keep: Any
    momentum: Any
    weight_decay: Any
    alpha: Any
    temperature: Any
    inner_momentum: Any
    beta1: Any
    beta2: Any
    epsilon: Any
    flags: Any


class CycleState(NamedTuple):
    """``scalars.CycleState``; ``cycle_steps`` is a float64."""

    lr: Any
    inner_lr: Any
    gamma: Any
    next_gamma: Any
    step: Any
    cycle_steps: Any
    first: Any
    last: Any
    fresh: Any


# What a rule derives, in place of ``Scalars``.
NAMES, DEFAULTS = (*REALS, *WIDE, "flags"), (*[0.0] * len(REALS + WIDE), 0)
Derived: Any = namedtuple("Derived", NAMES, defaults=DEFAULTS)  # type: ignore[misc]


@triton.jit
def noise_scale(a, b=1.0):
    """The float32 square root of the float32 product."""
    return tl.sqrt_rn(tl.cast(a, tl.float32) * tl.cast(b, tl.float32)).to(tl.float64)


@triton.jit
def bias_correction(rate, beta1, beta2, count):
    """``scalars.bias_correction``."""
    one = tl.full((), 1.0, tl.float64)
    return rate / (one - power(beta1, count)), one / tl.sqrt(one - power(beta2, count))


@triton.jit
def flag(condition, FLAG: tl.constexpr):
    """The flag where the condition holds, else 0."""
    return tl.where(condition, FLAG, 0)


@triton.jit
def float64(low, high):
    """The float64 with these bits: a float passed as an argument would become a float32."""
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def unscale(scale):
    """The factor that unscales the gradients of a loss multiplied by ``scale``: a float32."""
    return (1.0 / scale.to(tl.float64)).to(tl.float32).to(tl.float64)


@triton.jit
def store_words(words, flags, key0, key1, step):
    """The four words that end ``Scalars`` and ``NarrowScalars``."""
    tl.store(words, flags)
    tl.store(words + 1, key0)
    tl.store(words + 2, key1)
    tl.store(words + 3, step)


@triton.jit
def store(scalars, s, h, lr, inv_scale, seed, replica, step, flags):
    """Both parts of ``DeviceScalars``: what the rule derives, and what is the same for all, as ``Rule.scalars``."""
    wide, narrow = scalars.to(tl.pointer_type(tl.float64)), scalars.to(tl.pointer_type(tl.float32)) + NARROW
    for k in tl.static_range(COUNT):
        value = tl.cast(s[k], tl.float64)
        if k == AT_LR:
            value = tl.cast(lr, tl.float64)
        elif k == AT_MOMENTUM:
            value = h.momentum
        elif k == AT_WEIGHT_DECAY:
            value = h.weight_decay
        elif k == AT_INV_SCALE:
            value = tl.cast(inv_scale, tl.float64)
        tl.store(wide + k, value)
        tl.store(narrow + k, value.to(tl.float32))
    for k in tl.static_range(WIDE_COUNT):
        value = tl.cast(s[COUNT + k], tl.float64)
        tl.store(wide + AT_WIDE + k, value)
        tl.store(wide + AT_NARROW_WIDE + k, value)
    words = scalars.to(tl.pointer_type(tl.int32))
    key0, key1 = seed.to(tl.int32), ((seed >> 32) ^ replica).to(tl.int32)
    store_words(words + FLAGS, flags, key0, key1, step.to(tl.int32))
    store_words(words + NARROW_FLAGS, flags, key0, key1, step.to(tl.int32))


# Of the rule: ``kernel_of`` replaces both.
derive: Any = None
AHEAD = tl.constexpr(0)


def advance(clock, scalars, h, lr, inner_lr, grad_scale, inner_steps):
    """``tick`` without an overflow."""
    gammas = clock.to(tl.pointer_type(tl.float64))
    step, phase, fresh = tl.load(clock + AT_STEP), tl.load(clock + AT_PHASE), tl.load(clock + AT_FRESH) != 0
    begins = phase == 0
    cycle_steps = tl.where(begins, inner_steps, tl.load(clock + AT_CYCLE_STEPS))
    group_gamma = tl.load(gammas + AT_GAMMA)
    gamma = tl.where(begins, group_gamma, tl.load(gammas + AT_CYCLE_GAMMA))
    first, last = fresh | begins, phase + 1 >= cycle_steps
    scoped_gamma = group_gamma * h.keep
    rate = tl.load(lr).to(tl.float64)
    inner_rate = tl.full((), 0.0, tl.float64) if inner_lr is None else tl.load(inner_lr).to(tl.float64)
    inv_scale = 1.0 if grad_scale is None else unscale(tl.load(grad_scale))
    s = derive(
        h,
        CycleState(
            rate,
            inner_rate,
            gamma,
            tl.where(last, scoped_gamma, gamma),
            step,
            cycle_steps.to(tl.float64),
            first,
            last,
            fresh,
        ),
    )
    flags = flag(first, FIRST_FLAG) | flag(last, LAST_FLAG) | flag(s.noise_scale != 0, NOISE_FLAG)
    flags = flags | s.flags | (STATIC_MASK & h.flags)
    store(scalars, s, h, rate, inv_scale, tl.load(clock + AT_SEED), tl.load(clock + AT_REPLICA), step + AHEAD, flags)
    tl.store(gammas + AT_GAMMA, tl.where(last, scoped_gamma, group_gamma))
    tl.store(gammas + AT_CYCLE_GAMMA, gamma)
    tl.store(clock + AT_STEP, step + 1)
    tl.store(clock + AT_PHASE, tl.where(last, 0, phase + 1))
    tl.store(clock + AT_CYCLE_STEPS, cycle_steps)
    tl.store(clock + AT_FRESH, 0)
    tl.store(clock + AT_OUTER_STEP_HAPPENED, last.to(tl.int64))


# The bits of the float64 hyper-parameters, as int32: low word, high word.
DOUBLES = Hyper._fields[:-1]
HYPER_WORDS = [f"{name}_{half}" for name in DOUBLES for half in ("low", "high")]


def tick(
    clock,
    scalars,
    lr,
    inner_lr,
    grad_scale,
    found_inf,
    inner_steps,
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
    HYPER_FLAGS: tl.constexpr,
):
    """Derive the scalars of the next call and advance the clock; with infinities in the gradients do neither.

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
        advance(
            clock,
            scalars,
            Hyper(
                float64(keep_low, keep_high),
                float64(momentum_low, momentum_high),
                float64(weight_decay_low, weight_decay_high),
                float64(alpha_low, alpha_high),
                float64(temperature_low, temperature_high),
                float64(inner_momentum_low, inner_momentum_high),
                float64(beta1_low, beta1_high),
                float64(beta2_low, beta2_high),
                float64(epsilon_low, epsilon_high),
                HYPER_FLAGS,  # a constant only in an argument
            ),
            lr,
            inner_lr,
            grad_scale,
            inner_steps,
        )


def with_globals(function: Callable[..., Any], **names: Any) -> Any:
    """A copy of the function in which these names replace the globals of its module."""
    code, everything = function.__code__, {**function.__globals__, **names}
    seeing = FunctionType(code, everything, function.__name__, function.__defaults__)
    seeing.__annotations__ = function.__annotations__  # which parameters are constants
    return seeing


def kernel_of(rule: derivation.Rule) -> Any:
    """``tick`` with what the rule derives, compiled from ``scalars.py``."""
    constant = int if triton.knobs.runtime.interpret else tl.constexpr  # the interpreter runs it as Python
    flags = {name: constant(getattr(derivation, name)) for name in FLAGS_DERIVED}
    ours: dict[str, Any] = {
        "tl": tl,
        "Hyper": Hyper,
        "CycleState": CycleState,
        "Scalars": Derived,
        "noise_scale": noise_scale,
        "bias_correction": bias_correction,
    }
    derive = triton.jit(with_globals(rule.derive, **ours, **flags))
    bound = triton.jit(with_globals(advance, derive=derive, AHEAD=tl.constexpr(rule.ahead)))
    # An unaligned address or a word that is 1 must not specialise another kernel: a capture cannot compile one.
    return triton.jit(
        with_globals(tick, advance=bound),
        do_not_specialize=["inner_steps", *HYPER_WORDS],
        do_not_specialize_on_alignment=["lr", "inner_lr", "grad_scale", "found_inf"],
    )


# The flags that rules read and set.
FLAGS_DERIVED = ("ABSORB_GAMMA", "CARRY_INNER_MOMENTUM", "FRESH_VELOCITY", "TAKE_PARAM", "PULL", "AVERAGE")
TICKS = {rule.name: kernel_of(rule) for rule in derivation.RULES.values()}
