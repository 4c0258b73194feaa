"""Section 2: the Gibbs limit (9) of (FP), and Remark 1's exit time against Kramers' law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.integrate import cumulative_trapezoid

from deeprelax.pde.closed_forms import normal_density
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.sde import Estimate, langevin
from deeprelax.pde.theory.statement import BLACK, BLUE, GREEN, RED, Numbers, Statement, floats, legend, table

LOSS = tilted_well(0.0)
BARRIER = 0.25
GRID = Grid.uniform((-3.5, 3.5, 1401))
# A path that is looked at every h overshoots: it leaves as a continuous one does at a place 0.5826 √(Th) further on
# (Broadie, Glasserman and Kou, 1997).
OVERSHOOT = 0.5826


def passage_time(temperature: float, start: float, end: float) -> float:
    """The mean time of dx = -∇f dt + √T dW from ``start`` until it reaches ``end`` > start, by quadrature."""
    x = np.linspace(-2.5, end, 20_001)  # at -2.5 exp(-2f/T) is below 2e-24 of its maximum for T ≤ ¼
    below = cumulative_trapezoid(np.exp(-2 * LOSS.f(x) / temperature), x, initial=0)
    outer = cumulative_trapezoid(2 / temperature * np.exp(2 * LOSS.f(x) / temperature) * below, x, initial=0)
    return float(outer[-1] - np.interp(start, x, outer))


def simulated_passage(temperature: float, paths: int, step: float) -> Estimate:
    """The time from the left well's bottom to the right one's, from paths."""
    rng = np.random.default_rng(5)
    x, arrivals, steps = np.full(paths, -1.0), [], 0
    while len(x):
        x += math.sqrt(step * temperature) * rng.standard_normal(len(x)) - step * LOSS.gradient(x)
        steps += 1
        if x.max() >= 1:
            there = x >= 1
            arrivals += [steps * step] * int(there.sum())
            x = x[~there]
    return Estimate.of(np.asarray(arrivals))


def second_moment(temperature: float, paths: int = 3000) -> Estimate:
    """The mean of x² over the Gibbs density, from each path's average over the times from 20 to 200."""
    total, steps = np.zeros(paths), 0

    def visit(time: float, x: Array) -> None:
        nonlocal steps
        if time > 20:
            total[:] += x * x
            steps += 1

    rng = np.random.default_rng(int(temperature))
    langevin(LOSS.gradient, np.full(paths, -1.0), 200.0, 0.05, temperature, rng, visit)
    return Estimate.of(total / steps)


