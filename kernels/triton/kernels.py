"""The kernel that Triton launches: one program finds its chunk and runs the rule on it.

The scalars of a call are arguments. Those of a ticked call (a step that a CUDA graph may replay) are in
``DeviceScalars``, written by ``clock.py``, and the phase is a branch.
"""

from typing import Any

import triton
import triton.language as tl

from .clock import (
    AT_WIDE,
    FIRST_FLAG,
    FLAGS,
    KEY0,
    KEY1,
    LAST_FLAG,
    NOISE_FLAG,
    PULL_FLAG,
    SKIP_FLAG,
    STEP,
    TAKE_PARAM_FLAG,
)
from .memory import Operands, block_of, locate, read_reals
from .noise import Draw
from .rules import run_rule
from .update import Options


@triton.jit
def decide(
    RULE: tl.constexpr,
    block,
    ptrs,
    c,
    o,
    draw,
    wide,
    flags,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The rule with the options in ``flags``: some occur only in a first call, some only in a later one."""
    run_rule(
        RULE,
        block,
        ptrs,
        c,
        Options(
            o.scaled,
            o.maximize,
            o.weight_decay,
            o.nesterov,
            o.implicit,
            (flags & NOISE_FLAG) != 0 if o.noise else False,
            o.fresh_velocity and FIRST,
            o.stochastic_rounding,
            o.warm_start,
            (flags & TAKE_PARAM_FLAG) != 0 if FIRST else False,
            (flags & PULL_FLAG) != 0,
            o.average,
        ),
        draw,
        wide,
        BLOCK,
        FIRST,
        LAST,
    )


@triton.jit
def run_ticked(RULE: tl.constexpr, block, ptrs, c, o, draw, wide, flags, BLOCK: tl.constexpr):
    """The rule in the phase given by ``flags``."""
    if (flags & FIRST_FLAG) != 0:
        if (flags & LAST_FLAG) != 0:
            decide(RULE, block, ptrs, c, o, draw, wide, flags, BLOCK, True, True)
        else:
            decide(RULE, block, ptrs, c, o, draw, wide, flags, BLOCK, True, False)
    elif (flags & LAST_FLAG) != 0:
        decide(RULE, block, ptrs, c, o, draw, wide, flags, BLOCK, False, True)
    else:
        decide(RULE, block, ptrs, c, o, draw, wide, flags, BLOCK, False, False)


@triton.jit
def run_block(
    RULE: tl.constexpr,
    chunk,
    base,
    ptrs,
    o,
    scalars,
    draw,
    flags,
    BLOCK: tl.constexpr,
    TICKED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The rule on the block of the chunk that begins at element ``base``; ``ptrs`` point to its operands."""
    T: tl.constexpr = ptrs.x.dtype.element_ty
    # Arguments of a launch are float32. AdamW needs float64 to correct the bias of weights that missed gradients.
    IN_MEMORY: tl.constexpr = T.is_fp64() or RULE == "entropy_adamw"
    block = block_of(chunk, base, BLOCK)
    if TICKED or IN_MEMORY:
        c = read_reals(scalars, T)
        wide = scalars.to(tl.pointer_type(tl.float64)) + AT_WIDE
        if TICKED:
            run_ticked(RULE, block, ptrs, c, o, draw, wide, flags, BLOCK)
        else:
            run_rule(RULE, block, ptrs, c, o, draw, wide, BLOCK, FIRST, LAST)
    else:
        run_rule(RULE, block, ptrs, scalars, o, draw, None, BLOCK, FIRST, LAST)


@triton.jit
def run_chunk(
    RULE: tl.constexpr,
    chunk,
    ptrs,
    o,
    scalars,
    draw,
    flags,
    BLOCK: tl.constexpr,
    PASSES: tl.constexpr,
    TICKED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The rule on all blocks of the chunk; ``ptrs`` point to the flat buffers."""
    # Blocks one after the other: with stages, loads would go through shared memory.
    for k in tl.range(0, PASSES, num_stages=1):
        base = k * BLOCK
        place = chunk.offset + base
        run_block(
            RULE,
            chunk,
            base,
            # Made here: assigned to a name, a tuple would lose its None and its constants.
            Operands(
                chunk.w + base,
                chunk.g + base,
                ptrs.x + place,
                None if ptrs.y is None else ptrs.y + place,
                None if ptrs.acc is None else ptrs.acc + place,
                None if ptrs.m is None else ptrs.m + place,
                None if ptrs.v is None else ptrs.v + place,
                None if ptrs.q is None else ptrs.q + place,
            ),
            o,
            scalars,
            draw,
            flags,
            BLOCK,
            TICKED,
            FIRST,
            LAST,
        )


def kernel_name(launch: Any) -> str:
    """What profilers show."""
    constants = launch.constants
    return str(constants["RULE"]) + ("_ticked" if constants["TICKED"] else "")


# What changes from call to call must not specialise another kernel: neither a word that is 1 or a multiple of 16, nor
# the alignment of the table of gradients, of which a captured step has its own.
@triton.jit(do_not_specialize=["key0", "key1", "step"], do_not_specialize_on_alignment=["grads"], repr=kernel_name)
def update(
    chunks,
    tensors,
    grads,
    x,
    y,
    acc,
    m,
    v,
    q,
    missed,
    scalars,
    key0,
    key1,
    step,
    RULE: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PASSES: tl.constexpr,
    PER_THREAD: tl.constexpr,
    TICKED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SCALED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    IMPLICIT: tl.constexpr,
    NOISE: tl.constexpr,
    FRESH_VELOCITY: tl.constexpr,
    STOCHASTIC_ROUNDING: tl.constexpr,
    WARM_START: tl.constexpr,
    TAKE_PARAM: tl.constexpr,
    PULL: tl.constexpr,
    AVERAGE: tl.constexpr,
):
    """One call of a rule on every weight of a table; ``acc`` is z, p or s.

    ``scalars`` are ``Reals``, or point to ``DeviceScalars``. If TICKED these are the clock's, and the keys, the step,
    FIRST, LAST and TAKE_PARAM are ignored.
    """
    chunk = locate(chunks, tensors, grads, missed, P)
    flags, work = 0, True
    if TICKED:
        words = scalars.to(tl.pointer_type(tl.int32))
        flags = tl.load(words + FLAGS)
        key0, key1, step = tl.load(words + KEY0), tl.load(words + KEY1), tl.load(words + STEP)
        work = (flags & SKIP_FLAG) == 0
    if work:
        run_chunk(
            RULE,
            chunk,
            Operands(x=x, y=y, acc=acc, m=m, v=v, q=q),
            Options(
                SCALED,
                MAXIMIZE,
                WEIGHT_DECAY,
                NESTEROV,
                IMPLICIT,
                NOISE,
                FRESH_VELOCITY,
                STOCHASTIC_ROUNDING,
                WARM_START,
                TAKE_PARAM,
                PULL,
                AVERAGE,
            ),
            scalars,
            Draw(key0, key1, step, PER_THREAD),
            flags,
            BLOCK,
            PASSES,
            TICKED,
            FIRST,
            LAST,
        )
