"""Counter-based Gaussian noise in Triton: ``noise.py`` with the same names and the same order of operations.

Every function is called from a kernel. Words are uint32, normals float32.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import noise

PHILOX_M0, PHILOX_M1 = tl.constexpr(noise.PHILOX_M0), tl.constexpr(noise.PHILOX_M1)
PHILOX_W0, PHILOX_W1 = tl.constexpr(noise.PHILOX_W0), tl.constexpr(noise.PHILOX_W1)
ROUNDING_BIT = tl.constexpr(noise.ROUNDING_BIT)
LOG, SIN, COS = tl.constexpr(noise.LOG), tl.constexpr(noise.SIN), tl.constexpr(noise.COS)
TWO_LN_2 = tl.constexpr(noise.TWO_LN_2)
SQRT_HALF_BITS = tl.constexpr(noise.SQRT_HALF_BITS)


class Draw(NamedTuple):
    """What noise is drawn from, and how. ``per_thread`` consecutive elements belong to one thread, as in the loads:
    otherwise the result would go through shared memory."""

    key0: Any
    key1: Any
    step: Any
    per_thread: Any


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32."""
    for _ in tl.static_range(10):
        # A 64-bit product of two zero-extended words is one mul.wide.u32.
        p0, p1 = c0.to(tl.uint64) * PHILOX_M0, c2.to(tl.uint64) * PHILOX_M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + PHILOX_W0, k1 + PHILOX_W1
    return c0, c1, c2, c3


@triton.jit
def random_words(draw, index, block, ROUNDING: tl.constexpr):
    """The four words of elements 4 block … 4 block + 3 of parameter ``index``; ``block`` is an int64 tensor."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    if ROUNDING:
        high = high | ROUNDING_BIT
    zero = tl.zeros_like(low)
    c2, c3 = zero + index.to(tl.uint32), zero + draw.step.to(tl.uint32)
    return philox(low, high, c2, c3, draw.key0.to(tl.uint32), draw.key1.to(tl.uint32))


@triton.jit
def sign_from(v, word):
    """v with its sign flipped where the top bit of ``word`` is set (0 - v would lose the sign of zero)."""
    return (v.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def pair(t, low: tl.constexpr, high: tl.constexpr):
    """low + high t."""
    return t * high + low


@triton.jit
def log_polynomial(f):
    """-2 ln(1 + f) / f for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, in Estrin's order."""
    f2 = f * f
    low = pair(f, LOG[0], LOG[1]) + f2 * pair(f, LOG[2], LOG[3])
    high = pair(f, LOG[4], LOG[5]) + f2 * pair(f, LOG[6], LOG[7])
    return low + (f2 * f2) * high


@triton.jit
def cubic(coefficients: tl.constexpr, t):
    """A polynomial with four coefficients in Estrin's order."""
    low, high = pair(t, coefficients[0], coefficients[1]), pair(t, coefficients[2], coefficients[3])
    return low + (t * t) * high


@triton.jit
def box_muller(w0, w1):
    """Two float32 standard normals from two random words: (cosine, sine)."""
    # Radius: u = v / 2^31 in (0, 1] with v odd before rounding, r = sqrt(-2 ln u).
    v = ((w0 >> 1) | 1).to(tl.int32).to(tl.float32)
    bits = v.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    exponent = bits >> 23
    mantissa = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    f = mantissa - 1.0
    t = (31 - exponent).to(tl.float32) * TWO_LN_2 + f * log_polynomial(f)
    r = tl.sqrt_rn(t)
    # Angle: the two top bits choose the quadrant, the other 30, as a signed fraction s of pi/4, the position in it.
    s = (w1 << 2).to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 2**31)
    s2 = s * s
    sine, cosine = s * cubic(SIN, s2), cubic(COS, s2)
    swap = (w1 & 0x40000000) != 0
    c = sign_from(tl.where(swap, sine, cosine), w1 ^ (w1 << 1))
    d = sign_from(tl.where(swap, cosine, sine), w1)
    return r * c, r * d


@triton.jit
def four_normals(draw, index, block):
    """The normals of elements 4 block … 4 block + 3."""
    w0, w1, w2, w3 = random_words(draw, index, block, False)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def interleave(v, BLOCK: tl.constexpr):
    """Element 4 j + k of the result is element j of v[k]."""
    return tl.join(tl.join(v[0], v[2]), tl.join(v[1], v[3])).reshape((BLOCK,))


@triton.jit
def join_pairs(a, b):
    """Element by element the tuples of two neighbouring calls, so that 8 consecutive elements meet in one thread."""
    return tl.join(a[0], b[0]), tl.join(a[1], b[1]), tl.join(a[2], b[2]), tl.join(a[3], b[3])


@triton.jit
def words(draw, index, begin, BLOCK: tl.constexpr):
    """The words for rounding of elements ``begin … begin + BLOCK - 1`` of parameter ``index``; ``begin`` is the first
    element of a Philox call."""
    if draw.per_thread == 8:
        block = (begin >> 2) + 2 * tl.arange(0, BLOCK // 8)
        even, odd = random_words(draw, index, block, True), random_words(draw, index, block + 1, True)
        drawn = join_pairs(even, odd)
    else:
        drawn = random_words(draw, index, (begin >> 2) + tl.arange(0, BLOCK // 4), True)
    return interleave(drawn, BLOCK)


@triton.jit
def normal(draw, index, begin, BLOCK: tl.constexpr):
    """Float32 standard normals of elements ``begin … begin + BLOCK - 1`` of parameter ``index``; ``begin`` is the first
    element of a Philox call."""
    if draw.per_thread == 8:
        block = (begin >> 2) + 2 * tl.arange(0, BLOCK // 8)
        drawn = join_pairs(four_normals(draw, index, block), four_normals(draw, index, block + 1))
    else:
        drawn = four_normals(draw, index, (begin >> 2) + tl.arange(0, BLOCK // 4))
    return interleave(drawn, BLOCK)


@triton.jit
def round_stochastically(v, word):
    """float32 to bfloat16, up with the probability that makes the expectation exact."""
    bits = v.to(tl.uint32, bitcast=True)
    rounded = (bits + (word & 0xFFFF)) >> 16
    # An infinity's low bits are zero, so it stays; adding to a NaN's payload could wrap it into a finite number.
    rounded = tl.where(v != v, 0x7FC0, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
