"""The update rules in Triton, with the names and the order of operations of ``reference.py``.

``block`` is a part of one tensor and ``ptrs`` point to its operands: ``w`` is the weight and ``g`` its gradient; x, y,
``acc`` (z, p or s) and the momenta are the optimizer's. A buffer that the optimizer does not have is None.
``c`` are the scalars, ``o`` the options: constants of a launch, or values that a captured step computes on the device;
``if`` takes both. FIRST and LAST say whether the call is the first or the last of its cycle.
"""

import triton
import triton.language as tl

from .memory import Operands, narrow, read, widen, write
from .noise import normal, round_stochastically, words
from .update import bias_correction, divide, force, outer_step, square_root, take_x, unscaled, weight


@triton.jit
def entropy_sgd(block, ptrs, c, o, draw, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Section 6.1. Called for a chunk without a gradient only at the ends of a cycle."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    source = Operands(
        w=ptrs.w if FIRST or ptrs.y is None else None,
        g=ptrs.g,
        x=ptrs.x if not FIRST or P != T else None,
        y=ptrs.y if not FIRST else None,
        acc=ptrs.acc if not FIRST else None,
        m=ptrs.m if LAST else None,
        v=ptrs.v if not o.fresh_velocity else None,
    )
    old = read(source, block, BLOCK)
    m_ = old.m
    if FIRST:
        w = widen(old.w)
        x_ = take_x(old.x, w, P)
        y_ = x_
        z_ = x_
    else:
        x_, z_ = old.x, old.acc
        if ptrs.y is None:
            y_ = widen(old.w)
            w = y_
        else:
            y_ = old.y
            # The weight is y rounded to its dtype: round again rather than read it.
            w = widen(narrow(y_, P))
    v_ = tl.zeros_like(x_) if o.fresh_velocity or ptrs.v is None else old.v
    if block.has_grad:
        d = force(widen(old.g), w, c, o)
        if not FIRST and not o.implicit:
            d = d + (y_ - x_) * c.inv_gamma
        if ptrs.v is not None:
            v_ = d if o.fresh_velocity else v_ * c.inner_momentum + d
            d = d + v_ * c.inner_momentum if o.nesterov else v_
        y_ = y_ - d * c.inner_lr
        if o.implicit:
            y_ = y_ + x_ * c.pull
        if o.noise:
            y_ = y_ + normal(draw, block.index, block.start, BLOCK).to(T) * c.noise_scale
        if o.implicit:
            y_ = divide(y_, c.denominator)
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha
    if LAST:
        x_, m_ = outer_step(x_, x_ - z_, m_, c, o, ptrs.m is not None)
        w_ = narrow(x_, P)
    elif o.stochastic_rounding:
        w_ = round_stochastically(y_, words(draw, block.index, block.start, BLOCK))
    else:
        w_ = narrow(y_, P)
    new = Operands(
        w=w_,
        x=x_ if (LAST and P != T) or (FIRST and not LAST) else None,  # the weight is x if they have one type
        y=y_ if not LAST and ptrs.y is not None else None,
        acc=z_ if not LAST else None,
        m=m_ if LAST and ptrs.m is not None else None,
        v=v_ if ptrs.v is not None else None,
    )
    write(ptrs, new, block, BLOCK, LAST, FIRST and o.fresh_velocity)


@triton.jit
def hj(block, ptrs, c, o, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Section 6.2. Called for a chunk without a gradient only at the ends of a cycle."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    source = Operands(
        w=ptrs.w if FIRST else None,
        g=ptrs.g,
        x=ptrs.x if not FIRST or P != T else None,
        acc=ptrs.acc if not FIRST else None,
        m=ptrs.m if LAST else None,
    )
    old = read(source, block, BLOCK)
    m_ = old.m
    if FIRST:
        w = widen(old.w)
        x_ = take_x(old.x, w, P)
        p_ = tl.zeros_like(x_)
    else:
        x_, p_ = old.x, old.acc
        w = widen(narrow(x_ - p_ * c.gamma, P))
    if block.has_grad:
        d = force(widen(old.g), w, c, o)
        if FIRST and o.warm_start:
            p_ = d
        elif FIRST:
            p_ = d * c.one_minus_alpha
        else:
            p_ = p_ * c.alpha + d * c.one_minus_alpha
    if LAST:
        x_, m_ = outer_step(x_, p_, m_, c, o, ptrs.m is not None)
        w_ = narrow(x_, P)
    else:
        w_ = narrow(x_ - p_ * c.gamma, P)
    new = Operands(
        w=w_,
        x=x_ if (LAST and P != T) or (FIRST and not LAST) else None,
        acc=p_ if not LAST else None,
        m=m_ if LAST and ptrs.m is not None else None,
    )
    write(ptrs, new, block, BLOCK, LAST, True)


