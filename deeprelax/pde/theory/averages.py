"""Section 4.1 and Remark 10: workers' average, time average and the average over the invariant density agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.grid import Array
from deeprelax.pde.sde import Estimate, langevin
from deeprelax.pde.theory.fitted import fitted_viscosity
from deeprelax.pde.theory.statement import (
    BLACK,
    GREEN,
    RED,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    interval,
    legend,
    table,
)
from deeprelax.pde.theory.theorem_9 import GAMMA, LOSS, fast, smoothed_gradient

STEP = 0.05


def measure(workers: int = 20_000, replicas: int = 400) -> Numbers:
    """Both averages of (x - y)/γ at several x, the error of the time average over its length, the printed sign."""
    points = np.linspace(-1.5, 1.5, 7)
    exact = floats(smoothed_gradient(0.5)(points))
    x = np.repeat(points[:, None], workers, axis=1)
    ends = langevin(lambda y: -fast(x, y), x, 8.0, STEP, 1.0, np.random.default_rng(0))
    by_workers = [Estimate.of(row) for row in (x - ends) / GAMMA]
    # One chain's average over a long time, a few hundred times over for its standard error.
    some = np.repeat(points[:, None], replicas, axis=1)
    start = langevin(lambda y: -fast(some, y), some, 8.0, STEP, 1.0, np.random.default_rng(1))
    total, lengths, errors = np.zeros_like(some), [], []
    steps = 0

    def visit(time: float, y: Array) -> None:
        nonlocal steps
        total[:] += (some - y) / GAMMA
        steps += 1
        if steps & (steps - 1) == 0 and time >= 3:
            lengths.append(time)
            errors.append(float(np.sqrt(((total / steps - np.asarray(exact)[:, None]) ** 2).mean())))

    langevin(lambda y: -fast(some, y), start, 2048 * STEP, STEP, 1.0, np.random.default_rng(2), visit)
    by_time = [Estimate.of(row) for row in total / steps]
    # §4.1 prints -[∇f - (xᵃ - x)/γ]: for f = ½y² and x = 0 the workers run away at the rate 1/γ - 1.
    away = langevin(lambda y: y - y / GAMMA, np.zeros(workers), 2.0, 0.004, 1.0, np.random.default_rng(3))
    held = langevin(lambda y: y + y / GAMMA, np.zeros(workers), 2.0, 0.004, 1.0, np.random.default_rng(4))
    rate = 1 / GAMMA - 1
    fitted = {
        name: fitted_viscosity(
            lambda delta: smoothed_gradient(delta)(points), [e.mean for e in each], [e.error for e in each], 0.5
        )
        for name, each in (("workers", by_workers), ("time", by_time))
    }
    return {
        "points": floats(points),
        "exact": exact,
        "curve_x": floats(np.linspace(-1.5, 1.5, 61)),
        "curve": floats(smoothed_gradient(0.5)(np.linspace(-1.5, 1.5, 61))),
        "workers": [e.mean for e in by_workers],
        "workers_error": [e.error for e in by_workers],
        "time": [e.mean for e in by_time],
        "time_error": [e.error for e in by_time],
        **{f"{name}_fitted": e.mean for name, e in fitted.items()},
        **{f"{name}_fitted_error": e.error for name, e in fitted.items()},
        "count": workers,
        "length": 2048 * STEP,
        "replicas": replicas,
        "lengths": lengths,
        "errors": errors,
        "rate": fitted_slope(lengths, errors),
        "printed_variance": float(away.var()),
        "printed_variance_exact": (math.exp(2 * rate * 2.0) - 1) / (2 * rate),
        "variance": float(held.var()),
        "variance_exact": (1 - math.exp(-2 * (1 / GAMMA + 1) * 2.0)) / (2 * (1 / GAMMA + 1)),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    left.plot(n["curve_x"], n["curve"], **BLACK, linewidth=1, label="∇u, δ = ½")
    left.plot(n["points"], n["workers"], "s", color=RED["color"], mfc="none", ms=9, label=f"{n['count']:,} workers")
    left.plot(n["points"], n["time"], "x", color="k", label=f"time {n['length']:g}, {n['replicas']} times")
    left.set(xlabel="x", title="mean of (x − y)/γ")
    legend(left)
    right.loglog(n["lengths"], n["errors"], marker="o", **BLACK, label=f"slope {n['rate']:.2f}")
    right.loglog(n["lengths"], [n["errors"][-1] * (n["lengths"][-1] / s) ** 0.5 for s in n["lengths"]], **GREEN,
                 label="−½")  # fmt: skip
    right.set(xlabel="length of the time average", ylabel="root mean square error", title="Remark 10, one chain")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    rows = [
        [f"{x:.1f}", f"{e:.4f}", f"{w:.4f} ± {a:.4f}", f"{t:.4f} ± {b:.4f}"]
        for x, e, w, a, t, b in zip(
            n["points"], n["exact"], n["workers"], n["workers_error"], n["time"], n["time_error"]
        )
    ]
    return (
        f"f = {LOSS.formula}, γ = {GAMMA}, T = 1, x held fixed: the mean of (x − y)/γ (± standard error) over "
        f"{n['count']:,} workers at one time, and over the time {n['length']:g} for one chain ({n['replicas']} of "
        "them, for the error), against ∇u of viscosity ½:\n\n"
        + table(["x", "∇u", "workers", "time"], rows)
        + "\n\nThe viscosity whose ∇u fits best is, over ½, "
        f"{interval(n['workers_fitted'], n['workers_fitted_error'])} for the workers and "
        f"{interval(n['time_fitted'], n['time_fitted_error'])} for the time averages [95 %].\n\nThe error of one "
        f"chain's time average falls like its length to the power {n['rate']:.2f} (expected: −½).\n\n**Section 4.1 "
        "prints the workers' coupling with the wrong sign**: −[∇f(xᵃ) − (xᵃ − x)/γ] pushes "
        f"them away from x. For f = ½y², γ = {GAMMA}, their variance after a time of 2 is then "
        f"{n['printed_variance']:.1f} (exactly {n['printed_variance_exact']:.1f}, and growing without end); with "
        f"−[∇f(xᵃ) + (xᵃ − x)/γ], the gradient of (3), it is {n['variance']:.4f} (exactly {n['variance_exact']:.4f})."
    )


STATEMENT = Statement("averages", "Section 4.1 and Remark 10: workers, time and density", measure, draw, tell)
