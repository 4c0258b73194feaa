"""What the update rules in Triton share, with the names and the order of operations of ``reference.py``.

Division is ``div_rn`` and the root ``sqrt_rn``: ``/`` on float32 is not IEEE here. Negation is a product with -1,
because ``-v`` is 0 - v and loses the sign of zero.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .memory import Operands, narrow, read, widen


class Options(NamedTuple):
    """What an update does and omits: flags of ``abi.py``, and which optional terms there are. A ticked call has values
    for ``noise``, ``take_param`` and ``pull``; all others are constants. An assignment or a return would turn constants
    into values, so options are created in the call that passes them on."""

    scaled: Any
    maximize: Any
    weight_decay: Any
    nesterov: Any
    implicit: Any
    noise: Any
    fresh_velocity: Any
    stochastic_rounding: Any
    warm_start: Any
    take_param: Any
    pull: Any
    average: Any


@triton.jit
def unscaled(g, c, o):
    """g unscaled, with the sign of ``maximize``."""
    if o.scaled:
        g = g * c.inv_scale
    if o.maximize:
        g = g * -1.0
    return g


@triton.jit
def force(g, w, c, o):
    """``unscaled``, with weight decay at w, the point where g was taken."""
    g = unscaled(g, c, o)
    if o.weight_decay:
        g = g + w * c.weight_decay
    return g


@triton.jit
def momentum_step(m, d, momentum, NESTEROV: tl.constexpr):
    """``torch.optim.SGD``'s momentum: the new buffer and the direction."""
    m = m * momentum + d
    return m, (d + m * momentum if NESTEROV else m)


@triton.jit
def outer_step(x, f, m, c, o, MOMENTUM: tl.constexpr):
    """x after the outer update with force f, and the new momentum."""
    if MOMENTUM:
        m, d = momentum_step(m, f * c.outer_scale, c.momentum, o.nesterov)
        return x - d * c.lr, m
    else:
        return x - f * c.outer_step, m


@triton.jit
def take_x(x, w, P: tl.constexpr):
    """x at the start of a cycle: what the weight holds, or the state's wider value if that rounds to it. ``x`` is
    ignored if the state has the weight's type."""
    if w.dtype == P:
        return w
    else:
        return tl.where(widen(narrow(x, P)) == w, x, w)


@triton.jit
def divide(a, b):
    """a / b, correctly rounded."""
    if a.dtype == tl.float64:
        return a / b  # div.rn.f64
    else:
        return tl.div_rn(a, b)


@triton.jit
def square_root(v):
    """The root, correctly rounded."""
    if v.dtype == tl.float64:
        return tl.sqrt(v)  # sqrt.rn.f64
    else:
        return tl.sqrt_rn(v)


@triton.jit
def weight(ptrs, block, BLOCK: tl.constexpr):
    """The weight alone."""
    return widen(read(Operands(w=ptrs.w), block, BLOCK).w)


@triton.jit
def power(base, exponent):
    """base^exponent by multiplications alone: ``power`` of ``scalars.py``."""
    result = tl.full((), 1.0, tl.float64)
    while exponent > 0:
        result = tl.where((exponent & 1) != 0, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result


@triton.jit
def bias_correction(c, wide, missed, T: tl.constexpr):
    """AdamW's ``step_size`` and ``inv_root_bias2`` for a weight without a gradient in ``missed`` calls; ``wide`` points
    to ``abi.WIDE``."""
    step_size, inv_root_bias2 = c.step_size, c.inv_root_bias2
    if missed != 0:
        count = tl.load(wide + 3).to(tl.int64) - missed
        one = tl.full((), 1.0, tl.float64)
        step_size = (tl.load(wide) / (one - power(tl.load(wide + 1), count))).to(T)
        inv_root_bias2 = (one / tl.sqrt(one - power(tl.load(wide + 2), count))).to(T)
    return step_size, inv_root_bias2
