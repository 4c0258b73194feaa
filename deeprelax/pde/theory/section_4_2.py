"""Section 4.2: the heat equation averages the gradient, local entropy averages it where the loss is low."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import quadratic, rugged
from deeprelax.pde.smoothing import gibbs_average, heat, viscous
from deeprelax.pde.theory.statement import (
    BLACK,
    GREEN,
    RED,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    legend,
    table,
    ticks_at,
)

LOSS = rugged()
CURVATURE = 4.0


def exact_heat_gradient(x: Array, gamma: float) -> Array:
    """Of ``rugged``: a Gaussian of variance γ damps sin kx by exp(-k²γ/2)."""
    damped = [a * np.exp(-(k**2) * gamma / 2) for a, k in ((2.4, 4), (2.25, 9))]
    return np.asarray(0.3 * (x - 1) + damped[0] * np.cos(4 * x) + damped[1] * np.cos(9 * x + 1))


def measure() -> Numbers:
    """Minima of both, gradients on a quadratic, and the limit in which they are the same."""
    grid = Grid.uniform((LOSS.low, LOSS.high, 1801))
    x = grid.axes[0]
    minima = []
    for gamma in (0.05, 0.2, 0.6):
        h, u = heat(LOSS.f, grid, gamma), viscous(LOSS.f, grid, gamma)
        minima.append(
            {
                "gamma": gamma,
                "heat": float(x[h.u.argmin()]),
                "entropy": float(x[u.u.argmin()]),
                # Each by a second way: damped sines, and ∇f averaged under the weight (13).
                "heat_error": float(np.abs(h.gradient[0] - exact_heat_gradient(x, gamma)).max()),
                "entropy_error": float(np.abs(u.gradient[0] - gibbs_average(LOSS.gradient, LOSS.f, grid, gamma)).max()),
                "difference": float(np.abs(h.gradient - u.gradient).max()),
            }
        )
    f = grid.values(LOSS.f)
    # The same Gaussian, √(δγ) wide, and ever larger δ: -δ log E e^{-f/δ} → E f.
    deviations = []
    viscosities = [4.0, 8.0, 16.0, 32.0, 64.0]
    reference = heat(LOSS.f, grid, 0.2).u
    for viscosity in viscosities:
        deviations.append(float(np.abs(viscous(LOSS.f, grid, 0.2 / viscosity, viscosity).u - reference).max()))
    slopes = []
    bowl, narrow = quadratic(CURVATURE), Grid.uniform((-1, 1, 201))
    for gamma in (0.05, 0.2, 0.6):
        one = int(np.argmin(np.abs(narrow.axes[0] - 1)))
        slopes.append(
            {
                "gamma": gamma,
                "heat": float(heat(bowl.f, narrow, gamma).gradient[0][one]),
                "entropy": float(viscous(bowl.f, narrow, gamma).gradient[0][one]),
                "exact": CURVATURE / (1 + CURVATURE * gamma),
            }
        )
    return {
        "minima": minima,
        "place": float(x[f.argmin()]),
        "slopes": slopes,
        "viscosity": viscosities,
        "deviation": deviations,
        "rate": fitted_slope(viscosities[1:], deviations[1:]),
        "x": floats(x[::12]),
        "heat_gradient": floats(heat(LOSS.f, grid, 0.2).gradient[0][::12]),
        "entropy_gradient": floats(viscous(LOSS.f, grid, 0.2).gradient[0][::12]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    left.plot(n["x"], n["heat_gradient"], **RED, label="heat")
    left.plot(n["x"], n["entropy_gradient"], **BLACK, label="local entropy")
    left.set(xlabel="x", title="gradients, γ = 0.2")
    legend(left)
    right.loglog(n["viscosity"], n["deviation"], marker="o", **BLACK, label=f"slope {n['rate']:.2f}")
    right.loglog(
        n["viscosity"], [n["deviation"][-1] * n["viscosity"][-1] / d for d in n["viscosity"]], **GREEN, label="−1"
    )
    right.set(xlabel="viscosity δ, with δγ = 0.2", ylabel="largest |u − heat|", title="the limit of large δ")
    ticks_at(right, n["viscosity"])
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    minima = [
        [f"{m['gamma']:g}", f"{m['heat']:.3f}", f"{m['entropy']:.3f}", f"{m['difference']:.2f}"] for m in n["minima"]
    ]
    slopes = [[f"{s['gamma']:g}", f"{s['heat']:.4f}", f"{s['entropy']:.4f}"] for s in n["slopes"]]
    return (
        f"f = {LOSS.formula}, minimal at {n['place']:.3f}. Where the two smoothed losses are minimal, and how far "
        "their gradients differ at most:\n\n"
        + table(["γ", "heat: minimum at", "local entropy: minimum at", "largest difference of gradients"], minima)
        + "\n\nThe heat equation's gradients agree with sines damped by exp(−k²γ/2) to "
        f"{max(m['heat_error'] for m in n['minima']):.0e}, local entropy's with averages of ∇f under (13) to "
        f"{max(m['entropy_error'] for m in n['minima']):.0e}."
        + f"\n\nOn a quadratic of curvature {CURVATURE:g} the heat equation changes no gradient; local entropy "
        "lowers it to ax/(1 + aγ), so that steep directions allow larger steps. Gradients at x = 1:\n\n"
        + table(["γ", "heat", "local entropy"], slopes)
        + "\n\nThe extra drift ∇f(x − y) in (20) is the weight exp(−f/δ). It fades as δ grows: with the same Gaussian, "
        f"δγ = 0.2, the largest difference of the two falls like δ to the power {n['rate']:.2f} (expected: −1)."
    )


STATEMENT = Statement("section_4_2", "Section 4.2: the heat equation and local entropy", measure, draw, tell)
