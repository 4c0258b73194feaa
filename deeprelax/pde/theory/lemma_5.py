"""Lemma 5 and Remarks 7 and 8: the gradient of Hopf-Lax, the proximal point and backward Euler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.hopf_lax import non_viscous, proximal_points
from deeprelax.pde.losses import rugged, tilted_well
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.statement import (
    BLACK,
    BLUE,
    RED,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    legend,
    table,
    ticks_at,
)

LOSS = tilted_well(0.0)
GAMMAS = (0.3, 3.0)
# For γ > 1 the point 0 has two proximal points, and u a kink there.
KINK, EDGE = 0.3, 2.5


def envelope_errors(gamma: float, nodes: int) -> Numbers:
    """Largest differences from ∇f at the proximal point away from the kink, on a grid of [-3, 3], and their bounds."""
    grid = Grid.uniform((-3, 3, nodes))
    x, h = grid.axes[0], grid.spacing[0]
    envelope = non_viscous(LOSS.f, grid, gamma)
    gradient, point = envelope.gradient[0], envelope.point[0]
    exact = quartic_well(x, gamma)[1]
    inner = (np.abs(x) >= KINK) & (np.abs(x) <= EDGE)
    steepest = 1 / gamma + float(LOSS.curvature(np.abs(exact[inner]).max() + h))

    def largest(a: Array, b: Array) -> float:
        return float(np.abs(a - b)[inner].max())

    return {
        "spacing": h,
        # The nearest node is h/2 away at most.
        "gradient_minus_force": largest(gradient, LOSS.gradient(point)),
        "bound": steepest * h / 2,
        "gradient_minus_exact_force": largest(gradient, LOSS.gradient(exact)),
        "exact_bound": h / (2 * gamma),
        "slope_minus_exact_force": largest(np.gradient(envelope.u, h), LOSS.gradient(exact)),
    }


def backward_euler(x: float, gamma: float) -> Array:
    """All real solutions of y + γ∇f(y) = x, the lowest value of (HL) first."""
    roots = np.roots([gamma, 0, 1 - gamma, -x])
    real = roots[np.abs(roots.imag) < 1e-9].real
    return np.asarray(sorted(real, key=lambda y: float(LOSS.f(y) + (x - y) ** 2 / (2 * gamma))))


def measure() -> Numbers:
    """The envelope's gradient under refinement, proximal points against backward Euler, minima before and after."""
    grid = Grid.uniform((-3, 3, 1201))
    lemma = []
    for gamma in GAMMAS:
        xs = np.linspace(-EDGE, EDGE, 20)  # not 0
        points = np.asarray([proximal_points(LOSS.f, x, gamma, grid)[0, 0] for x in xs])
        solutions = [backward_euler(x, gamma) for x in xs]
        refined = [envelope_errors(gamma, nodes) for nodes in (301, 601, 1201, 2401)]
        curve = np.linspace(-1.9, 1.9, 96)
        lemma.append(
            {
                "gamma": gamma,
                "refined": refined,
                "order": fitted_slope([e["spacing"] for e in refined], [e["gradient_minus_force"] for e in refined]),
                "force_minus_gradient": float(np.abs((xs - points) / gamma - LOSS.gradient(points)).max()),
                "prox_minus_backward_euler": float(max(abs(s[0] - y) for s, y in zip(solutions, points))),
                "solutions_of_backward_euler": max(len(s) for s in solutions),
                "minimisers_at_0": floats(proximal_points(LOSS.f, 0.0, gamma, grid)),
                "xs": floats(xs),
                "points": floats(points),
                "curve_y": floats(curve),
                "curve_x": floats(curve + gamma * LOSS.gradient(curve)),
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
        "value": float(f.min()),
        "place": float(wide.axes[0][f.argmin()]),
        "minima": minima,
        "picture_x": floats(wide.axes[0][::12]),
        "picture_f": floats(f[::12]),
        "picture_non_viscous": floats(non_viscous(loss.f, wide, 0.5).u[::12]),
        "picture_viscous": floats(viscous(loss.f, wide, 0.5).u[::12]),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, middle, right = axes
    for m, style, marker in zip(n["lemma"], (BLACK, RED), "os"):
        spacing = [e["spacing"] for e in m["refined"]]
        left.loglog(spacing, [e["gradient_minus_force"] for e in m["refined"]], marker=marker, mfc="none", **style,
                    label=f"|∇u − ∇f(y*)|, γ = {m['gamma']:g}")  # fmt: skip
        left.loglog(spacing, [e["bound"] for e in m["refined"]], color="0.6", linewidth=1,
                    label="bounds" if marker == "s" else None)  # fmt: skip
        middle.plot(m["curve_x"], m["curve_y"], **style, linewidth=1, label=f"y + γ∇f(y) = x, γ = {m['gamma']:g}")
        middle.plot(m["xs"], m["points"], marker, color=style["color"], mfc="none", ms=4,
                    label=f"proximal point, γ = {m['gamma']:g}")  # fmt: skip
    left.set(xlabel="spacing", title=f"Lemma 5, {KINK} ≤ |x| ≤ {EDGE}")
    ticks_at(left, spacing)
    legend(left)
    middle.set(xlabel="x", ylabel="y", xlim=(-2.6, 2.6), ylim=(-2, 3.4), title="Remark 8: backward Euler")
    legend(middle)
    right.plot(n["picture_x"], n["picture_f"], **BLACK, linewidth=1, label="f")
    right.plot(n["picture_x"], n["picture_non_viscous"], **BLUE, label="non-viscous")
    right.plot(n["picture_x"], n["picture_viscous"], **RED, label="viscous")
    right.plot([n["place"]], [n["value"]], "k*", ms=10)
    right.set(xlabel="x", title="γ = 0.5; the star: f's minimum")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    heads = ["γ", "(x − y*)/γ − ∇f(y*)", "prox − backward Euler", "solutions of it", "prox of 0"]
    rows = [
        [
            f"{m['gamma']:g}",
            f"{m['force_minus_gradient']:.0e}",
            f"{m['prox_minus_backward_euler']:.0e}",
            str(m["solutions_of_backward_euler"]),
            ", ".join(f"{y:.4f}" for y in m["minimisers_at_0"]),
        ]
        for m in n["lemma"]
    ]
    refined = [
        [f"{m['gamma']:g}", f"{e['spacing']:g}"]
        + [f"{e[k]:.4f}" for k in ("gradient_minus_force", "bound", "gradient_minus_exact_force", "exact_bound")]
        + [f"{e['slope_minus_exact_force']:.4f}"]
        for m in n["lemma"]
        for e in m["refined"]
    ]
    orders = " and ".join(f"{m['order']:.2f}" for m in n["lemma"])
    minima = [
        [f"{m['gamma']:g}"]
        + [f"{m[k]:.4f}" for k in ("value", "place", "viscous_value", "viscous_place")]
        for m in n["minima"]
    ]  # fmt: skip
    return (
        f"f = {LOSS.formula}. ∇u of `deeprelax.pde.non_viscous`, its largest difference from ∇f at the proximal point "
        f"y* that it names (a node) and at the exact one, and differences of its u, over {KINK} ≤ |x| ≤ {EDGE} (for γ "
        f"> 1, u has a kink at 0). The first falls with order {orders} (expected: 1), below (1/γ + max|∇²f|)/2 times "
        "the spacing:\n\n"
        + table(["γ", "spacing", "∇u − ∇f(y*)", "bound", "∇u − ∇f(exact y*)", "bound", "Δu/Δx − ∇f(exact y*)"], refined)
        + "\n\nBeyond the grid's resolution (`proximal_points`), the largest differences over 20 points from the "
        "solution of backward Euler with the lowest value of (HL), and the set of minimisers (15) at x = 0:\n\n"
        + table(heads, rows)
        + "\n\n"
        f"The minimum of {rugged().formula} is {n['value']:.4f} at {n['place']:.4f}. Non-viscous smoothing leaves its "
        "value and place; viscous smoothing (δ = 1) changes both:\n\n"
        + table(["γ", "non-viscous: value", "place", "viscous: value", "place"], minima)
    )


STATEMENT = Statement(
    "lemma_5", "Lemma 5, Remarks 7 and 8: Hopf-Lax and the proximal point", measure, draw, tell, panels=3
)
