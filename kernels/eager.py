"""The reference: the update rules of the paper in plain torch, one parameter at a time, written to be read.

Every other backend returns these bits. Only ``*``, ``+``, ``-`` and tensor-by-tensor division are used, one rounding
each: ``alpha=``, ``lerp``, ``addcmul``, ``addcdiv`` and ``_foreach_*`` fuse a multiplication with an addition.

All tensors here are one-dimensional, in memory order. ``w`` is the model's parameter, ``g`` its gradient or None;
x, y, z, p, s and the momenta are slices of the optimizer's flat buffers, float32 for bf16 and fp16 weights.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import noise
from .calls import Call, EntropySGDCall, HeatCall, HJCall, Outer, Table, memory_order
from .clock import Clock, Tick


def force(g: Tensor, w: Tensor, c: Call) -> Tensor:
    """g, in the compute dtype, unscaled, with the sign of ``maximize`` and the weight decay of the point w."""
    if c.inv_scale != 1:
        g = g * c.inv_scale
    if c.maximize:
        g = -g
    if c.weight_decay != 0:
        g = g + w * c.weight_decay
    return g


def momentum_step(m: Tensor, d: Tensor, momentum: float, nesterov: bool) -> tuple[Tensor, Tensor]:
    """``torch.optim.SGD``'s momentum: the new buffer and the direction."""
    m = m * momentum + d
    return m, (d + m * momentum if nesterov else m)


def outer_step(x: Tensor, f: Tensor, m: Tensor | None, outer: Outer) -> Tensor:
    """x after the outer update with force f; ``m`` is updated in place."""
    if outer.momentum == 0:
        return x - f * outer.step
    assert m is not None
    new_m, d = momentum_step(m, f * outer.scale, outer.momentum, outer.nesterov)
    m.copy_(new_m)
    return x - d * outer.lr


def take_x(x: Tensor, w: Tensor) -> Tensor:
    """x at the start of a cycle: what the parameter holds, or the state's float32 value if it rounds to just that."""
    if x.dtype == w.dtype:
        return w.clone()
    return torch.where(x.to(w.dtype) == w, x, w.to(x.dtype))


def entropy_sgd(
    c: EntropySGDCall,
    w: Tensor,
    g: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    z: Tensor,
    m: Tensor | None,
    v: Tensor | None,
    index: int,
    start: int,
) -> None:
    """Section 6.1. ``y`` is the float32 inner point of a bf16 or fp16 weight, None where the weight is y itself.
    ``m`` and ``v`` are the outer and the inner momentum."""
    wide = x.dtype
    if c.first:
        x_ = y_ = z_ = take_x(x, w)
    else:
        x_, y_, z_ = x, (w.to(wide) if y is None else y), z
    if g is not None:
        # The weight is y rounded to its dtype; a kernel rounds y again rather than read it.
        at = y_.to(w.dtype).to(wide) if y is not None and not c.first else w.to(wide)
        d = force(g.to(wide), at, c)
        if not c.first and not c.implicit:
            d = d + (y_ - x_) * c.inv_gamma
        if c.inner_momentum != 0:
            assert v is not None
            new_v = d if c.fresh_velocity else v * c.inner_momentum + d
            d = d + new_v * c.inner_momentum if c.inner_nesterov else new_v
            v.copy_(new_v)
        y_ = y_ - d * c.inner_lr
        if c.implicit:
            y_ = y_ + x_ * c.pull
        if c.noise_scale != 0:
            y_ = y_ + noise.normal(c.stream, index, start, w.numel(), w.device).to(wide) * c.noise_scale
        if c.implicit:
            y_ = y_ / torch.full_like(y_, c.denominator)
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha
    elif c.first and c.inner_momentum != 0 and c.fresh_velocity:
        assert v is not None
        v.zero_()
    if c.last:
        x_ = outer_step(x_, x_ - z_, m, c.outer)
        w.copy_(x_)
        if wide != w.dtype:  # else the parameter is x from here on
            x.copy_(x_)
        return
    if c.first:
        x.copy_(x_)
    z.copy_(z_)
    if y is not None:
        y.copy_(y_)
    if g is None:
        return
    if c.stochastic_rounding and w.dtype == torch.bfloat16:
        word = noise.words(c.stream, index, start, w.numel(), w.device, rounding=True)
        w.copy_(noise.round_stochastically(y_, word))
    else:
        w.copy_(y_)


