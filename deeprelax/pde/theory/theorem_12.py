"""Theorem 12: SGD with the optimal control ends lower than SGD, by at least what the control costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.linalg import expm

from deeprelax.pde.finite_differences import Evolution, hamilton_jacobi_bellman
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import Estimate
from deeprelax.pde.theory.controlled_paths import Costs, follow
from deeprelax.pde.theory.statement import (
    BLACK,
    CONFIDENCE,
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

LOSS = tilted_well(0.15)
STRENGTH = 3.0  # V = 3f: what is paid at the end
START, TIME = 1.2, 2.0
STARTS = (-1.2, -0.6, 0.0, 0.6, START)
SCALES = (0.65, 0.85, 1.15, 1.35)  # of the control
STEPS = 400  # and half as many, to extrapolate from
RANGE = (-2.8, 2.8)


def terminal(x: Array) -> Array:
    """V."""
    return STRENGTH * LOSS.f(x)


def exact_values(starts: Sequence[float] = STARTS, nodes: int = 561) -> tuple[list[float], list[float]]:
    """u and v at (start, 0) without finite differences: u = -log E exp(-V(x_sgd)), v = E V(x_sgd).

    exp(-u) solves the linear backward equation, the adjoint of (FP): its matrix exponential is taken.
    """
    grid = Grid.uniform((*RANGE, nodes))
    backward = FokkerPlanck(LOSS.f, grid).generator.T
    ends = np.stack([np.exp(-terminal(grid.axes[0])), terminal(grid.axes[0])], axis=1)
    u, v = (np.interp(starts, grid.axes[0], column) for column in (expm(TIME * backward.toarray()) @ ends).T)
    return floats(-np.log(u)), floats(v)


def by_paths(
    value: Evolution, grid: Grid, starts: Sequence[float], scales: Sequence[float], paths: int
) -> tuple[Costs, dict[str, Array]]:
    """Paths, and V(x(T)), ½∫α² and the cost without its martingale: in ``STEPS`` steps, in half as many (``coarse``),
    and, under the bare names, extrapolated to steps of length 0, path by path."""
    fine, coarse = (
        follow(value, LOSS.gradient, grid, starts, scales, paths, TIME, STEPS, every) for every in (1, 2)
    )  # fmt: skip
    each = []
    for c in (fine, coarse):
        end = terminal(c.end)
        each.append({"end": end, "spent": c.spent, "cost": end + c.spent - c.martingale})
    return fine, {name: 2 * each[0][name] - each[1][name] for name in each[0]} | {
        "fine_cost": each[0]["cost"],
        "coarse_cost": each[1]["cost"],
    }


def measure(paths: int = 6000) -> Numbers:
    """u and v by (HJB) under refinement; the inequality's sides by paths; what scaled controls cost."""
    exact_u, exact_v = exact_values()
    spacings, us, vs = [], [], []
    for nodes in (141, 281, 561):
        grid = Grid.uniform((*RANGE, nodes))
        solved = hamilton_jacobi_bellman([LOSS.gradient], terminal, grid, TIME)
        plain = hamilton_jacobi_bellman([LOSS.gradient], terminal, grid, TIME, controlled=False)
        spacings.append(grid.spacing[0])
        us.append(float(np.interp(START, grid.axes[0], solved.u[-1])))
        vs.append(float(np.interp(START, grid.axes[0], plain.u[-1])))
    controlled, csgd = by_paths(solved, grid, STARTS, [1.0] * len(STARTS), paths)
    free, sgd = by_paths(plain, grid, STARTS, [0.0] * len(STARTS), paths)
    _, scaled = by_paths(solved, grid, [START] * len(SCALES), SCALES, paths)
    samples = {
        "csgd": csgd["end"],
        "right": sgd["end"] - csgd["spent"],
        "sgd": sgd["end"],
        "spent": csgd["spent"],
        "cost": csgd["cost"],
        "fine_cost": csgd["fine_cost"],
        "coarse_cost": csgd["coarse_cost"],
        "sgd_cost": sgd["cost"],
        "sgd_fine_cost": sgd["fine_cost"],
        "sgd_coarse_cost": sgd["coarse_cost"],
        "margin": sgd["cost"] - csgd["cost"],
        "scaled_cost": scaled["cost"],
        "excess": scaled["cost"] - csgd["cost"][-1],  # from START, on the same noise
        "mistake": scaled["spent"] * ((1 - 1 / np.asarray(SCALES)) ** 2)[:, None],  # ½∫|α - α*|²
    }
    found: Numbers = {}
    for name, rows in samples.items():
        estimates = [Estimate.of(row) for row in rows]
        found[name] = [e.mean for e in estimates]
        found[f"{name}_error"] = [e.error for e in estimates]
    edges = np.linspace(*RANGE, 57)
    x = grid.axes[0]
    return {
        "starts": list(STARTS),
        "scales": list(SCALES),
        "exact_u": exact_u,
        "exact_v": exact_v,
        "spacing": spacings,
        "u": us,
        "v": vs,
        "u_order": fitted_slope(spacings, [abs(u - exact_u[-1]) for u in us]),
        "v_order": fitted_slope(spacings, [abs(v - exact_v[-1]) for v in vs]),
        **found,
        "paths": paths,
        "x": floats(x[::5]),
        "v_curve": floats(plain.u[-1][::5]),
        "u_curve": floats(solved.u[-1][::5]),
        "centres": floats((edges[1:] + edges[:-1]) / 2),
        "csgd_density": floats(np.histogram(controlled.end[-1], edges, density=True)[0]),
        "sgd_density": floats(np.histogram(free.end[-1], edges, density=True)[0]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    values, densities, sides, scales = axes
    values.plot(n["x"], n["v_curve"], **BLACK, label="v: SGD")
    values.plot(n["x"], n["u_curve"], **RED, label="u: with control, cost included")
    values.plot(n["x"], terminal(np.asarray(n["x"])), **GREEN, label="V")
    values.set(xlabel="x at the beginning", xlim=(-2.2, 2.2), ylim=(-1, 3), title="expected costs by (HJB)")
    legend(values)
    densities.step(n["centres"], n["sgd_density"], where="mid", **BLACK, label="SGD")
    densities.step(n["centres"], n["csgd_density"], where="mid", **RED, label="CSGD")
    densities.set(xlabel=f"x({TIME:g}), from x(0) = {START:g}", title="densities at the end")
    legend(densities)
    bars: Numbers = {"linestyle": "", "capsize": 4, "ms": 5, "mfc": "none"}
    for name, marker, style, label in (
        ("right", "s", BLACK, "E V(x_sgd) − ½E∫|α*|²"),
        ("csgd", "o", RED, "E V(x_csgd)"),
    ):
        halves = [CONFIDENCE * e for e in n[f"{name}_error"]]
        sides.errorbar(n["starts"], n[name], halves, fmt=marker, color=style["color"], label=label, **bars)
    for x, low, high in zip(n["starts"], n["csgd"], n["right"]):
        sides.plot([x, x], [low, high], color="0.6", linestyle=":", linewidth=1)
    sides.set(xlabel="x at the beginning", title="both sides by paths, 95 %", xticks=n["starts"])
    legend(sides)
    halves = [CONFIDENCE * e for e in n["excess_error"]]
    scales.errorbar(n["scales"], n["excess"], halves, fmt="o", color="k", label="measured, 95 %", **bars)
    c, mistake = zip(*sorted([*zip(n["scales"], n["mistake"]), (1.0, 0.0)]))
    scales.plot(c, mistake, **RED, label="½E∫(α − α*)²")
    scales.set(xlabel="α/α*", title=f"cost above that of α*, x(0) = {START:g}", xticks=c)
    legend(scales)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    by_pde = [
        [f"{h:.3f}", f"{u:.4f}", f"{v:.4f}"] for h, u, v in zip(n["spacing"], n["u"], n["v"])
    ] + [["exact", f"{n['exact_u'][-1]:.4f}", f"{n['exact_v'][-1]:.4f}"]]  # fmt: skip

    def shown(name: str, i: int) -> str:
        return interval(n[name][i], n[f"{name}_error"][i])

    sides = [
        [f"{x:g}", *(shown(name, i) for name in ("csgd", "sgd", "spent", "right", "margin"))]
        for i, x in enumerate(n["starts"])
    ]
    costs = [
        [f"{x:g}", shown("cost", i), f"{n['exact_u'][i]:.4f}", shown("sgd_cost", i), f"{n['exact_v'][i]:.4f}"]
        for i, x in enumerate(n["starts"])
    ]
    scaled = [
        [f"{c:g}", shown("scaled_cost", i), shown("excess", i), shown("mistake", i)] for i, c in enumerate(n["scales"])
    ]
    return (
        f"f = {LOSS.formula}, V = {STRENGTH:g}f, x(0) = {START:g}, {TIME:g} units of time. The value u of (HJB) and "
        "v = E V(x_sgd) by monotone finite differences, and by another way (u = −log E exp(−V(x_sgd)), from the "
        f"exponential of (FP)'s matrix); order {n['u_order']:.2f} and {n['v_order']:.2f} (expected: 1):\n\n"
        + table(["spacing", "u", "v"], by_pde)
        + f"\n\n{n['paths']:,} paths for each start, with the control α* = ∇u of the finest grid and without, on the "
        f"same noise, extrapolated from {STEPS} and {STEPS // 2} steps; [95 % confidence intervals]:\n\n"
        + table(["x(0)", "E V(x_csgd)", "E V(x_sgd)", "½E∫α*²", "right-hand side", "right − left"], sides)
        + "\n\nRight − left is from costs less the martingale ∫∇u·dW (∫∇v·dW for SGD), whose mean is 0; the "
        "inequality holds by "
        f"{min(m / e for m, e in zip(n['margin'], n['margin_error'])):.0f} standard errors at least. These costs "
        "themselves against u and v:\n\n"
        + table(["x(0)", "E V(x_csgd) + ½E∫α*²", "u", "E V(x_sgd)", "v"], costs)
        + "\n\nThe control is the optimal one: scaled, it costs more, by ½E∫(α − α*)² along its paths (x(0) = "
        f"{START:g}; α* itself costs {shown('cost', len(n['starts']) - 1)}):\n\n"
        + table(["α/α*", "cost", "more than α*, on the same noise", "½E∫(α − α*)²"], scaled)
        + "\n\n(u = −log E exp(−V) ≤ E V = v is also Jensen's inequality.)"
    )


STATEMENT = Statement("theorem_12", "Theorem 12: improvement by control", measure, draw, tell, panels=4)
