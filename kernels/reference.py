"""The reference: the update rules of the paper in plain torch, one parameter at a time, written to be read.

Every other backend returns these bits. Only ``*``, ``+``, ``-`` and tensor-by-tensor division are used, one rounding
each: ``alpha=``, ``lerp``, ``addcmul``, ``addcdiv`` and ``_foreach_*`` fuse a multiplication with an addition.

All tensors here are of shape (runs, elements of a run), in memory order: a parameter is one run, a part of a sharded
one may be several. ``w`` is the model's parameter, ``g`` its gradient or None; x, y, z, p, s and the momenta are views
of the optimizer's flat buffers, float32 for bf16 and fp16 weights.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import noise
from .abi import Flag, Scalars
from .clock import Tick
from .scalars import Rule, bias_correction
from .table import Table, memory_order

# As plain integers: operations on IntFlag members take microseconds.
FIRST, LAST, MAXIMIZE, IMPLICIT = map(int, (Flag.FIRST, Flag.LAST, Flag.MAXIMIZE, Flag.IMPLICIT))
NESTEROV, FRESH_VELOCITY, TAKE_PARAM = map(int, (Flag.NESTEROV, Flag.FRESH_VELOCITY, Flag.TAKE_PARAM))
STOCHASTIC_ROUNDING, WARM_START = int(Flag.STOCHASTIC_ROUNDING), int(Flag.WARM_START)
PULL, AVERAGE = int(Flag.PULL), int(Flag.AVERAGE)


@dataclass(frozen=True, slots=True)
class Place:
    """Which noise the elements take: that of the parameter ``index``, from the element ``start`` of the unsharded
    parameter (in memory order) on; the first elements of successive runs are ``stride`` apart."""

    index: int
    start: int
    stride: int


def draw_of(c: Scalars) -> noise.Draw:
    """What selects the noise of the call."""
    return noise.Draw(c.key1 << 32 | c.key0, c.step)


def normal_like(x: Tensor, c: Scalars, place: Place) -> Tensor:
    """Standard normals, in the compute dtype."""
    return noise.normal(draw_of(c), place.index, place.start, x.shape, x.device, place.stride).to(x.dtype)


def unscaled(g: Tensor, c: Scalars) -> Tensor:
    """g, in the compute dtype, unscaled, with the sign of ``maximize``."""
    if c.inv_scale != 1:
        g = g * c.inv_scale
    return -g if c.flags & MAXIMIZE else g


def force(g: Tensor, w: Tensor, c: Scalars) -> Tensor:
    """``unscaled``, with weight decay at the point w."""
    g = unscaled(g, c)
    if c.weight_decay != 0:
        g = g + w * c.weight_decay
    return g


def momentum_step(m: Tensor, d: Tensor, momentum: float, nesterov: int) -> tuple[Tensor, Tensor]:
    """``torch.optim.SGD``'s momentum: the new buffer and the direction."""
    m = m * momentum + d
    return m, (d + m * momentum if nesterov else m)


def outer_step(x: Tensor, f: Tensor, m: Tensor | None, c: Scalars) -> Tensor:
    """x after the outer update with force f; ``m`` is updated in place."""
    if c.momentum == 0:
        return x - f * float(c.outer_step)
    assert m is not None
    new_m, d = momentum_step(m, f * c.outer_scale, c.momentum, c.flags & NESTEROV)
    m.copy_(new_m)
    return x - d * float(c.lr)


def take_x(x: Tensor, w: Tensor) -> Tensor:
    """x at the start of a cycle: what the parameter holds, or the state's float32 value if that rounds to it."""
    if x.dtype == w.dtype:
        return w.clone()
    return torch.where(x.to(w.dtype) == w, x, w.to(x.dtype))


