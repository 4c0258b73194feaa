"""From hyper-parameters and a clock to the scalars of one call: the reference of what a captured step derives on the
device (``csrc/clock.h``, ``triton_clock.py``), and what every other step derives with on the host.

Everything is computed in float64 in the order written, except the noise's scale: the float32 root of a float32 product.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from .calls import EntropySGDCall, HeatCall, HJCall, Outer
from .noise import MASK32, Stream


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return ctypes.c_float(value).value


def noise_scale(*factors: float) -> float:
    """The float32 square root of the float32 product of the factors."""
    product = 1.0
    for factor in factors:
        product = float32(product * float32(factor))
    return float32(math.sqrt(product))


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands when a gradient arrives, and what a schedule may have changed since the last one."""

    lr: float  # eta
    inner_lr: float  # eta', 0 where there is none
    gamma: float
    step: int  # completed, unskipped calls
    phase: int  # gradients taken in this cycle
    cycle_steps: int  # L of this cycle
    fresh: bool  # x is what the parameters hold
    seed: int
    placed_gamma: float | None = None  # HJ: the gamma at which the weights stand at x - gamma p, None: not known
    inv_scale: float = 1.0  # 1 / the loss's scale, a float32

    @property
    def first(self) -> bool:
        return self.fresh or self.phase == 0

    @property
    def last(self) -> bool:
        return self.phase + 1 >= self.cycle_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all rules share of a group's hyper-parameters."""

    inner_steps: int
    keep: float  # 1 - scoping
    momentum: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    planned_gamma: float | None = None  # gamma of the next cycle, where it is not scoping that decides

    def outer(self, lr: float, step: float, scale: float) -> Outer:
        return Outer(step, scale, lr, self.momentum, self.nesterov)

    def next_gamma(self, at: Moment) -> float:
        """gamma after the call: scoping, section 6.4, unless another is planned."""
        if not at.last:
            return at.gamma
        return at.gamma * self.keep if self.planned_gamma is None else self.planned_gamma


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropySGDSettings(Settings):
    """Section 6.1."""

    rule: ClassVar[str] = EntropySGDCall.rule
    buffers: ClassVar[tuple[str, ...]] = EntropySGDCall.buffers
    alpha: float
    temperature: float
    implicit: bool
    absorb_gamma: bool
    inner_momentum: float
    carry_inner_momentum: bool
    stochastic_rounding: bool

    def call(self, at: Moment) -> EntropySGDCall:
        lr, gamma, inner_lr, absorb = at.lr, at.gamma, at.inner_lr, self.absorb_gamma
        return EntropySGDCall(
            first=at.first,
            last=at.last,
            inner_lr=inner_lr,
            inv_gamma=1 / gamma,
            pull=inner_lr / gamma,
            denominator=1 + inner_lr / gamma,
            alpha=self.alpha,
            one_minus_alpha=1 - self.alpha,
            noise_scale=noise_scale(inner_lr, self.temperature),
            weight_decay=self.weight_decay,
            maximize=self.maximize,
            implicit=self.implicit,
            inner_momentum=self.inner_momentum,
            inner_nesterov=self.nesterov,
            fresh_velocity=at.first and not self.carry_inner_momentum,
            stochastic_rounding=self.stochastic_rounding,
            outer=self.outer(lr, lr if absorb else lr / gamma, 1.0 if absorb else 1 / gamma),
            stream=Stream(at.seed, at.step & MASK32),
            inv_scale=at.inv_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HJSettings(Settings):
    """Section 6.2."""

    rule: ClassVar[str] = HJCall.rule
    buffers: ClassVar[tuple[str, ...]] = HJCall.buffers
    alpha: float
    warm_start: bool

    def call(self, at: Moment) -> HJCall:
        return HJCall(
            first=at.first,
            last=at.last,
            warm_start=self.warm_start,
            gamma=at.gamma,
            alpha=self.alpha,
            one_minus_alpha=1 - self.alpha,
            weight_decay=self.weight_decay,
            maximize=self.maximize,
            read_param=self.weight_decay != 0 and at.gamma != at.placed_gamma,
            outer=self.outer(at.lr, at.lr, 1.0),
            inv_scale=at.inv_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatSettings(Settings):
    """Section 6.3, eq. 26."""

    rule: ClassVar[str] = HeatCall.rule
    buffers: ClassVar[tuple[str, ...]] = HeatCall.buffers

    def call(self, at: Moment) -> HeatCall:
        steps = at.cycle_steps
        return HeatCall(
            first=at.first,
            last=at.last,
            take_param=at.fresh,
            noise_scale=noise_scale(self.next_gamma(at)),
            weight_decay=self.weight_decay,
            maximize=self.maximize,
            outer=self.outer(at.lr, at.lr / steps, 1 / steps),
            stream=Stream(at.seed, (at.step + 1) & MASK32),
            inv_scale=at.inv_scale,
        )


AnySettings = EntropySGDSettings | HJSettings | HeatSettings


def placed_gamma(at: Moment, missing: bool) -> float | None:
    """``Moment.placed_gamma`` after the call: weights without a gradient stay where an older gamma has put them."""
    known = at.first or at.gamma == at.placed_gamma or not missing
    return at.gamma if known else None


def advance(settings: AnySettings, at: Moment) -> dict[str, Any]:
    """What of the clock the call changes, by the names of ``Moment``."""
    return {
        "gamma": settings.next_gamma(at),
        "step": at.step + 1,
        "phase": 0 if at.last else at.phase + 1,
        "cycle_steps": at.cycle_steps,
        "fresh": False,
    }
