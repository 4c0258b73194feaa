"""The kernel that Triton launches: one program finds its chunk and runs its rule on it.

The scalars of a call are arguments; of a ticked one (a step that a CUDA graph may replay) they lie in
``DeviceScalars``, where ``clock.py`` has put them, and the place in the cycle is a branch.
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
from .noise import Stream
from .rules import run_rule
from .update import Options


@triton.jit
def decide(
    RULE: tl.constexpr, at, p, c, o, stream, wide, flags, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr
):
    """The rule with what ``flags`` say about it: some options only a first call has, some only a later one."""
    run_rule(
        RULE,
        at,
        p,
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
        stream,
        wide,
        BLOCK,
        FIRST,
        LAST,
    )


@triton.jit
def run_ticked(RULE: tl.constexpr, at, p, c, o, stream, wide, flags, BLOCK: tl.constexpr):
    """The rule at the place in the cycle that ``flags`` say."""
    if (flags & FIRST_FLAG) != 0:
        if (flags & LAST_FLAG) != 0:
            decide(RULE, at, p, c, o, stream, wide, flags, BLOCK, True, True)
        else:
            decide(RULE, at, p, c, o, stream, wide, flags, BLOCK, True, False)
    elif (flags & LAST_FLAG) != 0:
        decide(RULE, at, p, c, o, stream, wide, flags, BLOCK, False, True)
    else:
        decide(RULE, at, p, c, o, stream, wide, flags, BLOCK, False, False)


@triton.jit
def run_block(
    RULE: tl.constexpr,
    chunk,
    at,
    p,
    o,
    scalars,
    key0,
    key1,
    step,
    flags,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
    TICKED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The rule on the block of the chunk whose first element is ``at``, and to whose operands ``p`` points."""
    T: tl.constexpr = p.x.dtype.element_ty
    # Arguments of a launch are float32; and AdamW corrects the bias of some weights from what it needs in float64.
    IN_MEMORY: tl.constexpr = T.is_fp64() or RULE == "entropy_adamw"
    block = block_of(chunk, at, BLOCK)
    if TICKED:
        c = read_reals(scalars, T)
        wide = scalars.to(tl.pointer_type(tl.float64)) + AT_WIDE
        run_ticked(RULE, block, p, c, o, Stream(key0, key1, step, PER_THREAD), wide, flags, BLOCK)
    elif IN_MEMORY:
        c = read_reals(scalars, T)
        wide = scalars.to(tl.pointer_type(tl.float64)) + AT_WIDE
        run_rule(RULE, block, p, c, o, Stream(key0, key1, step, PER_THREAD), wide, BLOCK, FIRST, LAST)
    else:
        run_rule(RULE, block, p, scalars, o, Stream(key0, key1, step, PER_THREAD), None, BLOCK, FIRST, LAST)


@triton.jit
def run_chunk(
    RULE: tl.constexpr,
    chunk,
    p,
    o,
    scalars,
    key0,
    key1,
    step,
    flags,
    BLOCK: tl.constexpr,
    PASSES: tl.constexpr,
    PER_THREAD: tl.constexpr,
    TICKED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The rule on all blocks of the chunk; ``p`` points to the flat buffers."""
    # Blocks one after the other: with stages, loads would go through shared memory.
    for k in tl.range(0, PASSES, num_stages=1):
        at = k * BLOCK
        place = chunk.offset + at
        run_block(
            RULE,
            chunk,
            at,
            # Made here: assigned to a name, a tuple would lose its None and its constants.
            Operands(
                chunk.w + at,
                chunk.g + at,
                p.x + place,
                None if p.y is None else p.y + place,
                None if p.acc is None else p.acc + place,
                None if p.m is None else p.m + place,
                None if p.v is None else p.v + place,
                None if p.q is None else p.q + place,
            ),
            o,
            scalars,
            key0,
            key1,
            step,
            flags,
            BLOCK,
            PER_THREAD,
            TICKED,
            FIRST,
            LAST,
        )


def kernel_name(launch: Any) -> str:
    """What profilers show."""
    constants = launch.constants
    return str(constants["RULE"]) + ("_ticked" if constants["TICKED"] else "")


# What changes from one call to the next must not make another kernel: neither a word that is 1 or a multiple of 16, nor
# where the gradients' addresses lie, which a captured step reads at a place of its own.
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

    ``scalars`` are ``Reals``, or point to ``DeviceScalars``; TICKED: those of the clock, and the keys, FIRST, LAST and
    TAKE_PARAM say nothing.
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
            Operands(None, None, x, y, acc, m, v, q),
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
            key0,
            key1,
            step,
            flags,
            BLOCK,
            PASSES,
            PER_THREAD,
            TICKED,
            FIRST,
            LAST,
        )
