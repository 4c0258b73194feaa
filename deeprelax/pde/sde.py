"""Stochastic differential equations by Monte Carlo: many independent paths at once, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deeprelax.pde.grid import Array, non_negative, positive

Force = Callable[[Array], Array]
TwoForces = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo mean and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, samples: Array) -> Estimate:
        """From independent samples, (n,)."""
        return cls(float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples))))


def langevin(
    gradient: Force,
    x: Array,
    time: float,
    step: float,
    temperature: float,
    rng: np.random.Generator,
    visit: Callable[[float, Array], None] | None = None,
) -> Array:
    """dx = -∇f dt + √T dW from ``x`` on, for ``time``; (8) is T = 1.

    Euler-Maruyama with each step's noise averaged with the next one's (Leimkuhler and Matthews, 2013): the same cost,
    and an invariant density that is off by O(step²) instead of O(step).

    Args:
        gradient: ∇f, element by element.
        x: starting points, any shape; one path per element.
        time, step: how long, and in steps of about what length.
        temperature: T ≥ 0.
        rng: generates the noise.
        visit: called after every step with the time and the points.

    Returns:
        The end points, of x's shape.

    Raises:
        ValueError: time or step ≤ 0, a negative temperature, a path that is not finite at the end.
    """
    steps = max(1, round(positive("time", time) / positive("step", step)))
    h = time / steps
    amplitude = math.sqrt(h * non_negative("temperature", temperature)) / 2
    noise = rng.standard_normal(x.shape)
    for k in range(steps):
        fresh = rng.standard_normal(x.shape)
        x = x - h * gradient(x) + amplitude * (noise + fresh)
        noise = fresh
        if visit is not None:
            visit((k + 1) * h, x)
    return _alive(x, h)


def two_scales(
    slow: TwoForces,
    fast: TwoForces,
    x: Array,
    y: Array,
    epsilon: float,
    time: float,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    step: float = 0.02,
    record: int = 0,
) -> tuple[Array, Array, Array]:
    """dx = h(x, y) ds, dy = g(x, y) ds/ε + √(T/ε) dW: eq. 18, of which (19), (20) and (22) are cases.

    Args:
        slow, fast: h and g, element by element.
        x, y: starting points, of one shape; one path per element.
        epsilon: ε > 0.
        time: how long in s.
        rng: generates the noise.
        temperature: T; the paper's dW is T = 1.
        step: of the fast variable, in units of ε; y is integrated as in ``langevin``, x by Euler.
        record: how many times to note x, evenly spread over ``time``.

    Returns:
        x and y at the end, and x at the recorded times, (record, *x's shape).

    Raises:
        ValueError: time, ε or step ≤ 0, a negative temperature, a path that is not finite at the end.
    """
    quick = positive("epsilon", epsilon) * positive("step", step)
    per_record = max(1, round(positive("time", time) / (quick * max(record, 1))))
    steps = per_record * max(record, 1)
    ds = time / steps
    h = ds / epsilon
    amplitude = math.sqrt(h * non_negative("temperature", temperature)) / 2
    noise = rng.standard_normal(y.shape)
    kept = []
    for k in range(steps):
        fresh = rng.standard_normal(y.shape)
        x, y = x + ds * slow(x, y), y + h * fast(x, y) + amplitude * (noise + fresh)
        noise = fresh
        if record and (k + 1) % per_record == 0:
            kept.append(x)
    return _alive(x, h), _alive(y, h), np.stack(kept) if kept else np.empty((0, *x.shape))


def _alive(x: Array, h: float) -> Array:
    """``x``, if no path has diverged."""
    lost = int((~np.isfinite(x)).sum())
    if lost:
        raise ValueError(
            f"{lost} of {x.size} paths are not finite at the end: the force grows too fast for steps of {h:.3g}; use "
            "smaller ones"
        )
    return x
