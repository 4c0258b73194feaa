"""The clock of a captured step in Triton: ``settings.py`` with the same names and the same order of operations.

One program derives the scalars of the next call and advances the clock. Float64 throughout, except the noise's scale.
"""

import triton
import triton.language as tl

from . import native
from .clock import COUNTERS, REALS
from .triton_memory import NARROW, Reals

# Numbers of csrc/call.h, in words of 4 bytes.
FLAGS = tl.constexpr(3 * REALS)
KEY0, KEY1, STEP = tl.constexpr(3 * REALS + 1), tl.constexpr(3 * REALS + 2), tl.constexpr(3 * REALS + 3)
COUNT = tl.constexpr(REALS)

SKIP = tl.constexpr(1 << 13)  # the gradients overflowed: change nothing
FIRST, LAST, NOISE = tl.constexpr(native.FIRST), tl.constexpr(native.LAST), tl.constexpr(native.NOISE)
FRESH_VELOCITY = tl.constexpr(native.FRESH_VELOCITY)
READ_PARAM, TAKE_PARAM = tl.constexpr(native.READ_PARAM), tl.constexpr(native.TAKE_PARAM)

# Clock.words.
AT_STEP, AT_PHASE = tl.constexpr(COUNTERS.index("step")), tl.constexpr(COUNTERS.index("phase"))
AT_CYCLE_STEPS, AT_FRESH = tl.constexpr(COUNTERS.index("cycle_steps")), tl.constexpr(COUNTERS.index("fresh"))
AT_OUTER_STEP_HAPPENED = tl.constexpr(COUNTERS.index("outer_step_happened"))
AT_SEED = tl.constexpr(COUNTERS.index("seed"))
AT_GAMMA, AT_PLACED_GAMMA = tl.constexpr(len(COUNTERS)), tl.constexpr(len(COUNTERS) + 1)
NAN = tl.constexpr(0x7FF8000000000000)


@triton.jit
def flag(condition, FLAG: tl.constexpr):
    return tl.where(condition, FLAG, 0)


@triton.jit
def noise_scale(value):
    """The float32 square root of a float32."""
    return tl.sqrt_rn(value).to(tl.float64)