def hj(c: HJCall, w: Tensor, g: Tensor | None, x: Tensor, p: Tensor, m: Tensor | None) -> None:
    """Section 6.2."""
    wide = x.dtype
    if c.first:
        x_, p_ = take_x(x, w), torch.zeros_like(p)
    else:
        x_, p_ = x, p
    if g is not None:
        at = w if c.first or c.read_param else (x_ - p_ * c.gamma).to(w.dtype)
        d = force(g.to(wide), at.to(wide), c)
        if c.first and c.warm_start:
            p_ = d
        elif c.first:
            p_ = d * c.one_minus_alpha
        else:
            p_ = p_ * c.alpha + d * c.one_minus_alpha
    if c.last:
        x_ = outer_step(x_, p_, m, c.outer)
        w.copy_(x_)
        if wide != w.dtype:
            x.copy_(x_)
        return
    if c.first:
        x.copy_(x_)
    p.copy_(p_)
    if g is not None:
        w.copy_(x_ - p_ * c.gamma)


def heat(
    c: HeatCall, w: Tensor, g: Tensor | None, x: Tensor, s: Tensor, m: Tensor | None, index: int, start: int
) -> None:
    """Section 6.3, eq. 26."""
    wide = x.dtype
    x_ = take_x(x, w) if c.take_param else x
    s_ = torch.zeros_like(s) if c.first else s
    if g is not None:
        d = force(g.to(wide), w.to(wide), c)
        s_ = d if c.first else s_ + d
    if c.last:
        x_ = outer_step(x_, s_, m, c.outer)
    else:
        s.copy_(s_)
    if c.last or c.take_param:
        x.copy_(x_)
    if g is not None:
        w.copy_(x_ + noise.normal(c.stream, index, start, w.numel(), w.device).to(wide) * c.noise_scale)
    else:
        w.copy_(x_)


class Eager:
    """The reference as a backend, for any device."""

    name = "eager"
    capturable = False

    def __init__(self) -> None:
        self._ticked: WeakKeyDictionary[Clock, Call | None] = WeakKeyDictionary()

    def run(
        self, call: Call, table: Table, grads: list[Tensor | None], addresses: object, buffers: dict[str, Tensor]
    ) -> None:
        """One update of every weight of the table, in place.

        Args:
            call: the rule with its scalars.
            table: weights, offsets and indices.
            grads: per weight its gradient, in the weight's memory layout, or None.
            addresses: the gradients' addresses, which other backends use.
            buffers: flat state buffers by name.
        """
        with torch.no_grad():
            for t, weight in enumerate(table.weights):
                start, size, grad = table.offsets[t], table.sizes[t], grads[t]
                state = {name: b[start : start + size] for name, b in buffers.items()}
                w = memory_order(weight)
                g = None if grad is None else memory_order(grad)
                m = state.get("momentum_buffer")
                index, first = table.indices[t], table.starts[t]
                if isinstance(call, EntropySGDCall):
                    y, v = state.get("y"), state.get("inner_momentum_buffer")
                    entropy_sgd(call, w, g, state["x"], y, state["z"], m, v, index, first)
                elif isinstance(call, HJCall):
                    hj(call, w, g, state["x"], state["p"], m)
                else:
                    heat(call, w, g, state["x"], state["s"], m, index, first)

    def prepare(self, table: Table, capturable: bool) -> None:
        """Nothing: this backend reads the clock to the host, which a capture forbids."""

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call, and advance its clock; reads it to the host."""
        at = tick.moment()
        self._ticked[tick.clock] = None if at is None else tick.settings.call(at)
        tick.advance(at)

    def run_ticked(
        self, tick: Tick, table: Table, grads: list[Tensor | None], addresses: object, buffers: dict[str, Tensor]
    ) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        call = self._ticked[tick.clock]
        if call is not None:
            self.run(call, table, grads, addresses, buffers)
