"""Theorem 9: the two-scale system (19) approaches gradient descent on the smoothed loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline

from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import Estimate, langevin, two_scales
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.fitted import fitted_viscosity, pooled
from deeprelax.pde.theory.statement import (
    BLACK,
    BLUE,
    GREEN,
    MARKERS,
    RED,
    Numbers,
    Statement,
    fitted_slope,
    floats,
    interval,
    legend,
    table,
    ticks_at,
)

LOSS = tilted_well(0.15)
GAMMA = 0.5  # ∇²f + 1/γ ≥ 1: the density (12) has one mode for every x
START, TIME, RECORD = 1.8, 2.0, 20
GRID = Grid.uniform((-3, 3, 1201))


def smoothed_gradient(viscosity: float, gamma: float = GAMMA) -> CubicSpline:
    """∇u of that viscosity as a function of x."""
    return CubicSpline(GRID.axes[0], viscous(LOSS.f, GRID, gamma, viscosity).gradient[0])


def descent(viscosity: float, rate: float = 1.0) -> Array:
    """X of dX = -rate·∇u ds from START, at the recorded times."""
    gradient = smoothed_gradient(viscosity)
    times = np.linspace(0, TIME, RECORD + 1)[1:]
    solved = solve_ivp(lambda s, x: -rate * gradient(x), (0, TIME), [START], t_eval=times, rtol=1e-9, atol=1e-11)
    return np.asarray(solved.y[0])


def fast(x: Array, y: Array) -> Array:
    """g of (19)."""
    return -(LOSS.gradient(y) + (y - x) / GAMMA)


def mean_forces(points: Array, temperature: float, paths: int, seed: int) -> list[Estimate]:
    """The mean of (x - y)/γ over the fast variable, x held fixed: each path's average over the times from 8 to 32."""
    x = np.repeat(points[:, None], paths, axis=1)
    total, steps = np.zeros_like(x), 0

    def visit(time: float, y: Array) -> None:
        nonlocal steps
        if time > 8:
            total[:] += (x - y) / GAMMA
            steps += 1

    langevin(lambda y: -fast(x, y), x, 32.0, 0.05, temperature, np.random.default_rng(seed), visit)
    return [Estimate.of(row) for row in total / steps]


def extrapolated(coarse: Array, fine: Array) -> dict[str, list[float]]:
    """The paths' mean at ε = 0 from paths (times, paths) at 2ε and at ε, with its error; O(ε²) remains."""
    variance = 4 * fine.var(1, ddof=1) / fine.shape[1] + coarse.var(1, ddof=1) / coarse.shape[1]
    return {"mean": floats(2 * fine.mean(1) - coarse.mean(1)), "error": floats(np.sqrt(variance))}


def measure(paths: int = 6000, held: int = 2000) -> Numbers:
    """Distance of x(s) to X(s) over ε at T = 1; mean force of the fast variable over T at x held fixed."""
    exact = descent(0.5)
    epsilons = [0.16, 0.08, 0.04, 0.02]
    rms, trajectories, every_x = [], [], []
    for seed, epsilon in enumerate(epsilons):
        start = np.full(paths, START)
        _, _, x = two_scales(
            lambda x, y: -(x - y) / GAMMA, fast, start, start, epsilon, TIME, np.random.default_rng(seed), record=RECORD
        )
        every_x.append(x)
        rms.append(float(np.sqrt(((x - exact[:, None]) ** 2).mean())))
        trajectories.append(floats(x[:, 0]))
    points = np.linspace(-1.5, 1.5, 7)
    forces, every = [], []
    for seed, temperature in enumerate((0.5, 1.0, 2.0)):
        estimates = mean_forces(points, temperature, held, 10 + seed)
        mean, error = [e.mean for e in estimates], [e.error for e in estimates]
        every.append(fitted_viscosity(lambda delta: smoothed_gradient(delta)(points), mean, error, temperature / 2))
        forces.append(
            {
                "temperature": temperature,
                "mean": mean,
                "error": error,
                "half": floats(smoothed_gradient(temperature / 2)(points)),
                "full": floats(smoothed_gradient(temperature)(points)),
                "curve": floats(smoothed_gradient(temperature / 2)(np.linspace(-1.5, 1.5, 61))),
            }
        )
    return {
        "epsilon": epsilons,
        "rms": rms,
        "rate": fitted_slope(epsilons, rms),
        "times": floats(np.linspace(0, TIME, RECORD + 1)[1:]),
        "limit": floats(exact),
        "extrapolated": extrapolated(*every_x[-2:]),
        "printed_limit": floats(descent(1.0)),
        "paths": trajectories,
        "points": floats(points),
        "forces": forces,
        "fitted": pooled(every).mean,
        "fitted_error": pooled(every).error,
        "count": paths,
    }


