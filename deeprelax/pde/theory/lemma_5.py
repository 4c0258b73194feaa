"""Lemma 5 and Remarks 6 to 8: the Hopf-Lax formula, its fixed point iteration and the proximal point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.hopf_lax import non_viscous, proximal_points
from deeprelax.pde.losses import rugged, tilted_well
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.statement import BLACK, BLUE, RED, Numbers, Statement, floats, legend, table

LOSS = tilted_well(0.0)
GAMMAS = (0.3, 3.0)
ALPHA = 0.75  # of section 6.2
STEPS = 400


def iterate(x: float, gamma: float, p: float, alpha: float) -> Array:
    """p ← αp + (1 - α)∇f(x - γp), the iteration (17) for α = 0: ``STEPS`` iterates, nan once they have run away."""
    found = []
    for _ in range(STEPS):
        p = alpha * p + (1 - alpha) * float(LOSS.gradient(x - gamma * p)) if abs(p) < 1e6 else float("nan")
        found.append(p)
    return np.asarray(found)


def measure() -> Numbers:
    """Gradients at proximal points, backward Euler, the iteration (17) at many γ, minima before and after."""
    grid = Grid.uniform((-3, 3, 1201))
    lemma = []
    for gamma in GAMMAS:
        xs = np.linspace(-2.5, 2.5, 20)  # not 0, where both wells give a proximal point
        points = np.asarray([proximal_points(LOSS.f, x, gamma, grid)[0, 0] for x in xs])
        h = 1e-4
        slope = (quartic_well(xs + h, gamma)[0] - quartic_well(xs - h, gamma)[0]) / (2 * h)
        roots = [np.roots([gamma, 0, 1 - gamma, -x]) for x in xs]  # of y + γ∇f(y) = x
        real = [np.sort(r[np.abs(r.imag) < 1e-9].real) for r in roots]
        lemma.append(
            {
                "gamma": gamma,
                "force_minus_gradient": float(np.abs((xs - points) / gamma - LOSS.gradient(points)).max()),
                "slope_of_u_minus_gradient": float(np.abs(slope - LOSS.gradient(points)).max()),
                "prox_minus_backward_euler": float(max(np.abs(r - y).min() for r, y in zip(real, points))),
                "solutions_of_backward_euler": max(len(r) for r in real),
                "minimisers_at_0": floats(proximal_points(LOSS.f, 0.0, gamma, grid)),
            }
        )
    x = 1.5
    iterations = []
    for gamma in floats(np.linspace(0.05, 1.6, 32)):
        point = float(quartic_well(np.asarray(x), gamma)[1])
        p = (x - point) / gamma
        found = {alpha: np.abs(iterate(x, gamma, p + 1e-3, alpha) - p) for alpha in (0.0, ALPHA)}
        iterations.append(
            {
                "gamma_curvature": gamma * float(LOSS.curvature(point)),
                "error": float(np.nan_to_num(found[0.0][-1], nan=1e6)),
                "first_ratio": float(found[0.0][0] / 1e-3),
                "damped_error": float(np.nan_to_num(found[ALPHA][-1], nan=1e6)),
            }
        )
    loss, wide = rugged(), Grid.uniform((-4, 5, 1801))
    f = wide.values(loss.f)
    minima = []
    for gamma in (0.1, 0.5, 2.0):
        u, v = non_viscous(loss.f, wide, gamma).u, viscous(loss.f, wide, gamma).u
        minima.append(
            {
                "gamma": gamma,
                "value": float(u.min()),
                "place": float(wide.axes[0][u.argmin()]),
                "viscous_value": float(v.min()),
                "viscous_place": float(wide.axes[0][v.argmin()]),
            }
        )
    return {
        "lemma": lemma,
        "x": x,
        "iterations": iterations,
        "value": float(f.min()),
        "place": float(wide.axes[0][f.argmin()]),
        "minima": minima,
        "picture_x": floats(wide.axes[0][::12]),
        "picture_f": floats(f[::12]),
        "picture_non_viscous": floats(non_viscous(loss.f, wide, 0.5).u[::12]),
        "picture_viscous": floats(viscous(loss.f, wide, 0.5).u[::12]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    left, right = axes
    curvature = [i["gamma_curvature"] for i in n["iterations"]]
    left.semilogy(curvature, [max(i["error"], 1e-17) for i in n["iterations"]], marker="o", **BLACK, ms=3, label="(17)")
    damped = [max(i["damped_error"], 1e-17) for i in n["iterations"]]
    left.semilogy(curvature, damped, marker="s", **RED, ms=3, label=f"damped, α = {ALPHA}")
    left.axvline(1, color="0.6", linewidth=1)
    left.set(xlabel="γ ∇²f at the proximal point", ylabel=f"|p − p*| after {STEPS} iterations", title="Remark 6")
    legend(left)
    right.plot(n["picture_x"], n["picture_f"], **BLACK, linewidth=1, label="f")
    right.plot(n["picture_x"], n["picture_non_viscous"], **BLUE, label="non-viscous")
    right.plot(n["picture_x"], n["picture_viscous"], **RED, label="viscous")
    right.plot([n["place"]], [n["value"]], "k*", ms=10)
    right.set(xlabel="x", title="γ = 0.5; the star is f's minimum")
    legend(right)


def tell(n: Numbers) -> str:
    heads = ["γ", "(x − y*)/γ − ∇f(y*)", "∇u − ∇f(y*)", "prox − backward Euler", "solutions of it", "prox of 0"]
    rows = [
        [
            f"{m['gamma']:g}",
            f"{m['force_minus_gradient']:.0e}",
            f"{m['slope_of_u_minus_gradient']:.0e}",
            f"{m['prox_minus_backward_euler']:.0e}",
            str(m["solutions_of_backward_euler"]),
            ", ".join(f"{y:.4f}" for y in m["minimisers_at_0"]),
        ]
        for m in n["lemma"]
    ]
    inside = [i for i in n["iterations"] if i["gamma_curvature"] < 0.9]
    outside = [i for i in n["iterations"] if i["gamma_curvature"] > 1.1]
    minima = [
        [f"{m['gamma']:g}"]
        + [f"{m[k]:.4f}" for k in ("value", "place", "viscous_value", "viscous_place")]
        for m in n["minima"]
    ]  # fmt: skip
    return (
        f"f = {LOSS.formula}; the largest differences over 20 points, and the set of minimisers (15) at x = 0:\n\n"
        + table(heads, rows)
        + "\n\nThe iteration (17) from p* + 10⁻³ at x = "
        + f"{n['x']:g}: where γ|∇²f| < 0.9 its error after {STEPS} steps is at most "
        f"{max(i['error'] for i in inside):.0e}, where γ|∇²f| > 1.1 at least "
        f"{min(i['error'] for i in outside):.2g}: it has been thrown out to a cycle or to infinity. The damped "
        f"iteration of section 6.2 converges as long as γ∇²f < (1 + α)/(1 − α) = {(1 + ALPHA) / (1 - ALPHA):g}.\n\n"
        f"The minimum of {rugged().formula} is {n['value']:.4f} at {n['place']:.4f}. Non-viscous smoothing leaves its "
        "value and place; viscous smoothing (δ = 1) changes both:\n\n"
        + table(["γ", "non-viscous: value", "place", "viscous: value", "place"], minima)
    )


STATEMENT = Statement("lemma_5", "Lemma 5, Remarks 6 to 8: Hopf-Lax and the proximal point", measure, draw, tell)
