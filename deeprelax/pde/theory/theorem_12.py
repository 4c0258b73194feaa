"""Theorem 12: SGD with the optimal control ends lower than SGD, by at least what the control costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.linalg import expm

from deeprelax.pde.finite_differences import hamilton_jacobi_bellman
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import Estimate
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
)

LOSS = tilted_well(0.15)
STRENGTH = 3.0  # V = 3f: what is paid at the end
START, TIME, STEP = 1.2, 2.0, 0.005
RANGE = (-2.8, 2.8)


def terminal(x: Array) -> Array:
    """V."""
    return STRENGTH * LOSS.f(x)


def exact_values(nodes: int = 561) -> tuple[float, float]:
    """u and v at (START, 0) without finite differences: u = -log E exp(-V(x_sgd)), v = E V(x_sgd).

    exp(-u) solves the linear backward equation, the adjoint of (FP): its matrix exponential is taken.
    """
    grid = Grid.uniform((*RANGE, nodes))
    backward = FokkerPlanck(LOSS.f, grid).generator.T
    ends = np.stack([np.exp(-terminal(grid.axes[0])), terminal(grid.axes[0])], axis=1)
    values = expm(TIME * backward.toarray()) @ ends
    at = [float(np.interp(START, grid.axes[0], column)) for column in values.T]
    return -float(np.log(at[0])), at[1]


def measure(paths: int = 20_000) -> Numbers:
    """u and v by (HJB) under refinement, and both sides of the inequality by paths under the control (24)."""
    exact_u, exact_v = exact_values()
    spacings, us, vs = [], [], []
    for nodes in (141, 281, 561):
        grid = Grid.uniform((*RANGE, nodes))
        solved = hamilton_jacobi_bellman([LOSS.gradient], terminal, grid, TIME)
        plain = hamilton_jacobi_bellman([LOSS.gradient], terminal, grid, TIME, controlled=False)
        spacings.append(grid.spacing[0])
        us.append(float(np.interp(START, grid.axes[0], solved.u[-1])))
        vs.append(float(np.interp(START, grid.axes[0], plain.u[-1])))
    x, control = grid.axes[0], solved.gradient(grid)[:, 0]
    rng = np.random.default_rng(0)
    controlled, free, spent = np.full(paths, START), np.full(paths, START), np.zeros(paths)
    steps = round(TIME / STEP)
    for k in range(steps):
        left = int(np.searchsorted(solved.times, TIME - k * STEP))
        alpha = np.interp(controlled, x, control[min(left, len(control) - 1)])
        noise = np.sqrt(STEP) * rng.standard_normal(paths)  # the same for both: it is the difference that counts
        spent += STEP * alpha**2 / 2
        controlled = controlled - STEP * (LOSS.gradient(controlled) + alpha) + noise
        free = free - STEP * LOSS.gradient(free) + noise
    ends = {
        "csgd": Estimate.of(terminal(controlled)),
        "sgd": Estimate.of(terminal(free)),
        "spent": Estimate.of(spent),
        "cost": Estimate.of(terminal(controlled) + spent),
        "margin": Estimate.of(terminal(free) - spent - terminal(controlled)),
    }
    edges = np.linspace(*RANGE, 57)
    return {
        "exact_u": exact_u,
        "exact_v": exact_v,
        "spacing": spacings,
        "u": us,
        "v": vs,
        "u_order": fitted_slope(spacings, [abs(u - exact_u) for u in us]),
        "v_order": fitted_slope(spacings, [abs(v - exact_v) for v in vs]),
        **{name: e.mean for name, e in ends.items()},
        **{f"{name}_error": e.error for name, e in ends.items()},
        "paths": paths,
        "x": floats(x[::5]),
        "v_curve": floats(plain.u[-1][::5]),
        "u_curve": floats(solved.u[-1][::5]),
        "centres": floats((edges[1:] + edges[:-1]) / 2),
        "csgd_density": floats(np.histogram(controlled, edges, density=True)[0]),
        "sgd_density": floats(np.histogram(free, edges, density=True)[0]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    left, right = axes
    left.plot(n["x"], n["v_curve"], **BLACK, label="v: SGD")
    left.plot(n["x"], n["u_curve"], **RED, label="u: with control, cost included")
    left.plot(n["x"], terminal(np.asarray(n["x"])), **GREEN, label="V")
    left.set(xlabel="x at the beginning", xlim=(-2.2, 2.2), ylim=(-1, 3), title="expected costs")
    legend(left)
    right.step(n["centres"], n["sgd_density"], where="mid", **BLACK, label="SGD")
    right.step(n["centres"], n["csgd_density"], where="mid", **RED, label="CSGD")
    right.set(xlabel=f"x({TIME:g}), from x(0) = {START:g}", title="densities at the end")
    legend(right)


def tell(n: Numbers) -> str:
    rows = [
        [f"{h:.3f}", f"{u:.4f}", f"{v:.4f}"] for h, u, v in zip(n["spacing"], n["u"], n["v"])
    ] + [["exact", f"{n['exact_u']:.4f}", f"{n['exact_v']:.4f}"]]  # fmt: skip
    right = n["sgd"] - n["spent"]
    return (
        f"f = {LOSS.formula}, V = {STRENGTH:g}f, x(0) = {START:g}, {TIME:g} units of time. The value u of (HJB) and "
        "v = E V(x_sgd) by monotone finite differences, and by another way (u = −log E exp(−V(x_sgd)), from the "
        f"exponential of (FP)'s matrix); order {n['u_order']:.2f} and {n['v_order']:.2f} (expected: 1):\n\n"
        + table(["spacing", "u", "v"], rows)
        + f"\n\n{n['paths']:,} paths with and without the control α* = ∇u, on the same noise (± standard error):\n\n"
        + table(
            ["E V(x_csgd)", "E V(x_sgd)", "½E∫α*²", "right-hand side", "right − left"],
            [
                [
                    f"{n['csgd']:.4f} ± {n['csgd_error']:.4f}",
                    f"{n['sgd']:.4f} ± {n['sgd_error']:.4f}",
                    f"{n['spent']:.4f} ± {n['spent_error']:.4f}",
                    f"{right:.4f}",
                    f"{n['margin']:.4f} ± {n['margin_error']:.4f}",
                ]
            ],
        )
        + f"\n\nThe inequality holds by {n['margin'] / n['margin_error']:.0f} standard errors. E V(x_csgd) + ½E∫α*² is "
        f"{n['cost']:.4f} ± {n['cost_error']:.4f}, and u is {n['exact_u']:.4f}: the control is the optimal one. "
        "(u = −log E exp(−V) ≤ E V = v is also Jensen's inequality.)"
    )


STATEMENT = Statement("theorem_12", "Theorem 12: improvement by control", measure, draw, tell)