@triton.jit
def heat(block, ptrs, c, o, draw, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Section 6.3, eq. 26."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    source = Operands(
        w=ptrs.w if o.weight_decay else None, g=ptrs.g, acc=ptrs.acc if not FIRST else None, m=ptrs.m if LAST else None
    )
    old = read(source, block, BLOCK)
    m_ = old.m
    stored = Operands(x=ptrs.x)
    if o.take_param:
        w = widen(old.w) if o.weight_decay else weight(ptrs, block, BLOCK)
        x_ = take_x(read(stored, block, BLOCK).x if P != T else w, w, P)
    else:
        x_ = read(stored, block, BLOCK).x
        w = widen(old.w) if o.weight_decay else x_
    s_ = tl.zeros_like(x_) if FIRST else old.acc
    if block.has_grad:
        d = force(widen(old.g), w, c, o)
        s_ = d if FIRST else s_ + d
    if LAST:
        x_, m_ = outer_step(x_, s_, m_, c, o, ptrs.m is not None)
    w_ = x_
    if block.has_grad:
        w_ = x_ + normal(draw, block.index, block.start, BLOCK).to(T) * c.noise_scale
    new = Operands(
        w=narrow(w_, P),
        x=x_ if LAST else None,
        acc=s_ if not LAST else None,
        m=m_ if LAST and ptrs.m is not None else None,
    )
    write(ptrs, new, block, BLOCK, True, True)
    if not LAST and o.take_param:
        write(ptrs, Operands(x=x_), block, BLOCK, False, False)


