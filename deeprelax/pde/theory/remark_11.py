"""Remark 11 and eq. 22, and their misprints: a stray 1/γ in (20), half the variance in (22)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.sde import TwoForces, two_scales
from deeprelax.pde.smoothing import heat
from deeprelax.pde.theory.statement import BLACK, BLUE, GREEN, RED, Numbers, Statement, floats, legend
from deeprelax.pde.theory.theorem_9 import GAMMA, LOSS, RECORD, START, TIME, descent, extrapolated, fast

EPSILON = 0.02


def measure(paths: int = 6000) -> Numbers:
    """Mean x(s) of (19) and of (20) with and without 1/γ; the variance and the mean force of (22)."""

    def force(x: Array, y: Array) -> Array:
        return -LOSS.gradient(x - y)

    def alternative(x: Array, y: Array) -> Array:
        return LOSS.gradient(x - y) - y / GAMMA

    systems: dict[str, tuple[TwoForces, TwoForces, float]] = {
        "eq_19": (lambda x, y: -(x - y) / GAMMA, fast, START),
        "eq_20_without": (force, alternative, 0.0),
        "eq_20_printed": (lambda x, y: force(x, y) / GAMMA, alternative, 0.0),
    }
    found: Numbers = {}
    for seed, (name, (slow, quick, begin)) in enumerate(systems.items()):
        start = np.full(paths, START)
        coarse, fine = (
            two_scales(
                slow, quick, start, np.full(paths, begin), factor * EPSILON, TIME,
                np.random.default_rng(10 * factor + seed), record=RECORD,
            )[2]
            for factor in (2, 1)
        )  # fmt: skip
        found[name] = {
            "mean": floats(fine.mean(1)),
            "error": floats(fine.std(1, ddof=1) / np.sqrt(paths)),
            "extrapolated": extrapolated(coarse, fine),
        }
    many = 8 * paths
    _, y, _ = two_scales(
        lambda x, y: 0 * x, lambda x, y: -y / GAMMA, np.zeros(many), np.zeros(many), 1.0, 8.0, np.random.default_rng(9)
    )
    x, grid = 0.5, Grid.uniform((0, 1, 201))
    forces = LOSS.gradient(x - y)
    return {
        **found,
        "times": floats(np.linspace(0, TIME, RECORD + 1)[1:]),
        "limit": floats(descent(0.5)),
        "printed_limit": floats(descent(0.5, 1 / GAMMA)),
        "paths": paths,
        "variance": float(y.var(ddof=1)),
        "variance_error": float(y.var(ddof=1) * np.sqrt(2 / many)),
        "force": float(forces.mean()),
        "force_error": float(forces.std(ddof=1) / np.sqrt(many)),
        "heat_half": float(heat(LOSS.f, grid, GAMMA / 2).gradient[0][100]),
        "heat_full": float(heat(LOSS.f, grid, GAMMA).gradient[0][100]),
        "samples": floats(np.quantile(y, np.linspace(0.005, 0.995, 100))),
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    left.plot(n["times"], n["limit"], **BLACK, linewidth=1, label="X(s)")
    left.plot(n["times"], n["printed_limit"], **GREEN, linewidth=1, label="X(s/γ)")
    styles = (("eq_19", "o", BLACK, "(19)"), ("eq_20_without", "x", RED, "(20) without γ⁻¹"),
              ("eq_20_printed", "^", BLUE, "(20) as printed"))  # fmt: skip
    for name, marker, style, label in styles:
        left.plot(n["times"], n[name]["mean"], marker, color=style["color"], mfc="none", ms=5, label=label)
    left.set(xlabel="s", title=f"mean of x(s), ε = {EPSILON:g}")
    legend(left)
    y = np.linspace(-2, 2, 101)
    levels = np.linspace(0.005, 0.995, 100)
    right.plot(n["samples"], levels, "o", color="k", ms=2.5, label="y of (22), simulated")
    cumulative = {GAMMA / 2: BLACK, GAMMA: RED}
    for variance, style in cumulative.items():
        density = np.exp(-(y**2) / (2 * variance))
        right.plot(y, np.cumsum(density) / density.sum(), **style, linewidth=1, label=f"N(0, {variance:g})")
    right.set(xlabel="y", title=f"distribution of y, γ = {GAMMA}")
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    last = {name: n[name]["mean"][-1] for name in ("eq_19", "eq_20_without", "eq_20_printed")}
    half = RECORD // 2 - 1
    limits = {"eq_19": "limit", "eq_20_without": "limit", "eq_20_printed": "printed_limit"}
    gaps = [max(abs(m - x) for m, x in zip(n[k]["extrapolated"]["mean"], n[v])) for k, v in limits.items()]
    errors = [max(n[k]["extrapolated"]["error"]) for k in limits]
    return (
        f"{n['paths']:,} paths from x = {START}, f = {LOSS.formula}, γ = {GAMMA}, ε = {EPSILON:g}. **(20) as "
        f"printed has a stray γ⁻¹**: (13) has none. Without it, the mean of x({n['times'][half]:g}) is "
        f"{n['eq_20_without']['mean'][half]:.4f} ± {n['eq_20_without']['error'][half]:.4f}, that of (19) "
        f"{n['eq_19']['mean'][half]:.4f} ± {n['eq_19']['error'][half]:.4f}, and the homogenised X is "
        f"{n['limit'][half]:.4f}. As printed x runs 1/γ = {1 / GAMMA:g} times as fast: "
        f"{n['eq_20_printed']['mean'][half]:.4f}, with a limit of {n['printed_limit'][half]:.4f}. (At the end, s = "
        f"{n['times'][-1]:g}: {last['eq_20_without']:.4f}, {last['eq_19']:.4f} and {last['eq_20_printed']:.4f}.) "
        f"Extrapolated from {2 * EPSILON:g} and {EPSILON:g} to ε = 0, the three means are within {gaps[0]:.4f}, "
        f"{gaps[1]:.4f} and {gaps[2]:.4f} of their limits at all times (largest standard errors: {errors[0]:.4f}, "
        f"{errors[1]:.4f} and {errors[2]:.4f}).\n\n"
        f"**(22) as printed has half the variance of (26)**: dy = −y/(εγ) ds + dW/√ε has the stationary variance γ/2 = "
        f"{GAMMA / 2:g} (simulated: {n['variance']:.4f} ± {n['variance_error']:.4f}), while (26) draws w ~ N(0, "
        f"γI). So its mean force at x = 0.5, {n['force']:.4f} ± {n['force_error']:.4f}, is the heat equation's "
        f"gradient at time γ/2, {n['heat_half']:.4f}, not at γ, {n['heat_full']:.4f}. √2 dW would repair it. "
        "(`deeprelax.Heat` draws as (26) says.)"
    )


STATEMENT = Statement("remark_11", "Remark 11 and eq. 22: the alternative systems", measure, draw, tell)
