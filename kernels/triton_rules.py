"""The update rules as Triton kernels, with the names and the order of operations of ``eager.py``.

One program serves one chunk of one tensor. ``w`` is the weight and ``g`` its gradient, reached through tables of
addresses; x, y, z, p, s and the momenta are the optimizer's flat buffers. A buffer that a call does not use is None.
Division is ``div_rn`` and the root ``sqrt_rn``: ``/`` on float32 is not IEEE here. Negation is a product with -1,
because ``-v`` is 0 - v and loses the sign of zero.
"""

import triton
import triton.language as tl

from .triton_memory import Operands, locate, narrow, pointers, read, reals, widen, write
from .triton_noise import normal, round_stochastically, words


@triton.jit
def force(g, w, c, WEIGHT_DECAY: tl.constexpr, MAXIMIZE: tl.constexpr):
    """g with the sign of ``maximize`` and the weight decay of the point where it was taken."""
    if MAXIMIZE:
        g = g * -1.0
    if WEIGHT_DECAY:
        g = g + w * c.weight_decay
    return g


@triton.jit
def momentum_step(m, d, momentum, NESTEROV: tl.constexpr):
    """``torch.optim.SGD``'s momentum: the new buffer and the direction."""
    m = m * momentum + d
    return m, (d + m * momentum if NESTEROV else m)


@triton.jit
def outer_step(x, f, m, c, NESTEROV: tl.constexpr):
    """x after the outer update with force f, and the new momentum."""
    if m is None:
        return x - f * c.step, None
    else:
        m, d = momentum_step(m, f * c.scale, c.momentum, NESTEROV)
        return x - d * c.lr, m


@triton.jit
def take_x(x, w, P: tl.constexpr):
    """x at the start of a cycle: what the weight holds, or the state's wider value if it rounds to just that."""
    if x is None:
        return w
    else:
        return tl.where(widen(narrow(x, P)) == w, x, w)


@triton.jit
def divide(a, b):
    if a.dtype == tl.float64:
        return a / b  # div.rn.f64
    else:
        return tl.div_rn(a, b)