@triton.jit
def entropy_sgd(s, gamma, lr, inner_lr, inv_scale, ABSORB: tl.constexpr):
    """Section 6.1. ``s``: keep, momentum, weight_decay, alpha, temperature, inner_momentum."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(
        inner_lr,
        one / gamma,
        inner_lr / gamma,
        one + inner_lr / gamma,
        s[3],
        one - s[3],
        0.0,
        s[2],
        s[5],
        noise_scale(inner_lr.to(tl.float32) * s[4].to(tl.float32)),
        lr if ABSORB else lr / gamma,
        1.0 if ABSORB else one / gamma,
        lr,
        s[1],
        inv_scale,
    )


@triton.jit
def hj(s, gamma, lr, inv_scale):
    """Section 6.2."""
    one = tl.full((), 1.0, tl.float64)
    return Reals(0.0, 0.0, 0.0, 0.0, s[3], one - s[3], gamma, s[2], 0.0, 0.0, lr, 1.0, lr, s[1], inv_scale)


@triton.jit
def heat(s, next_gamma, lr, cycle_steps, inv_scale):
    """Section 6.3, eq. 26."""
    one = tl.full((), 1.0, tl.float64)
    steps = cycle_steps.to(tl.float64)
    scale = noise_scale(next_gamma.to(tl.float32))
    return Reals(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, s[2], 0.0, scale, lr / steps, one / steps, lr, s[1], inv_scale)


@triton.jit
def advance(
    clock,
    numbers,
    settings,
    lr,
    inner_lr,
    grad_scale,
    inner_steps,
    flags,
    missing,
    RULE: tl.constexpr,
    ABSORB: tl.constexpr,
    CARRY: tl.constexpr,
):
    gammas = clock.to(tl.pointer_type(tl.float64))
    words = numbers.to(tl.pointer_type(tl.int32))
    s = (
        tl.load(settings),
        tl.load(settings + 1),
        tl.load(settings + 2),
        tl.load(settings + 3),
        tl.load(settings + 4),
        tl.load(settings + 5),
    )
    step, phase, fresh = tl.load(clock + AT_STEP), tl.load(clock + AT_PHASE), tl.load(clock + AT_FRESH) != 0
    cycle_steps = tl.where(phase == 0, inner_steps, tl.load(clock + AT_CYCLE_STEPS))
    gamma, placed_gamma = tl.load(gammas + AT_GAMMA), tl.load(gammas + AT_PLACED_GAMMA)
    seed = tl.load(clock + AT_SEED)
    first, last = fresh | (phase == 0), phase + 1 >= cycle_steps
    next_gamma = tl.where(last, gamma * s[0], gamma)
    rate = tl.load(lr).to(tl.float64)
    inv_scale = 1.0 if grad_scale is None else unscale(tl.load(grad_scale))
    flags = flags | flag(first, FIRST) | flag(last, LAST)
    ahead = 0
    if RULE == "entropy_sgd":
        reals = entropy_sgd(s, gamma, rate, tl.load(inner_lr).to(tl.float64), inv_scale, ABSORB)
        if not CARRY:
            flags = flags | flag(first, FRESH_VELOCITY)
    elif RULE == "hj":
        reals = hj(s, gamma, rate, inv_scale)
        flags = flags | flag((s[2] != 0) & (gamma != placed_gamma), READ_PARAM)
    else:
        reals = heat(s, next_gamma, rate, cycle_steps, inv_scale)
        flags = flags | flag(fresh, TAKE_PARAM)
        ahead = 1
    if RULE != "hj":
        flags = flags | flag(reals.noise_scale != 0, NOISE)
    for k in tl.static_range(COUNT):
        tl.store(numbers.to(tl.pointer_type(tl.float64)) + k, tl.cast(reals[k], tl.float64))
        tl.store(numbers.to(tl.pointer_type(tl.float32)) + NARROW + k, tl.cast(reals[k], tl.float32))
    tl.store(words + FLAGS, flags)
    tl.store(words + KEY0, seed.to(tl.int32))
    tl.store(words + KEY1, (seed >> 32).to(tl.int32))
    tl.store(words + STEP, (step + ahead).to(tl.int32))
    known = first | (gamma == placed_gamma) | (missing == 0)
    tl.store(clock + AT_PLACED_GAMMA, tl.where(known, gamma.to(tl.int64, bitcast=True), NAN))
    tl.store(gammas + AT_GAMMA, next_gamma)
    tl.store(clock + AT_STEP, step + 1)
    tl.store(clock + AT_PHASE, tl.where(last, 0, phase + 1))
    tl.store(clock + AT_CYCLE_STEPS, cycle_steps)
    tl.store(clock + AT_FRESH, 0)
    tl.store(clock + AT_OUTER_STEP_HAPPENED, last.to(tl.int64))


@triton.jit
def unscale(scale):
    """What the gradients of a loss multiplied by ``scale`` are multiplied by: a float32."""
    return (1.0 / scale.to(tl.float64)).to(tl.float32).to(tl.float64)


# An address that is no multiple of 16 or a flag that is 1 must not make another kernel: a capture cannot compile one.
@triton.jit(
    do_not_specialize=["inner_steps", "flags", "missing"],
    do_not_specialize_on_alignment=["lr", "inner_lr", "grad_scale", "found_inf"],
)
def tick(
    clock,
    numbers,
    settings,
    lr,
    inner_lr,
    grad_scale,
    found_inf,
    inner_steps,
    flags,
    missing,
    RULE: tl.constexpr,
    ABSORB: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Derives the scalars of the next call and advances the clock; with infinities in the gradients neither.

    ``settings``: the float64 hyper-parameters of ``native.encode_tick``. ``lr`` and ``inner_lr`` point to float32 or
    float64; ``grad_scale`` and ``found_inf`` are None without a scaler.
    """
    overflow = False if found_inf is None else tl.load(found_inf) != 0
    if overflow:
        tl.store(numbers.to(tl.pointer_type(tl.int32)) + FLAGS, SKIP)
        tl.store(clock + AT_OUTER_STEP_HAPPENED, 0)
    else:
        advance(clock, numbers, settings, lr, inner_lr, grad_scale, inner_steps, flags, missing, RULE, ABSORB, CARRY)
