"""Lemmas 2 and 3: local entropy solves the viscous Hamilton-Jacobi equation, and its gradient is an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from deeprelax import EntropySGD
from deeprelax.pde.finite_differences import hamilton_jacobi
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.smoothing import gibbs_average, viscous
from deeprelax.pde.theory.statement import (
    BLACK,
    MARKERS,
    STYLES,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    legend,
    table,
    ticks_at,
)

LOSS = tilted_well(0.15)
GAMMA = 0.5


def optimizer_average(
    gradient: Callable[[Any], Any],
    x: Array,
    gamma: float,
    temperature: float,
    chains: int,
    step: float,
    time: float,
    seed: int,
) -> Array:
    """(x - z)/γ of ``EntropySGD`` after ``time`` in its inner loop, a row of chains for each x: (len(x), chains).

    One optimizer over one tensor: every element is a chain of its own. z averages over 10 steps of length 0.04.
    """
    start = torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1).repeat(1, chains)
    p = torch.nn.Parameter(start.clone())
    steps = round(time / step)
    opt = EntropySGD(
        [p], inner_lr=step, gamma=gamma, temperature=temperature, alpha=0.9 ** (step / 0.04), inner_steps=steps + 1,
        seed=seed,
    )  # fmt: skip
    for _ in range(steps):
        p.grad = gradient(p.detach())
        opt.step()
    return np.asarray((start - opt.state[p]["z"]) / gamma)


def measure(chains: int = 8192) -> Numbers:
    """Finite differences against Hopf-Cole, (11) against differences of u and (13), and the optimizer's average."""
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
    x = np.linspace(-1.8, 1.8, 7)
    points, optimizer = Grid.uniform((-1.8, 1.8, 7)), []
    for seed, temperature in enumerate((0.5, 1.0, 2.0)):
        arguments = (LOSS.gradient, x, GAMMA, temperature, chains)
        coarse = optimizer_average(*arguments, step=0.04, time=8.0, seed=10 + seed)
        fine = optimizer_average(*arguments, step=0.02, time=8.0, seed=20 + seed)
        # The chain's stationary density is off by a multiple of its step: extrapolate to step 0.
        error = np.sqrt(4 * fine.var(1, ddof=1) + coarse.var(1, ddof=1)) / np.sqrt(chains)
        fine_grid = Grid.uniform((-1.8, 1.8, 601))
        every = (len(fine_grid.axes[0]) - 1) // (len(x) - 1)
        optimizer.append(
            {
                "temperature": temperature,
                "mean": floats(2 * fine.mean(1) - coarse.mean(1)),
                "error": floats(error),
                "exact": floats(viscous(LOSS.f, fine_grid, GAMMA, temperature / 2).gradient[0][::every]),
                "curve": floats(viscous(LOSS.f, fine_grid, GAMMA, temperature / 2).gradient[0][::10]),
            }
        )
    return {
        "spacing": spacings,
        "u_error": u_errors,
        "u_order": fitted_slope(spacings[1:], u_errors[1:]),
        "slope_error": slope_errors,
        "slope_order": fitted_slope(spacings[1:], slope_errors[1:]),
        "eq_13_minus_eq_11": float(np.abs(by_force - smooth.gradient[0]).max()),
        "x": floats(points.axes[0]),
        "curve_x": floats(np.linspace(-1.8, 1.8, 61)),
        "chains": chains,
        "optimizer": optimizer,
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    left, right = axes
    left.loglog(n["spacing"], n["u_error"], marker="o", **BLACK, label=f"u, order {n['u_order']:.2f}")
    left.loglog(n["spacing"], n["slope_error"], marker="s", **STYLES[1], label=f"∇u, order {n['slope_order']:.2f}")
    left.set(xlabel="spacing", ylabel="largest error", title="finite differences − Hopf-Cole")
    ticks_at(left, n["spacing"])
    legend(left)
    for style, marker, o in zip(STYLES, MARKERS, n["optimizer"]):
        right.plot(n["curve_x"], o["curve"], **style, linewidth=1)
        label = f"temperature {o['temperature']:g}"
        right.plot(n["x"], o["mean"], marker=marker, color=style["color"], linestyle="", mfc="none", label=label)
    right.set(xlabel="x", title="(x − z)/γ of EntropySGD, and ∇u (lines)")
    legend(right)


def tell(n: Numbers) -> str:
    rows = [
        [
            f"{o['temperature']:g}",
            f"{o['temperature'] / 2:g}",
            f"{max(abs(m - e) for m, e in zip(o['mean'], o['exact'])):.4f}",
            f"{max(o['error']):.4f}",
            f"{max(abs(m - e) / s for m, e, s in zip(o['mean'], o['exact'], o['error'])):.1f}",
        ]
        for o in n["optimizer"]
    ]
    heads = ["temperature", "δ", "largest difference", "its standard error", "largest in standard errors"]
    return (
        f"Local entropy by Hopf-Cole and (viscous HJ) by monotone finite differences, f = {LOSS.formula}, γ = {GAMMA}: "
        f"the largest difference on [−2, 2] falls from {n['u_error'][0]:.3f} to {n['u_error'][-1]:.4f} as the spacing "
        f"falls from {n['spacing'][0]:g} to {n['spacing'][-1]:g}, with order {n['u_order']:.2f} (expected: 1). The "
        f"average (11) and central differences of u agree with order {n['slope_order']:.2f} (expected: 2), and the "
        f"averages (11) and (13) to {n['eq_13_minus_eq_11']:.0e}.\n\n"
        "The average that the fused kernel computes: (x − z)/γ of `EntropySGD` over "
        f"{n['chains']:,} chains for each of {len(n['x'])} points, extrapolated to `inner_lr` = 0, against ∇u of "
        "viscosity δ = temperature/2:\n\n" + table(heads, rows)
    )


STATEMENT = Statement("lemma_2", "Lemmas 2 and 3: local entropy and its gradient", measure, draw, tell)