def entropy_sgd(
    c: Scalars,
    w: Tensor,
    g: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    z: Tensor,
    m: Tensor | None,
    v: Tensor | None,
    place: Place,
) -> None:
    """Section 6.1. ``y`` is the float32 inner point of a bf16 or fp16 weight, None where the weight is y itself.
    ``m`` and ``v`` are the outer and the inner momentum."""
    first, last, implicit = c.flags & FIRST, c.flags & LAST, c.flags & IMPLICIT
    wide = x.dtype
    if first:
        x_ = y_ = z_ = take_x(x, w)
    else:
        x_, y_, z_ = x, (w.to(wide) if y is None else y), z
    if g is not None:
        # The weight is y rounded to its dtype; a kernel rounds y again rather than read it.
        point = y_.to(w.dtype).to(wide) if y is not None and not first else w.to(wide)
        d = force(g.to(wide), point, c)
        if not first and not implicit:
            d = d + (y_ - x_) * c.inv_gamma
        if c.inner_momentum != 0:
            assert v is not None
            new_v = d if c.flags & FRESH_VELOCITY else v * c.inner_momentum + d
            d = d + new_v * c.inner_momentum if c.flags & NESTEROV else new_v
            v.copy_(new_v)
        y_ = y_ - d * c.inner_lr
        if implicit:
            y_ = y_ + x_ * c.pull
        if c.noise_scale != 0:
            y_ = y_ + normal_like(x, c, place) * c.noise_scale
        if implicit:
            y_ = y_ / torch.full_like(y_, c.denominator)
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha
    elif first and c.inner_momentum != 0 and c.flags & FRESH_VELOCITY:
        assert v is not None
        v.zero_()
    if last:
        x_ = outer_step(x_, x_ - z_, m, c)
        w.copy_(x_)
        if wide != w.dtype:  # else the parameter is x from here on
            x.copy_(x_)
        return
    if first:
        x.copy_(x_)
    z.copy_(z_)
    if y is not None:
        y.copy_(y_)
    if g is not None:
        round_weight(c, w, y_, place)


def round_weight(c: Scalars, w: Tensor, y: Tensor, place: Place) -> None:
    """Write y to w, rounded to nearest or stochastically."""
    if c.flags & STOCHASTIC_ROUNDING and w.dtype == torch.bfloat16:
        word = noise.words(draw_of(c), place.index, place.start, w.shape, w.device, place.stride, rounding=True)
        w.copy_(noise.round_stochastically(y, word))
    else:
        w.copy_(y)


def hj(c: Scalars, w: Tensor, g: Tensor | None, x: Tensor, p: Tensor, m: Tensor | None) -> None:
    """Section 6.2."""
    first, last = c.flags & FIRST, c.flags & LAST
    wide = x.dtype
    if first:
        x_, p_ = take_x(x, w), torch.zeros_like(p)
    else:
        x_, p_ = x, p
    if g is not None:
        point = w if first else (x_ - p_ * c.gamma).to(w.dtype)
        d = force(g.to(wide), point.to(wide), c)
        if first and c.flags & WARM_START:
            p_ = d
        elif first:
            p_ = d * c.one_minus_alpha
        else:
            p_ = p_ * c.alpha + d * c.one_minus_alpha
    if last:
        x_ = outer_step(x_, p_, m, c)
        w.copy_(x_)
        if wide != w.dtype:
            x.copy_(x_)
        return
    if first:
        x.copy_(x_)
    p.copy_(p_)
    if g is not None:
        w.copy_(x_ - p_ * c.gamma)


def heat(c: Scalars, w: Tensor, g: Tensor | None, x: Tensor, s: Tensor, m: Tensor | None, place: Place) -> None:
    """Section 6.3, eq. 26."""
    first, last, take_param = c.flags & FIRST, c.flags & LAST, c.flags & TAKE_PARAM
    wide = x.dtype
    x_ = take_x(x, w) if take_param else x
    s_ = torch.zeros_like(s) if first else s
    if g is not None:
        d = force(g.to(wide), w.to(wide), c)
        s_ = d if first else s_ + d
    if last:
        x_ = outer_step(x_, s_, m, c)
    else:
        s.copy_(s_)
    if last or take_param:
        x.copy_(x_)
    if g is not None:
        w.copy_(x_ + normal_like(x, c, place) * c.noise_scale)
    else:
        w.copy_(x_)


