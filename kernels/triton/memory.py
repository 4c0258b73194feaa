"""Where one program of a Triton kernel finds its chunk, and how it reads and writes a block of it.

A block that is full and has a gradient moves its state in 16-byte accesses without a mask, and weight and gradient as
well, each if its own address is a multiple of 16: gradients often are views into the buckets of a collective, and must
not slow the weights down. A mask whose end is not known at compile time would cut every access down to one element, so
each choice is a branch, once around the loads and once around the stores.
"""

from collections import namedtuple
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import device_table
from ..abi import REALS, DeviceScalars

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


# Where the float32 scalars of ``DeviceScalars`` begin, in words of 4 bytes.
NARROW = tl.constexpr(DeviceScalars.narrow.offset // 4)

LEADS, TENSOR_SHIFT = tl.constexpr(device_table.LEADS), tl.constexpr(device_table.TENSOR_SHIFT)


# The scalars of all rules; each kernel reads those that its equation names.
Reals: Any = namedtuple("Reals", REALS)  # type: ignore[misc]


class Operands(NamedTuple):
    """Pointers to a chunk's operands, or the values to write; None if absent. Among values that were read, 0 stands for
    an absent one, since a function of Triton 3.6 cannot return None. ``acc`` is z, p or s, ``q`` AdamW's average of
    squares."""

    w: Any = None
    g: Any = None
    x: Any = None
    y: Any = None
    acc: Any = None
    m: Any = None
    v: Any = None
    q: Any = None


class Chunk(NamedTuple):
    """Work of one program. Elements ``begin … end - 1`` belong to the run; ``start`` is the global index of element 0,
    ``offset`` its place in the flat buffers, ``missed`` how many calls came without a gradient."""

    w: Any
    g: Any
    offset: Any
    begin: Any
    end: Any
    index: Any
    start: Any
    has_grad: Any
    missed: Any


class Block(NamedTuple):
    """The part of a chunk that a program processes at once, with the same names."""

    begin: Any
    end: Any
    index: Any
    start: Any
    has_grad: Any
    missed: Any
    full: Any
    w_aligned: Any
    g_aligned: Any


@triton.jit
def read_reals(table, T: tl.constexpr):
    """The scalars in memory: the float64 ones, or the float32 ones that follow them in ``DeviceScalars``."""
    r = table.to(tl.pointer_type(T)) + (0 if T.is_fp64() else NARROW)
    return Reals(  # type: ignore[call-arg]
        tl.load(r),
        tl.load(r + 1),
        tl.load(r + 2),
        tl.load(r + 3),
        tl.load(r + 4),
        tl.load(r + 5),
        tl.load(r + 6),
        tl.load(r + 7),
        tl.load(r + 8),
        tl.load(r + 9),
        tl.load(r + 10),
        tl.load(r + 11),
        tl.load(r + 12),
        tl.load(r + 13),
        tl.load(r + 14),
        tl.load(r + 15),
        tl.load(r + 16),
        tl.load(r + 17),
        tl.load(r + 18),
        tl.load(r + 19),
        tl.load(r + 20),
        tl.load(r + 21),
        tl.load(r + 22),
    )


@triton.jit
def locate(chunks, tensors, grads, missed, P: tl.constexpr):
    """This program's chunk: a row of ``DeviceTable.chunks``."""
    row = chunks + 4 * tl.program_id(0)
    first, start, place, rest = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    t, bounds = rest >> TENSOR_SHIFT, rest.to(tl.int32)
    w, index, g = tl.load(tensors + 2 * t), tl.load(tensors + 2 * t + 1), tl.load(grads + t)
    has_grad = g != 0
    w, g = w.to(tl.pointer_type(P)) + first, g.to(tl.pointer_type(P)) + first
    late = 0 if missed is None else tl.load(missed + t)
    return Chunk(w, g, place, bounds & (LEADS - 1), bounds // LEADS, index, start, has_grad, late)


@triton.jit
def block_of(chunk, base, BLOCK: tl.constexpr):
    """The block that begins at element ``base`` of the chunk."""
    begin, end = chunk.begin - base, chunk.end - base
    full = (begin <= 0) & (end >= BLOCK) & chunk.has_grad
    w_aligned = full & (((chunk.w + base).to(tl.int64) & 15) == 0)
    g_aligned = full & (((chunk.g + base).to(tl.int64) & 15) == 0)
    return Block(begin, end, chunk.index, chunk.start + base, chunk.has_grad, chunk.missed, full, w_aligned, g_aligned)


@triton.jit
def aligned(pointer):
    """The pointer, known to be a multiple of 16."""
    # Flat buffers are aligned as torch allocates them. The attribute belongs to an operation and would be lost on
    # an argument of a function: hence the cast to an integer and back.
    return tl.multiple_of(pointer.to(tl.int64).to(pointer.dtype), 16)


@triton.jit
def load(pointer, i, begin, end, FAST: tl.constexpr):
    """Elements of a block: in wide accesses if FAST, else behind a mask; 0 without a pointer."""
    if pointer is None:
        return 0
    elif FAST:
        return tl.load(aligned(pointer) + i)
    else:
        return tl.load(pointer + i, mask=(i >= begin) & (i < end), other=0)


@triton.jit
def store(pointer, value, i, begin, end, FAST: tl.constexpr):
    """Write a value unless it is None, with the same accesses as ``load``."""
    if value is not None:
        if FAST:
            tl.store(aligned(pointer) + i, value)
        else:
            tl.store(pointer + i, value, mask=(i >= begin) & (i < end))


@triton.jit
def load_if(fast, pointer, begin, end, BLOCK: tl.constexpr):
    """``load``, fast where the block allows it."""
    i = tl.arange(0, BLOCK)
    # Triton cannot compile a branch without a value.
    if pointer is None:
        value = 0
    elif fast:
        value = load(pointer, i, begin, end, True)
    else:
        value = load(pointer, i, begin, end, False)
    return value


@triton.jit
def load_state(ptrs, block, BLOCK: tl.constexpr, FAST: tl.constexpr):
    """x, y, acc, m, v and q of a block."""
    i = tl.arange(0, BLOCK)
    b, e = block.begin, block.end
    x, y, acc = load(ptrs.x, i, b, e, FAST), load(ptrs.y, i, b, e, FAST), load(ptrs.acc, i, b, e, FAST)
    return x, y, acc, load(ptrs.m, i, b, e, FAST), load(ptrs.v, i, b, e, FAST), load(ptrs.q, i, b, e, FAST)


@triton.jit
def store_state(ptrs, new, block, end_v, BLOCK: tl.constexpr, FAST: tl.constexpr):
    """Write them; v and q end at ``end_v``."""
    i = tl.arange(0, BLOCK)
    store(ptrs.x, new.x, i, block.begin, block.end, FAST)
    store(ptrs.y, new.y, i, block.begin, block.end, FAST)
    store(ptrs.acc, new.acc, i, block.begin, block.end, FAST)
    store(ptrs.m, new.m, i, block.begin, block.end, FAST)
    store(ptrs.v, new.v, i, block.begin, end_v, FAST)
    store(ptrs.q, new.q, i, block.begin, end_v, FAST)


@triton.jit
def read(ptrs, block, BLOCK: tl.constexpr):
    """The block's operands, 0 where the pointer is None. A missing gradient reads as 0."""
    # The gradient first: that takes the fewest registers.
    g = load_if(block.g_aligned, ptrs.g, block.begin, tl.where(block.has_grad, block.end, 0), BLOCK)
    w = load_if(block.w_aligned, ptrs.w, block.begin, block.end, BLOCK)
    if ptrs.x is None and ptrs.y is None and ptrs.acc is None and ptrs.m is None and ptrs.v is None and ptrs.q is None:
        x, y, acc, m, v, q = 0, 0, 0, 0, 0, 0
    elif block.full:
        x, y, acc, m, v, q = load_state(ptrs, block, BLOCK, True)
    else:
        x, y, acc, m, v, q = load_state(ptrs, block, BLOCK, False)
    return Operands(w, g, x, y, acc, m, v, q)


@triton.jit
def write(ptrs, new, block, BLOCK: tl.constexpr, MOVES: tl.constexpr, RESETS: tl.constexpr):
    """Write what is not None. Without a gradient the weight is written if MOVES, the inner velocity (AdamW's
    averages) if RESETS."""
    i = tl.arange(0, BLOCK)
    with_grad = tl.where(block.has_grad, block.end, 0)
    if block.w_aligned:
        store(ptrs.w, new.w, i, block.begin, block.end, True)
    else:
        store(ptrs.w, new.w, i, block.begin, block.end if MOVES else with_grad, False)
    if block.full:
        store_state(ptrs, new, block, block.end, BLOCK, True)
    else:
        store_state(ptrs, new, block, block.end if RESETS else with_grad, BLOCK, False)


@triton.jit
def widen(v):
    """To the type computed in: float64 as it is, all others to float32."""
    if v.dtype == tl.bfloat16:
        # In integers, because the interpreter gets denormals wrong.
        return (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif v.dtype == tl.float64:
        return v
    else:
        return v.to(tl.float32)


@triton.jit
def narrow(v, P: tl.constexpr):
    """To the weight's type, to nearest even, denormals kept."""
    if INTERPRETED and P.is_bf16():  # the interpreter truncates
        bits = v.to(tl.uint32, bitcast=True)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        rounded = tl.where(v != v, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return v.to(P)