def measure(paths: int = 6000) -> Numbers:
    """Distances to Gibbs densities at T = 1 and 2, by (FP) and by paths; exit times over the temperature."""
    x = GRID.axes[0]
    start = normal_density(x, -1, 0.05)
    gibbs = {power: np.exp(-power * LOSS.f(x)) for power in (1, 2)}
    gibbs = {power: g / (g.sum() * GRID.cell) for power, g in gibbs.items()}
    limits = []
    for temperature in (1.0, 2.0):
        end = FokkerPlanck(LOSS.f, GRID, temperature).evolve(start, 60.0, 300)
        square = second_moment(temperature)
        limits.append(
            {
                "temperature": temperature,
                **{f"to_exp_{p}": float(np.abs(end - g).sum() * GRID.cell / 2) for p, g in gibbs.items()},
                "second_moment": square.mean,
                "second_moment_error": square.error,
                **{f"second_moment_{p}": float((x**2 * g).sum() * GRID.cell) for p, g in gibbs.items()},
                "density": floats(end[::14]),
                "mass": float(end.sum() * GRID.cell),
            }
        )
    exits = []
    for ratio in (2, 3, 4, 6, 8, 10, 12):
        temperature = 2 * BARRIER / ratio
        exits.append(
            {
                "ratio": ratio,
                "exact": passage_time(temperature, -1, 1),
                "kramers": 2 * math.pi / math.sqrt(2 * 1) * math.exp(ratio),
                "gap": 2 / FokkerPlanck(LOSS.f, GRID, temperature).spectral_gap(),
            }
        )
    ratio, step = 3, 0.02
    temperature = 2 * BARRIER / ratio
    simulated = simulated_passage(temperature, paths, step)
    return {
        "limits": limits,
        "x": floats(x[::14]),
        "exits": exits,
        "slope": math.log(exits[-1]["exact"] / exits[-3]["exact"]) / (exits[-1]["ratio"] - exits[-3]["ratio"]),
        # exact/Kramers is a power series in T: its value at T = 0, from the three coldest.
        "kramers_limit": float(
            np.polyfit([1 / e["ratio"] for e in exits[-3:]], [e["exact"] / e["kramers"] for e in exits[-3:]], 2)[-1]
        ),
        "simulated_ratio": ratio,
        "simulated": simulated.mean,
        "simulated_error": simulated.error,
        "simulated_exact": passage_time(temperature, -1, 1 + OVERSHOOT * math.sqrt(temperature * step)),
        "paths": paths,
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    for limit, style, marker in zip(n["limits"], (BLACK, RED), "os"):
        power = round(2 / limit["temperature"])
        density: Array = np.exp(-power * LOSS.f(np.asarray(n["x"])))
        density /= np.trapezoid(density, n["x"])
        left.plot(n["x"], density, **style, linewidth=1, label=f"∝ exp(−{power if power > 1 else ''}f)")
        label = f"(FP), T = {limit['temperature']:g}"
        left.plot(n["x"][::4], limit["density"][::4], marker, color=style["color"], mfc="none", ms=4, label=label)
    left.set(xlabel="x", xlim=(-2.5, 2.5), title="densities at time 60")
    legend(left)
    ratios = [e["ratio"] for e in n["exits"]]
    right.semilogy(ratios, [e["exact"] for e in n["exits"]], **BLACK, label="exact mean time")
    right.semilogy(ratios, [e["kramers"] for e in n["exits"]], **GREEN, label="Kramers")
    right.semilogy(ratios, [e["gap"] for e in n["exits"]], "s", color=BLUE["color"], mfc="none", label="2/gap of (FP)")
    right.semilogy([n["simulated_ratio"]], [n["simulated"]], "x", color="k", ms=9, label="paths")
    right.set(xlabel="2ΔF/T", title="from one well to the other")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    limits = [
        [
            f"{m['temperature']:g}",
            f"{m['to_exp_1']:.1e}",
            f"{m['to_exp_2']:.1e}",
            f"{m['second_moment']:.4f} ± {m['second_moment_error']:.4f}",
            f"{m['second_moment_1']:.4f}",
            f"{m['second_moment_2']:.4f}",
        ]
        for m in n["limits"]
    ]
    heads = ["T", "(FP) from exp(−f)/Z", "(FP) from exp(−2f)/Z", "mean x² of paths", "of exp(−f)/Z", "of exp(−2f)/Z"]
    exits = [
        [f"{e['ratio']:g}"]
        + [f"{e[k]:.4g}" for k in ("exact", "gap", "kramers")]
        + [f"{e['exact'] / e['kramers']:.3f}"]
        for e in n["exits"]
    ]
    return (
        f"f = {LOSS.formula}. **(9) does not belong to (FP) as printed**: with dW, T = 1, the stationary density is "
        "exp(−2f)/Z; exp(−f)/Z takes √2 dW, T = 2. Distances are total variation at time 60:\n\n"
        + table(heads, limits)
        + "\n\nRemark 1: the mean time from one well's bottom to the other's, by quadrature, by the spectral gap of "
        "the discrete (FP), and by Kramers' law 2π exp(2ΔF/T)/√(f″(well) |f″(barrier)|), ΔF = ¼:\n\n"
        + table(["2ΔF/T", "exact", "2/gap", "Kramers", "exact/Kramers"], exits)
        + f"\n\nAt 2ΔF/T = {n['simulated_ratio']:g}, {n['paths']:,} paths take {n['simulated']:.1f} ± "
        f"{n['simulated_error']:.1f} (exact, for the time step: {n['simulated_exact']:.1f}). log time grows by "
        f"{n['slope']:.3f} per unit of 2ΔF/T (expected: 1), and exact/Kramers, extrapolated to T = 0, is "
        f"{n['kramers_limit']:.3f}. What counts is the barrier between the wells and the "
        "curvatures there: **Remark 1's sup f − inf f is infinite here**, and the smallest eigenvalue of ∇²f is "
        "negative at the barrier; the spectral gap meant is that of (FP)."
    )


STATEMENT = Statement("section_2", "Section 2: the Gibbs limit and Remark 1's exit time", measure, draw, tell)
