"""Lemma 2: local entropy solves the viscous Hamilton-Jacobi equation; its gradient by the formulas (11) and (13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.finite_differences import hamilton_jacobi
from deeprelax.pde.grid import Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.smoothing import gibbs_average, viscous
from deeprelax.pde.theory.statement import BLACK, RED, Numbers, Statement, fitted_slope, legend, ticks_at

LOSS = tilted_well(0.15)
GAMMA = 0.5


def measure() -> Numbers:
    """Finite differences against Hopf-Cole, and (11) against differences of u and (13)."""
    spacings, u_errors, slope_errors = [], [], []
    for nodes in (101, 201, 401, 801):
        grid = Grid.uniform((-4, 4, nodes))
        inner = np.abs(grid.axes[0]) <= 2  # the boundaries reflect; they are 2 away, 2.8 deviations of the Gaussian
        exact = viscous(LOSS.f, grid, GAMMA)
        u = hamilton_jacobi(LOSS.f, grid, GAMMA, viscosity=1.0).u[-1]
        h = grid.spacing[0]
        spacings.append(h)
        u_errors.append(float(np.abs(u - exact.u)[inner].max()))
        slope_errors.append(float(np.abs(np.gradient(exact.u, h) - exact.gradient[0])[inner].max()))
    grid = Grid.uniform((-2, 2, 401))
    by_force = gibbs_average(LOSS.gradient, LOSS.f, grid, GAMMA)
    smooth = viscous(LOSS.f, grid, GAMMA)
    return {
        "spacing": spacings,
        "u_error": u_errors,
        "u_order": fitted_slope(spacings[1:], u_errors[1:]),
        "slope_error": slope_errors,
        "slope_order": fitted_slope(spacings[1:], slope_errors[1:]),
        "eq_13_minus_eq_11": float(np.abs(by_force - smooth.gradient[0]).max()),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    (ax,) = axes
    ax.loglog(n["spacing"], n["u_error"], marker="o", **BLACK, label=f"u, order {n['u_order']:.2f}")
    ax.loglog(n["spacing"], n["slope_error"], marker="s", **RED, label=f"∇u, order {n['slope_order']:.2f}")
    ax.set(xlabel="spacing", ylabel="largest error", title="finite differences − Hopf-Cole")
    ticks_at(ax, n["spacing"])
    legend(ax)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    return (
        f"Local entropy by Hopf-Cole and (viscous HJ) by monotone finite differences, f = {LOSS.formula}, γ = {GAMMA}: "
        f"the largest difference on [−2, 2] falls from {n['u_error'][0]:.3f} to {n['u_error'][-1]:.4f} as the spacing "
        f"falls from {n['spacing'][0]:g} to {n['spacing'][-1]:g}, with order {n['u_order']:.2f} (expected: 1). Lemma "
        f"3's average (11) and central differences of u agree with order {n['slope_order']:.2f} (expected: 2), and the "
        f"averages (11) and (13) to {n['eq_13_minus_eq_11']:.0e}."
    )


STATEMENT = Statement("lemma_2", "Lemma 2: local entropy", measure, draw, tell, panels=1)