def worst(force: Numbers, against: str) -> float:
    """The largest deviation from ``half`` (δ = T/2) or ``full`` (δ = T), in standard errors."""
    return float(max(abs(m - e) / s for m, e, s in zip(force["mean"], force[against], force["error"])))


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    left.loglog(n["epsilon"], n["rms"], marker="o", **BLACK, label=f"slope {n['rate']:.2f}")
    left.loglog(n["epsilon"], [n["rms"][0] * (e / n["epsilon"][0]) ** 0.5 for e in n["epsilon"]], **GREEN, label="½")
    left.set(xlabel="ε", ylabel="root mean square of x(s) − X(s)", title="approach to the limit, T = 1")
    ticks_at(left, n["epsilon"])
    legend(left)
    for style, marker, force in zip((BLACK, RED, BLUE), MARKERS, n["forces"]):
        right.plot(np.linspace(-1.5, 1.5, 61), force["curve"], **style, linewidth=1)
        label = f"T = {force['temperature']:g}, line: δ = {force['temperature'] / 2:g}"
        right.plot(n["points"], force["mean"], marker, color=style["color"], mfc="none", label=label)
    right.set(xlabel="x", title="mean of (x − y)/γ, and ∇u (lines)")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    rows = [
        [f"{f['temperature']:g}", f"{worst(f, 'half'):.1f}", f"{worst(f, 'full'):.1f}"] for f in n["forces"]
    ]  # fmt: skip
    gaps = [abs(m - x) for m, x in zip(n["extrapolated"]["mean"], n["limit"])]
    return (
        f"(19) with f = {LOSS.formula}, γ = {GAMMA}, from x = y = {START}, {n['count']:,} paths: the root mean square "
        f"distance of x(s) to the homogenised X(s) over 0 < s ≤ {TIME:g} falls from {n['rms'][0]:.3f} at ε = "
        f"{n['epsilon'][0]:g} to {n['rms'][-1]:.4f} at ε = {n['epsilon'][-1]:g}, like ε to the power {n['rate']:.2f} "
        f"(expected: ½, the fluctuations of a fast variable). Their mean, extrapolated from ε = {n['epsilon'][-2]:g} "
        f"and {n['epsilon'][-1]:g} to 0, is within {max(gaps):.4f} of X(s) (largest standard error: "
        f"{max(n['extrapolated']['error']):.4f}).\n\n"
        "Which X: with noise √T dW the fast variable has the density exp(−2(f + |x − y|²/2γ)/T), so the limit descends "
        "on u of viscosity δ = T/2. **The print is off by a factor of 2 here**: (19) has dW, T = 1, and so δ = ½, "
        "while Lemma 3's density (12) and local entropy (2) have δ = 1, which takes √2 dW. The mean of (x − y)/γ at 7 "
        "points held fixed deviates from ∇u by at most so many standard errors:\n\n"
        + table(["T", "from ∇u with δ = T/2", "from ∇u with δ = T"], rows)
        + "\n\nThe viscosity whose ∇u fits all of these means best is "
        f"{interval(n['fitted'], n['fitted_error'])} times T/2 [95 %]."
    )


STATEMENT = Statement("theorem_9", "Theorem 9: Entropy-SGD by homogenisation", measure, draw, tell)
