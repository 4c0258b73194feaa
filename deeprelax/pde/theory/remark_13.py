"""Remark 13: SGD with the control ∇f_γ minimises f + f_γ, not f_γ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.closed_forms import normal_density
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import langevin
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.statement import BLACK, BLUE, RED, Numbers, Statement, floats, legend, table

LOSS = tilted_well(0.15)
GAMMA, VISCOSITY, TEMPERATURE, START, TIME = 0.5, 1.0, 0.6, 0.8, 3.0


def measure(paths: int = 10_000) -> Numbers:
    """Minimisers, where (CSGD) without noise stops, its density with noise by paths and by (FP) for each potential."""
    grid = Grid.uniform((-3.5, 3.5, 1401))
    x, f = grid.axes[0], grid.values(LOSS.f)
    smooth = viscous(LOSS.f, grid, GAMMA, VISCOSITY)
    potentials = {"f": f, "f_gamma": smooth.u, "sum": f + smooth.u}

    def force(at: Array) -> Array:
        return np.asarray(LOSS.gradient(at) + np.interp(at, x, smooth.gradient[0]))

    stop = float(langevin(force, np.asarray([-0.9]), 20.0, 0.005, 0.0, np.random.default_rng(0))[0])
    start = np.random.default_rng(1).normal(START, 0.2, paths)
    end = langevin(force, start, TIME, 0.004, TEMPERATURE, np.random.default_rng(2))
    edges = np.linspace(-2.5, 2.5, 51)
    counts = np.histogram(end, edges)[0]
    found: Numbers = {"distance": {}, "chi_squared": {}, "minimum": {}, "density": {}}
    for name, potential in potentials.items():
        equation = FokkerPlanck(potential, grid, TEMPERATURE)
        density = equation.evolve(normal_density(x, START, 0.04), TIME, 1600)
        cumulative = np.concatenate([[0], np.cumsum(density) * grid.cell])[:-1] + density * grid.cell / 2
        expected = np.diff(np.interp(edges, x, cumulative)) * paths
        kept = expected > 10
        found["distance"][name] = float(np.abs(counts - expected).sum() / 2 / paths)
        found["chi_squared"][name] = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
        found["minimum"][name] = float(x[potential.argmin()])
        found["density"][name] = floats(density[::7])
        if name == "sum":
            found["cells"] = int(kept.sum())
    return {
        **found,
        "stop": stop,
        "paths": paths,
        "x": floats(x[::7]),
        "curves": {name: floats(p[::7]) for name, p in potentials.items()},
        "centres": floats((edges[1:] + edges[:-1]) / 2),
        "histogram": floats(counts / paths / (edges[1] - edges[0])),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    left, right = axes
    names = (("f", BLACK, "f"), ("f_gamma", BLUE, "$f_γ$"), ("sum", RED, "f + $f_γ$"))
    for name, style, label in names:
        left.plot(n["x"], n["curves"][name], **style, label=label)
        if name != "f":
            right.plot(n["x"], n["density"][name], **style, label=f"(FP) with {label}")
    left.plot([n["stop"]], [np.interp(n["stop"], n["x"], n["curves"]["sum"])], "k*", ms=9)
    left.set(xlabel="x", xlim=(-2.2, 2.2), ylim=(-0.5, 2.5), title="the star: where (CSGD) without noise stops")
    legend(left)
    right.plot(n["centres"], n["histogram"], "o", color="k", ms=3, label="paths of (CSGD)")
    right.set(xlabel="x", xlim=(-2.5, 2.5), title=f"densities at time {TIME:g}, T = {TEMPERATURE}")
    legend(right)


def tell(n: Numbers) -> str:
    rows = [
        [label, f"{n['minimum'][name]:.3f}", f"{n['distance'][name]:.3f}"]
        for name, label in (("f", "f"), ("f_gamma", "f_γ"), ("sum", "f + f_γ"))
    ]
    return (
        f"dx = −∇f ds − α ds + √T dW with α = ∇f_γ(x) of viscosity {VISCOSITY:g}, γ = {GAMMA:g}, T = "
        f"{TEMPERATURE:g}, f = {LOSS.formula}. Without noise it stops at {n['stop']:.3f}. With noise, "
        f"{n['paths']:,} paths are compared with (FP) at time {TIME:g}, for each of three potentials (total "
        f"variation over {len(n['centres'])} cells):\n\n"
        + table(["potential", "minimum", "distance of the paths' density"], rows)
        + f"\n\nχ² against f + f_γ is {n['chi_squared']['sum']:.0f} over {n['cells']} cells. (The optimal control "
        "(24) of Theorem 12 depends on time and on V, and solves (HJB), not (viscous HJ).)"
    )


STATEMENT = Statement("remark_13", "Remark 13: control by ∇f_γ", measure, draw, tell)