@triton.jit
def outer(block, ptrs, c, o, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """The outer loop around another optimizer, whose step takes the place of the gradient in the other rules."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    source = Operands(
        w=ptrs.w, x=ptrs.x if LAST or FIRST else None, acc=ptrs.acc if o.average else None, m=ptrs.m if LAST else None
    )
    old = read(source, block, BLOCK)
    y_, m_ = widen(old.w), old.m
    z_ = old.acc if o.average else y_
    if o.average:  # noqa: SIM102
        if block.has_grad:
            z_ = (old.x if FIRST else z_) * c.alpha + y_ * c.one_minus_alpha
    x_ = z_
    if LAST:
        if ptrs.m is not None:
            x_, m_ = outer_step(old.x, old.x - z_, m_, c, o, True)
        else:
            x_ = z_ + (old.x - z_) * c.outer_step
    new = Operands(
        w=narrow(x_, P) if LAST else None,
        x=x_ if LAST and P != T else None,
        acc=z_ if not LAST and o.average else None,
        m=m_ if LAST and ptrs.m is not None else None,
    )
    write(ptrs, new, block, BLOCK, LAST, True)


@triton.jit
def entropy_adamw(block, ptrs, c, o, draw, wide, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """AdamW inside Entropy-SGD's two loops: v and q are AdamW's averages, m the outer momentum. Called for a chunk
    without a gradient only at the ends of a cycle."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    READS_Y: tl.constexpr = not FIRST
    source = Operands(
        w=ptrs.w if FIRST or ptrs.y is None else None,
        g=ptrs.g,
        x=ptrs.x if (FIRST and P != T) or (LAST and not FIRST) else None,
        y=ptrs.y if READS_Y else None,
        acc=ptrs.acc if o.average and not FIRST else None,
        m=ptrs.m if LAST else None,
        v=ptrs.v,
        q=ptrs.q,
    )
    old = read(source, block, BLOCK)
    m_, v_, q_ = old.m, old.v, old.q
    if FIRST:
        w = widen(old.w)
        x_ = take_x(old.x, w, P)
        y_ = x_
    else:
        y_ = widen(old.w) if ptrs.y is None else old.y
        x_ = old.x if LAST else y_
    z_ = old.acc if o.average and not FIRST else y_
    if block.has_grad:
        step_size, inv_root_bias2 = bias_correction(c, wide, block.missed, T)
        d = unscaled(widen(old.g), c, o)
        if not FIRST:  # noqa: SIM102
            if o.pull:
                if LAST:
                    d = d + (y_ - x_) * c.inv_gamma
                else:
                    stored = Operands(x=ptrs.x)
                    d = d + (y_ - read(stored, block, BLOCK).x) * c.inv_gamma
        v_ = v_ * c.beta1 + d * c.one_minus_beta1
        q_ = q_ * c.beta2 + d * d * c.one_minus_beta2
        y_ = y_ * c.decay - divide(v_, square_root(q_) * inv_root_bias2 + c.epsilon) * step_size
        if o.noise:
            y_ = y_ + normal(draw, block.index, block.start, BLOCK).to(T) * c.noise_scale
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha if o.average else y_
    if LAST:
        if ptrs.m is not None:
            x_, m_ = outer_step(x_, x_ - z_, m_, c, o, True)
        else:
            x_ = z_ + (x_ - z_) * c.outer_step
        w_ = narrow(x_, P)
    elif o.stochastic_rounding:
        w_ = round_stochastically(y_, words(draw, block.index, block.start, BLOCK))
    else:
        w_ = narrow(y_, P)
    new = Operands(
        w=w_,
        x=x_ if (LAST and P != T) or (FIRST and not LAST) else None,
        y=y_ if not LAST and ptrs.y is not None else None,
        acc=z_ if not LAST and o.average else None,
        m=m_ if LAST and ptrs.m is not None else None,
        v=v_,
        q=q_,
    )
    write(ptrs, new, block, BLOCK, LAST, False)


@triton.jit
def elastic_sgd(block, ptrs, c, o, draw, BLOCK: tl.constexpr):
    """Eq. 3 on one worker: Langevin steps toward the centre x."""
    P: tl.constexpr = ptrs.w.dtype.element_ty
    T: tl.constexpr = ptrs.x.dtype.element_ty
    source = Operands(
        w=ptrs.w if ptrs.y is None else None, g=ptrs.g, x=ptrs.x, y=ptrs.y, v=ptrs.v if not o.fresh_velocity else None
    )
    old = read(source, block, BLOCK)
    x_ = old.x
    if ptrs.y is None:
        y_ = widen(old.w)
        w = y_
    else:
        y_ = old.y
        # The weight is y rounded to its dtype: round again rather than read it.
        w = widen(narrow(y_, P))
    if o.take_param:
        w = weight(ptrs, block, BLOCK)
        x_ = take_x(x_, w, P)
        y_ = x_
    v_ = tl.zeros_like(x_) if o.fresh_velocity or ptrs.v is None else old.v
    if block.has_grad:
        d = force(widen(old.g), w, c, o)
        if not o.implicit:
            d = d + (y_ - x_) * c.inv_gamma
        if ptrs.v is not None:
            v_ = d if o.fresh_velocity else v_ * c.inner_momentum + d
            d = d + v_ * c.inner_momentum if o.nesterov else v_
        y_ = y_ - d * c.inner_lr
        if o.implicit:
            y_ = y_ + x_ * c.pull
        if o.noise:
            y_ = y_ + normal(draw, block.index, block.start, BLOCK).to(T) * c.noise_scale
        if o.implicit:
            y_ = divide(y_, c.denominator)
    if o.stochastic_rounding:
        w_ = round_stochastically(y_, words(draw, block.index, block.start, BLOCK))
    else:
        w_ = narrow(y_, P)
    new = Operands(w=w_, y=y_ if ptrs.y is not None else None, v=v_ if ptrs.v is not None else None)
    write(ptrs, new, block, BLOCK, False, True)
    if o.take_param:
        write(ptrs, Operands(x=x_), block, BLOCK, False, True)


@triton.jit
def run_rule(
    RULE: tl.constexpr, block, ptrs, c, o, draw, wide, BLOCK: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr
):
    """The rule of that name, unless it has nothing to do on this chunk."""
    if RULE == "heat":
        heat(block, ptrs, c, o, draw, BLOCK, FIRST, LAST)
    elif RULE == "elastic_sgd":
        elastic_sgd(block, ptrs, c, o, draw, BLOCK)
    elif RULE == "outer":
        if LAST or (o.average and block.has_grad):
            outer(block, ptrs, c, o, BLOCK, FIRST, LAST)
    elif FIRST or LAST or block.has_grad:
        if RULE == "hj":
            hj(block, ptrs, c, o, BLOCK, FIRST, LAST)
        elif RULE == "entropy_adamw":
            entropy_adamw(block, ptrs, c, o, draw, wide, BLOCK, FIRST, LAST)
        else:
            entropy_sgd(block, ptrs, c, o, draw, BLOCK, FIRST, LAST)
