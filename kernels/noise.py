"""Counter-based Gaussian noise: Philox4x32-10 and Box-Muller, the reference in plain torch.

Noise is a pure function of (seed, replica, step, parameter index, element index), so that every backend, block
size, thread count and sharding draws the same bits. ``csrc/philox.h`` and ``csrc/normal.h`` are this file in C++,
``kernels/triton/noise.py`` is this file in Triton: same names, same order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
MASK32 = 0xFFFFFFFF

# Stochastic rounding draws from the same counter with this bit of its second word set.
ROUNDING_BIT = 0x80000000

# Minimax polynomials in float32, lowest degree first; tools/fit_normal.py recomputes them and prints their errors.
LOG = (-1.9999999, 1.0000069, -0.66671216, 0.4994312, -0.39768472, 0.34424853, -0.32676288, 0.20757426)
SIN = (0.7853982, -0.080745436, 0.002490007, -3.595451e-05)  # sin(pi/4 t) / t in powers of t^2, |t| <= 1
COS = (1.0, -0.30842426, 0.015849914, -0.0003188805)  # cos(pi/4 t) in powers of t^2, |t| <= 1
TWO_LN_2 = 1.3862944
SQRT_HALF_BITS = 0x3F3504F3  # bit pattern of float32(sqrt(1/2))


@dataclass(frozen=True, slots=True)
class Draw:
    """What selects the noise of one call: 64-bit ``seed``, 32-bit ``replica`` and 32-bit ``step``."""

    seed: int
    step: int
    replica: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """Philox's key: (seed low, seed high XOR replica)."""
        return self.seed & MASK32, (self.seed >> 32 & MASK32) ^ (self.replica & MASK32)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, each value in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of that shape with the random words, each in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, and an arithmetic shift fills with the sign: the mask keeps the 32 bits that count.
        p0, p1 = c0 * PHILOX_M0, c2 * PHILOX_M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + PHILOX_W0) & MASK32, (k1 + PHILOX_W1) & MASK32
    return c0, c1, c2, c3


def elements(start: int, shape: Sequence[int], stride: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The Philox calls that the elements of ``words`` take, int64, a row for each run; and the position of each
    element's word among those of its row."""
    *runs, count = shape
    first = start + stride * torch.arange(math.prod(runs), device=device)[:, None]
    block = first // 4 + torch.arange((count + 6) // 4, device=device)
    return block, first % 4 + torch.arange(count, device=device)


def drawn(draw: Draw, index: int, block: Tensor, rounding: bool = False) -> tuple[Tensor, ...]:
    """The four words of the calls with counter (block low, block high, index, step), each of the block's shape."""
    high = (block >> 32) & MASK32
    if rounding:
        high = high | ROUNDING_BIT
    counter = (
        block & MASK32,
        high,
        torch.full_like(block, index & MASK32),
        torch.full_like(block, draw.step & MASK32),
    )
    return philox(counter, draw.key)


def words(
    draw: Draw,
    index: int,
    start: int,
    shape: Sequence[int],
    device: torch.device | str,
    stride: int = 0,
    rounding: bool = False,
) -> Tensor:
    """Random words: element i of a parameter takes word i mod 4 of Philox's call i div 4.

    Args:
        draw: seed, replica and step.
        index: the parameter's position over all ``param_groups``.
        start: index of the first element in the memory order of the unsharded parameter; any integer >= 0.
        shape: (count,), or (runs, count): the elements of a run are consecutive.
        device: where to make them.
        stride: the distance between the first elements of successive runs.
        rounding: whether they are those of stochastic rounding.

    Returns:
        int64 tensor of that shape.
    """
    block, place = elements(start, shape, stride, device)
    return torch.stack(drawn(draw, index, block, rounding), dim=-1).flatten(1).gather(1, place).reshape(shape)


def sqrt(v: Tensor) -> Tensor:
    """Correctly rounded float32 square root (``torch.sqrt`` on the CPU is not, so it goes through float64)."""
    return v.double().sqrt().float()


def pair(t: Tensor, low: float, high: float) -> Tensor:
    """low + high t."""
    return t * high + low


def log_polynomial(f: Tensor) -> Tensor:
    """-2 ln(1 + f) / f for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, in Estrin's order."""
    f2 = f * f
    low = pair(f, *LOG[0:2]) + f2 * pair(f, *LOG[2:4])
    high = pair(f, *LOG[4:6]) + f2 * pair(f, *LOG[6:8])
    return low + (f2 * f2) * high


def cubic(coefficients: tuple[float, ...], t: Tensor) -> Tensor:
    """A polynomial with four coefficients in Estrin's order."""
    return pair(t, *coefficients[0:2]) + (t * t) * pair(t, *coefficients[2:4])


def box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 standard normals from two random words (int64 tensors in [0, 2^32)): (cosine, sine)."""
    # Radius: u = v / 2^31 in (0, 1] with v odd before rounding, r = sqrt(-2 ln u), |r| <= 6.56.
    v = ((w0 >> 1) | 1).to(torch.float32)
    bits = v.view(torch.int32).to(torch.int64) - SQRT_HALF_BITS
    exponent = bits >> 23
    mantissa = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).to(torch.int32).view(torch.float32)
    f = mantissa - 1.0
    t = (31 - exponent).to(torch.float32) * TWO_LN_2 + f * log_polynomial(f)
    r = sqrt(t)
    # Angle: the two top bits choose the quadrant, the other 30, as a signed fraction s of pi/4, the position in it.
    low = (w1 << 2) & MASK32
    signed = low - ((low >> 31) << 32)
    s = signed.to(torch.float32) * (1.0 / 2**31)
    s2 = s * s
    sine, cosine = s * cubic(SIN, s2), cubic(COS, s2)
    bit31, bit30 = (w1 >> 31) & 1, (w1 >> 30) & 1
    swap = bit30 == 1
    c = torch.where(swap, sine, cosine)
    d = torch.where(swap, cosine, sine)
    c = torch.where(bit31 ^ bit30 == 1, -c, c)
    d = torch.where(bit31 == 1, -d, d)
    return r * c, r * d


def normal(
    draw: Draw, index: int, start: int, shape: Sequence[int], device: torch.device | str, stride: int = 0
) -> Tensor:
    """Standard normals, float32, of the elements that these arguments select in ``words``. Words (0, 1) of a Philox
    call give elements 4j and 4j+1, words (2, 3) give 4j+2 and 4j+3."""
    block, place = elements(start, shape, stride, device)
    w0, w1, w2, w3 = drawn(draw, index, block)
    normals = (*box_muller(w0, w1), *box_muller(w2, w3))
    return torch.stack(normals, dim=-1).flatten(1).gather(1, place).reshape(shape)


def round_stochastically(v: Tensor, word: Tensor) -> Tensor:
    """float32 to bfloat16, up with the probability that makes the expectation exact; ``word`` in [0, 2^32)."""
    bits = v.view(torch.int32).to(torch.int64) & MASK32
    rounded = ((bits + (word & 0xFFFF)) >> 16) & 0xFFFF
    # An infinity's low bits are zero, so it stays; adding to a NaN's payload could wrap it into a finite number.
    quiet = torch.where(torch.isnan(v), torch.full_like(rounded, 0x7FC0), rounded)
    return (quiet - ((quiet >> 15) << 16)).to(torch.int16).view(torch.bfloat16)