def square_root(v: Tensor) -> Tensor:
    """The correctly rounded square root: ``torch.sqrt`` is not correctly rounded on the CPU, ``numpy.sqrt`` is."""
    if v.dtype == torch.float32:
        return torch.sqrt(v.double()).float()
    with np.errstate(invalid="ignore"):  # no warning about NaN
        return torch.from_numpy(np.sqrt(v.cpu().numpy())).to(v.device)


def entropy_adamw(
    c: Scalars,
    w: Tensor,
    g: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    b: Tensor | None,
    m: Tensor,
    v: Tensor,
    missed: int,
    place: Place,
) -> None:
    """AdamW inside Entropy-SGD's two loops. ``m`` and ``v`` are AdamW's averages, ``b`` is the outer momentum, and
    ``missed`` is how many of the calls so far came without a gradient. If alpha is 0, z is y and ``z`` is not used."""
    first, last, pull, averages = c.flags & FIRST, c.flags & LAST, c.flags & PULL, c.flags & AVERAGE
    wide = x.dtype
    if first:
        x_ = y_ = take_x(x, w)
    else:
        x_, y_ = x, (w.to(wide) if y is None else y)
    z_ = y_ if first or not averages else z
    assert z_ is not None
    if g is not None:
        d = unscaled(g.to(wide), c)
        if not first and pull:
            d = d + (y_ - x_) * c.inv_gamma
        m_ = m * c.beta1 + d * c.one_minus_beta1
        v_ = v * c.beta2 + d * d * c.one_minus_beta2
        step_size, inv_root_bias2 = c.step_size, c.inv_root_bias2
        if missed:
            step_size, inv_root_bias2 = bias_correction(c.wide_rate, c.wide_beta1, c.wide_beta2, int(c.count) - missed)
        y_ = y_ * c.decay - m_ / (square_root(v_) * inv_root_bias2 + c.epsilon) * step_size
        if c.noise_scale != 0:
            y_ = y_ + normal_like(x, c, place) * c.noise_scale
        z_ = z_ * c.alpha + y_ * c.one_minus_alpha if averages else y_
        m.copy_(m_)
        v.copy_(v_)
    if last:
        # This form, without momentum, makes x exactly z for eta = 1.
        x_ = z_ + (x_ - z_) * c.outer_step if c.momentum == 0 else outer_step(x_, x_ - z_, b, c)
        w.copy_(x_)
        if wide != w.dtype:
            x.copy_(x_)
        return
    if first:
        x.copy_(x_)
    if averages:
        assert z is not None
        z.copy_(z_)
    if y is not None:
        y.copy_(y_)
    if g is not None:
        round_weight(c, w, y_, place)


def outer(c: Scalars, w: Tensor, stepped: bool, x: Tensor, z: Tensor | None, b: Tensor | None) -> None:
    """The outer loop around another optimizer: w is its inner point, x the point where the cycle began. ``stepped`` is
    False if it has made no step since the last call, at the early end of a cycle. If alpha is 0, z is w and ``z`` is
    not used."""
    first, last, averages = c.flags & FIRST, c.flags & LAST, c.flags & AVERAGE
    y_ = w.to(x.dtype)
    if averages:
        assert z is not None
        z_ = (x if first else z) * c.alpha + y_ * c.one_minus_alpha if stepped else z
    else:
        z_ = y_
    if last:
        x_ = z_ + (x - z_) * c.outer_step if c.momentum == 0 else outer_step(x, x - z_, b, c)
        w.copy_(x_)
        if x.dtype != w.dtype:
            x.copy_(x_)
    elif averages and z is not None:
        z.copy_(z_)


