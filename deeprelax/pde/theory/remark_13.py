"""Remark 13: SGD with the control ∇f_γ minimises f + f_γ, not f_γ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.closed_forms import normal_density
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import Estimate, langevin
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.linear import linear
from deeprelax.pde.theory.statement import BLACK, BLUE, RED, Numbers, Statement, floats, interval, legend, table

LOSS = tilted_well(0.15)
GAMMA, VISCOSITY, TEMPERATURE, START, TIME, STEP = 0.5, 1.0, 0.6, 0.8, 3.0, 0.01


GRID = Grid.uniform((-3.5, 3.5, 1401))
EDGES = np.linspace(-2.5, 2.5, 51)  # of the histogram's cells


def solved(potential: Array, temperature: float) -> tuple[Array, Array]:
    """The density at ``TIME`` by (FP), and the share of each of the histogram's cells."""
    x = GRID.axes[0]
    density = FokkerPlanck(potential, GRID, temperature).evolve(normal_density(x, START, 0.04), TIME, 1600)
    cumulative = np.concatenate([[0], np.cumsum(density) * GRID.cell])[:-1] + density * GRID.cell / 2
    return density, np.diff(np.interp(EDGES, x, cumulative))


def fitted_temperature(counts: Array, potential: Array, paths: int) -> Estimate:
    """The temperature over ``TEMPERATURE`` at which (FP) fits the histogram best, to first order."""
    share, change = solved(potential, TEMPERATURE)[1], 0.05
    hotter, colder = (solved(potential, (1 + sign * change) * TEMPERATURE)[1] for sign in (1, -1))
    kept = share * paths > 10
    slope, expected = (hotter - colder)[kept] / (2 * change) * paths, share[kept] * paths
    information = float((slope**2 / expected).sum())
    return Estimate(1 + float((slope * (counts[kept] / expected - 1)).sum()) / information, information**-0.5)


def measure(paths: int = 160_000) -> Numbers:
    """Minimisers, where (CSGD) without noise stops, its density with noise by paths and by (FP) for each potential."""
    x, f = GRID.axes[0], GRID.values(LOSS.f)
    smooth = viscous(LOSS.f, GRID, GAMMA, VISCOSITY)
    potentials = {"f": f, "f_gamma": smooth.u, "sum": f + smooth.u}

    def force(x: Array) -> Array:
        return np.asarray(LOSS.gradient(x) + linear(x, GRID, smooth.gradient[0]))

    stop = float(langevin(force, np.asarray([-0.9]), 20.0, 0.005, 0.0, np.random.default_rng(0))[0])
    start = np.random.default_rng(1).normal(START, 0.2, paths)
    end = langevin(force, start, TIME, STEP, TEMPERATURE, np.random.default_rng(2))
    counts = np.histogram(end, EDGES)[0]
    found: Numbers = {"distance": {}, "chi_squared": {}, "second_moment": {}, "minimum": {}, "density": {}}
    for name, potential in potentials.items():
        density, share = solved(potential, TEMPERATURE)
        expected = share * paths
        kept = expected > 10
        found["distance"][name] = float(np.abs(counts - expected).sum() / 2 / paths)
        found["chi_squared"][name] = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
        found["second_moment"][name] = float((x**2 * density).sum() * GRID.cell)
        found["minimum"][name] = float(x[potential.argmin()])
        found["density"][name] = floats(density[::7])
        if name == "sum":
            found["cells"] = int(kept.sum())
    square, fitted = Estimate.of(end**2), fitted_temperature(counts, potentials["sum"], paths)
    return {
        **found,
        "paths_second_moment": square.mean,
        "paths_second_moment_error": square.error,
        "fitted": fitted.mean,
        "fitted_error": fitted.error,
        "stop": stop,
        "paths": paths,
        "x": floats(x[::7]),
        "curves": {name: floats(p[::7]) for name, p in potentials.items()},
        "centres": floats((EDGES[1:] + EDGES[:-1]) / 2),
        "histogram": floats(counts / paths / (EDGES[1] - EDGES[0])),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    names = (("f", BLACK, "f"), ("f_gamma", BLUE, "$f_γ$"), ("sum", RED, "f + $f_γ$"))
    for name, style, label in names:
        left.plot(n["x"], n["curves"][name], **style, label=label)
        right.plot(n["x"], n["density"][name], **style, label=f"(FP) with {label}")
    left.plot([n["stop"]], [np.interp(n["stop"], n["x"], n["curves"]["sum"])], "k*", ms=9)
    left.set(xlabel="x", xlim=(-2.2, 2.2), ylim=(-0.5, 2.5), title="the star: where (CSGD) without noise stops")
    legend(left)
    right.plot(n["centres"], n["histogram"], "o", color="k", ms=3, label="paths of (CSGD)")
    right.set(xlabel="x", xlim=(-2.5, 2.5), title=f"densities at time {TIME:g}, T = {TEMPERATURE}")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    rows = [
        [label, f"{n['minimum'][name]:.3f}", f"{n['distance'][name]:.3f}", f"{n['second_moment'][name]:.4f}"]
        for name, label in (("f", "f"), ("f_gamma", "f_γ"), ("sum", "f + f_γ"))
    ]
    return (
        f"dx = −∇f ds − α ds + √T dW with α = ∇f_γ(x) of viscosity {VISCOSITY:g}, γ = {GAMMA:g}, T = "
        f"{TEMPERATURE:g}, f = {LOSS.formula}. Without noise it stops at {n['stop']:.3f}. With noise, "
        f"{n['paths']:,} paths are compared with (FP) at time {TIME:g}, for each of three potentials (total "
        f"variation over {len(n['centres'])} cells, and the mean of x², "
        f"{n['paths_second_moment']:.4f} ± {n['paths_second_moment_error']:.4f} of the paths):\n\n"
        + table(["potential", "minimum", "distance of the paths' density", "mean of x² by (FP)"], rows)
        + f"\n\nχ² against f + f_γ is {n['chi_squared']['sum']:.0f} over {n['cells']} cells, and the temperature at "
        f"which (FP) with f + f_γ fits the paths best is {interval(n['fitted'], n['fitted_error'])} times T [95 %]. "
        "(The optimal control (24) of Theorem 12 depends on time and on V, and solves (HJB), not (viscous HJ).)"
    )


STATEMENT = Statement("remark_13", "Remark 13: control by ∇f_γ", measure, draw, tell)
