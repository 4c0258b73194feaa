"""Beyond the paper: the proximal operator from samples, and the rule for γ that goes with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.interpolate import CubicSpline
from torch.nn.functional import softshrink

from deeprelax.optim.schedules import adaptive_gamma
from deeprelax.pde.grid import Grid
from deeprelax.pde.losses import rugged
from deeprelax.pde.proximal import sampled_proximal
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.statement import (
    BLACK,
    GREEN,
    MARKERS,
    RED,
    STYLES,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    legend,
    table,
    ticks_at,
)

GAMMA = 0.5
LOSS = rugged()
START, VISCOSITY, UPDATES = -1.7, 0.5, 200  # of the descents


def moreau_descent(gamma: float, adaptive: bool) -> tuple[list[float], list[float]]:
    """x ← x - γ∇u(x; γ) from START, with γ fixed or by ``adaptive_gamma``: all x and γ."""
    xs, gammas = [START], [gamma]
    previous = math.inf
    for _ in range(UPDATES):
        around = Grid.uniform((xs[-1] - 0.02, xs[-1] + 0.02, 5))
        update = gamma * float(viscous(LOSS.f, around, gamma, VISCOSITY).gradient[0][2])
        xs.append(xs[-1] - update)
        if adaptive and math.isfinite(previous):
            gamma = adaptive_gamma(gamma, abs(update), previous, smallest=0.05, largest=4.0)
        previous = abs(update)
        gammas.append(gamma)
    return xs, gammas


def measure() -> Numbers:
    """Errors over the number of samples and over δ, effective samples over the dimension, two descents."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    grid = Grid.uniform((-2, 2, 401))
    viscosity = 0.4
    spline = CubicSpline(grid.axes[0], viscous(np.abs, grid, GAMMA, viscosity).gradient[0])
    exact = x[:, 0].numpy() - GAMMA * spline(x[:, 0].numpy())
    counts, errors = [1000, 4000, 16_000, 64_000], []
    for count in counts:
        repeated = [
            sampled_proximal(lambda y: y.abs().sum(-1), x, GAMMA, viscosity, count, generator).point[:, 0].numpy()
            for _ in range(10)
        ]
        errors.append(float(np.sqrt(np.mean([(r - exact) ** 2 for r in repeated]))))
    proximal_point = softshrink(x[:, 0], GAMMA).numpy()
    viscosities = [0.4, 0.2, 0.1, 0.05, 0.025]
    biases = []
    for delta in viscosities:
        fine = Grid.uniform((-2, 2, 801))
        point = fine.axes[0] - GAMMA * viscous(np.abs, fine, GAMMA, delta).gradient[0]
        biases.append(float(np.abs(point[::20] - proximal_point).max()))
    dimensions, shares, expected = [1, 2, 4, 8, 16, 32], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights collapse is what this is about
        for dimension in dimensions:
            estimate = sampled_proximal(
                lambda y: (y**2).sum(-1) / 2, torch.zeros(20, dimension, dtype=torch.float64), GAMMA, 0.1, 10_000,
                generator,
            )  # fmt: skip
            shares.append(float(estimate.effective_samples.mean() / 10_000))
            # (E w)²/E w² of a Gaussian weight.
            expected.append((math.sqrt(1 + 2 * GAMMA) / (1 + GAMMA)) ** dimension)
    f = Grid.uniform((LOSS.low, LOSS.high, 1801))
    descents = {
        f"γ = {gamma:g}, {'adapted' if adaptive else 'fixed'}": moreau_descent(gamma, adaptive)
        for gamma in (2.0, 0.2)
        for adaptive in (False, True)
    }
    return {
        "counts": counts,
        "errors": errors,
        "rate": fitted_slope(counts, errors),
        "viscosity": viscosities,
        "bias": biases,
        "dimensions": dimensions,
        "shares": shares,
        "expected": expected,
        "descents": {name: {"x": floats(x), "gamma": floats(gamma)} for name, (x, gamma) in descents.items()},
        "minimum": float(f.axes[0][f.values(LOSS.f).argmin()]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, middle, right = axes
    left.loglog(n["counts"], n["errors"], marker="o", **BLACK, label=f"slope {n['rate']:.2f}")
    left.loglog(n["counts"], [n["errors"][0] * (n["counts"][0] / c) ** 0.5 for c in n["counts"]], **GREEN, label="−½")
    left.set(xlabel="samples", ylabel="root mean square error", title="f = |x|, δ = 0.4")
    ticks_at(left, n["counts"])
    legend(left)
    middle.semilogy(n["dimensions"], n["shares"], "o", color="k", mfc="none", label="measured, 10,000 samples")
    middle.semilogy(n["dimensions"], n["expected"], **RED, label="expected")
    middle.set(xlabel="dimensions", ylabel="share of effective samples", title="f = |x|²/2, γ = 0.5")
    legend(middle)
    for style, marker, (name, descent) in zip(STYLES, MARKERS, n["descents"].items()):
        right.plot(descent["x"], marker=marker, markevery=20, ms=4, **style, label=name)
    right.axhline(n["minimum"], color="0.6", linewidth=1)
    right.set(xlabel="update", ylabel="x", title="rugged loss; the line: its minimum")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    bias = [[f"{v:g}", f"{b:.4f}"] for v, b in zip(n["viscosity"], n["bias"])]
    ends = [[name, f"{d['x'][-1]:.3f}", f"{d['gamma'][-1]:.2f}"] for name, d in n["descents"].items()]
    return (
        "Osher, Heaton and Wu Fung (PNAS 2023) take the mean of samples y ~ N(x, δγI) under the weights exp(−f(y)/δ): "
        "Lemma 3's average without a chain and without a gradient, `deeprelax.pde.sampled_proximal`. For f = |x|, γ = "
        f"{GAMMA}, δ = 0.4, its error over 41 points falls like the number of samples to the power {n['rate']:.2f} "
        "(expected: −½). How far the exact average is from the proximal point at most:\n\n"
        + table(["δ", "largest distance"], bias)
        + "\n\nThe weights collapse as the dimension grows: for f = |x|²/2 at δ = 0.1, of 10,000 samples "
        f"{n['shares'][0] * 10_000:.0f} are effective in one dimension, {n['shares'][-1] * 10_000:.0f} in "
        f"{n['dimensions'][-1]} (expected of the limit of many samples: {n['expected'][-1] * 10_000:.0f}).\n\n"
        "Their rule for γ (`deeprelax.optim.schedules.adaptive_gamma`; Heaton, Wu Fung and Osher 2023), on the rugged "
        f"loss from {START}, minimal at {n['minimum']:.3f}, by x ← x − γ∇u with δ = {VISCOSITY} and {UPDATES} updates. "
        "Started wide, it narrows and comes closer to the minimum than a fixed γ, whose u is minimal elsewhere; "
        "started narrow, it does not leave the nearest local minimum:\n\n"
        + table(["γ at first", "last x", "last γ"], ends)
    )


STATEMENT = Statement("sampled", "Beyond the paper: the proximal operator from samples", measure, draw, tell, panels=3)