def elastic_sgd(
    c: Scalars,
    w: Tensor,
    g: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    v: Tensor | None,
    place: Place,
) -> None:
    """Eq. 3 on one worker: Langevin steps toward the centre x, which the workers move together between the calls. ``y``
    is the float32 point of a bf16 or fp16 weight, None where the weight is y itself; ``v`` is the inner momentum."""
    take, implicit, fresh = c.flags & TAKE_PARAM, c.flags & IMPLICIT, c.flags & FRESH_VELOCITY
    wide = x.dtype
    y_ = w.to(wide) if y is None else y
    if take:
        x.copy_(take_x(x, w))
        y_ = x
    if g is None:
        if c.inner_momentum != 0 and fresh:
            assert v is not None
            v.zero_()
        if take and y is not None:
            y.copy_(y_)
        return
    # The weight is y rounded to its dtype; a kernel rounds y again rather than read it.
    point = y_.to(w.dtype).to(wide) if y is not None and not take else w.to(wide)
    d = force(g.to(wide), point, c)
    if not implicit:
        d = d + (y_ - x) * c.inv_gamma
    if c.inner_momentum != 0:
        assert v is not None
        new_v = d if fresh else v * c.inner_momentum + d
        d = d + new_v * c.inner_momentum if c.flags & NESTEROV else new_v
        v.copy_(new_v)
    y_ = y_ - d * c.inner_lr
    if implicit:
        y_ = y_ + x * c.pull
    if c.noise_scale != 0:
        y_ = y_ + normal_like(x, c, place) * c.noise_scale
    if implicit:
        y_ = y_ / torch.full_like(y_, c.denominator)
    if y is not None:
        y.copy_(y_)
    round_weight(c, w, y_, place)


class EagerUpdate:
    """The reference on the tensors of one table."""

    def __init__(self, rule: Rule, table: Table, buffers: dict[str, Tensor]) -> None:
        self.rule, self.table, self.buffers = rule, table, buffers

    def run(self, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
        """One update of every weight of the table, in place: see ``Update.run`` in ``__init__.py``."""
        table = self.table
        with torch.no_grad():
            for t, (weight, grad) in enumerate(zip(table.weights, grads)):
                w = memory_order(weight).view(table.runs(t))
                g = None if grad is None else memory_order(grad).view(table.runs(t))
                state = {name: table.state(t, b) for name, b in self.buffers.items() if name != "missed"}
                self._update(scalars, w, g, state, t)

    def _update(self, scalars: Scalars, w: Tensor, g: Tensor | None, state: dict[str, Tensor], t: int) -> None:
        x, acc, m = state["x"], state.get(self.rule.acc), state.get("momentum_buffer")
        y, v = state.get("y"), state.get(self.rule.velocity)
        name, table = self.rule.name, self.table
        place = Place(table.indices[t], table.starts[t], table.strides[t])
        if name == "entropy_adamw":
            assert v is not None
            missed = int(self.buffers["missed"][t])
            entropy_adamw(scalars, w, g, x, y, acc, m, v, state["exp_avg_sq"], missed, place)
        elif name == "outer":
            outer(scalars, w, g is not None, x, acc, m)
        elif name == "elastic_sgd":
            elastic_sgd(scalars, w, g, x, y, v, place)
        elif name == "entropy_sgd":
            assert acc is not None
            entropy_sgd(scalars, w, g, x, y, acc, m, v, place)
        elif name == "hj":
            assert acc is not None
            hj(scalars, w, g, x, acc, m)
        else:
            assert acc is not None
            heat(scalars, w, g, x, acc, m, place)

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        if tick.clock.host_scalars is not None:
            self.run(tick.clock.host_scalars, grads, addresses)


class Eager:
    """The reference as a backend, for any device."""

    name = "eager"
    capturable = False  # it reads the clock to the host

    def bind(self, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool = False) -> EagerUpdate:
        """See ``Backend.bind`` in ``__init__.py``."""
        return EagerUpdate(rule, table, buffers)

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call, and advance its clock, which is read to the host."""
        tick.on_host()