@triton.jit(do_not_specialize=["key0", "key1", "step"])
def entropy_sgd(
    chunks,
    tensors,
    weights,
    grads,
    x,
    y,
    z,
    m,
    v,
    scalars,
    key0,
    key1,
    step,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
    WHOLE_CALLS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    IMPLICIT: tl.constexpr,
    NOISE: tl.constexpr,
    FRESH_VELOCITY: tl.constexpr,
    INNER_NESTEROV: tl.constexpr,
    STOCHASTIC_ROUNDING: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """Section 6.1."""
    T: tl.constexpr = x.dtype.element_ty
    at = locate(chunks, tensors, weights, grads, P, BLOCK)
    if not FIRST and not LAST and not at.has_grad:
        return
    c = reals(scalars, T)
    p = pointers(at, x, y, z, m, v)
    source = Operands(
        p.w if FIRST or y is None else None,
        p.g,
        p.x if not FIRST or P != T else None,
        p.y if not FIRST else None,
        p.a if not FIRST else None,
        p.m,
        p.v if not FRESH_VELOCITY else None,
    )
    old = read(source, at, BLOCK)
    m_ = old.m
    if FIRST:
        w = widen(old.w)
        x_ = take_x(old.x, w, P)
        y_ = x_
        z_ = x_
    else:
        x_, z_ = old.x, old.a
        if y is None:
            y_ = widen(old.w)
            w = y_
        else:
            y_ = old.y
            # The weight is y rounded to its dtype: round again rather than read it.
            w = widen(narrow(y_, P))
    v_ = tl.zeros_like(x_) if FRESH_VELOCITY or v is None else old.v
    if at.has_grad:
        d = force(widen(old.g), w, c, WEIGHT_DECAY, MAXIMIZE)
        if not FIRST and not IMPLICIT:
            d = d + (y_ - x_) * c.inv_gamma
        if v is not None:
            v_ = d if FRESH_VELOCITY else v_ * c.inner_momentum + d
            d = d + v_ * c.inner_momentum if INNER_NESTEROV else v_
        y_ = y_ - d * c.inner_lr
        if IMPLICIT:
            y_ = y_ + x_ * c.pull
        if NOISE:
            n = normal((key0, key1, step), at.index, at.start, BLOCK, PER_THREAD, WHOLE_CALLS)
            y_ = y_ + n.to(T) * c.noise_scale
        if IMPLICIT:
            y_ = divide(y_, c.denominator)
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha
    if LAST:
        x_, m_ = outer_step(x_, x_ - z_, m_, c, NESTEROV)
        w_ = narrow(x_, P)
    elif STOCHASTIC_ROUNDING:
        word = words((key0, key1, step), at.index, at.start, BLOCK, PER_THREAD, WHOLE_CALLS)
        w_ = round_stochastically(y_, word)
    else:
        w_ = narrow(y_, P)
    new = Operands(
        w_,
        None,
        x_ if (LAST and P != T) or (FIRST and not LAST) else None,  # x of a weight of its own type is the weight
        y_ if not LAST and y is not None else None,
        z_ if not LAST else None,
        m_,
        v_ if v is not None else None,
    )
    write(p, new, at, BLOCK, LAST, FIRST and FRESH_VELOCITY)


@triton.jit
def hj(
    chunks,
    tensors,
    weights,
    grads,
    x,
    p,
    m,
    scalars,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    WARM_START: tl.constexpr,
    READ_PARAM: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """Section 6.2."""
    T: tl.constexpr = x.dtype.element_ty
    at = locate(chunks, tensors, weights, grads, P, BLOCK)
    if not FIRST and not LAST and not at.has_grad:
        return
    c = reals(scalars, T)
    q = pointers(at, x, None, p, m, None)
    source = Operands(
        q.w if FIRST or (READ_PARAM and WEIGHT_DECAY) else None,
        q.g,
        q.x if not FIRST or P != T else None,
        None,
        q.a if not FIRST else None,
        q.m,
        None,
    )
    old = read(source, at, BLOCK)
    m_ = old.m
    if FIRST:
        w = widen(old.w)
        x_ = take_x(old.x, w, P)
        p_ = tl.zeros_like(x_)
    else:
        x_, p_ = old.x, old.a
        w = widen(old.w) if READ_PARAM and WEIGHT_DECAY else widen(narrow(x_ - p_ * c.gamma, P))
    if at.has_grad:
        d = force(widen(old.g), w, c, WEIGHT_DECAY, MAXIMIZE)
        if FIRST and WARM_START:
            p_ = d
        elif FIRST:
            p_ = d * c.one_minus_alpha
        else:
            p_ = p_ * c.alpha + d * c.one_minus_alpha
    if LAST:
        x_, m_ = outer_step(x_, p_, m_, c, NESTEROV)
        w_ = narrow(x_, P)
    else:
        w_ = narrow(x_ - p_ * c.gamma, P)
    new = Operands(
        w_,
        None,
        x_ if (LAST and P != T) or (FIRST and not LAST) else None,
        None,
        p_ if not LAST else None,
        m_,
        None,
    )
    write(q, new, at, BLOCK, LAST, True)


@triton.jit(do_not_specialize=["key0", "key1", "step"])
def heat(
    chunks,
    tensors,
    weights,
    grads,
    x,
    s,
    m,
    scalars,
    key0,
    key1,
    step,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
    WHOLE_CALLS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    TAKE_PARAM: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """Section 6.3, eq. 26."""
    T: tl.constexpr = x.dtype.element_ty
    at = locate(chunks, tensors, weights, grads, P, BLOCK)
    c = reals(scalars, T)
    p = pointers(at, x, None, s, m, None)
    source = Operands(
        p.w if TAKE_PARAM or WEIGHT_DECAY else None,
        p.g,
        p.x if not TAKE_PARAM or P != T else None,
        None,
        p.a if not FIRST else None,
        p.m,
        None,
    )
    old = read(source, at, BLOCK)
    m_ = old.m
    w = widen(old.w) if TAKE_PARAM or WEIGHT_DECAY else None
    x_ = take_x(old.x, w, P) if TAKE_PARAM else old.x
    s_ = tl.zeros_like(x_) if FIRST else old.a
    if at.has_grad:
        d = force(widen(old.g), w, c, WEIGHT_DECAY, MAXIMIZE)
        s_ = d if FIRST else s_ + d
    if LAST:
        x_, m_ = outer_step(x_, s_, m_, c, NESTEROV)
    w_ = x_
    if at.has_grad:
        n = normal((key0, key1, step), at.index, at.start, BLOCK, PER_THREAD, WHOLE_CALLS)
        w_ = x_ + n.to(T) * c.noise_scale
    new = Operands(
        narrow(w_, P),
        None,
        x_ if LAST or TAKE_PARAM else None,
        None,
        s_ if not LAST else None,
        m_,
        None,
    )
    write(p, new, at, BLOCK, True, True)
