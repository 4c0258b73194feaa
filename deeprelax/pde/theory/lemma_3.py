"""Lemma 3: the average that the optimizer computes is the gradient of viscosity half the temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from deeprelax import EntropySGD
from deeprelax.pde.grid import Array, Grid
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.smoothing import viscous
from deeprelax.pde.theory.fitted import fitted_viscosity, pooled
from deeprelax.pde.theory.statement import (
    CONFIDENCE,
    MARKERS,
    STYLES,
    Numbers,
    Statement,
    floats,
    interval,
    legend,
    table,
)

LOSS = tilted_well(0.15)
GAMMA = 0.5
POINTS = np.linspace(-1.8, 1.8, 7)
TEMPERATURES = (0.5, 1.0, 2.0)
# ∇²f + 1/γ ≥ 1, so that a chain forgets its start like exp(-time): what is left of it after 12 is below 1e-4.
TIME, AVERAGED, STEP = 12.0, 1.2, 0.02


def optimizer_average(
    gradient: Callable[[Any], Any], x: Array, gamma: float, temperature: float, chains: int, step: float, seed: int
) -> Array:
    """(x - z)/γ of ``EntropySGD`` after ``TIME`` in its inner loop, a row of chains for each x: (len(x), chains).

    One optimizer over one tensor: every element is an independent chain. z averages over about the time ``AVERAGED``.
    """
    start = torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1).repeat(1, chains)
    p = torch.nn.Parameter(start.clone())
    steps = round(TIME / step)
    opt = EntropySGD(
        [p], inner_lr=step, gamma=gamma, temperature=temperature, alpha=math.exp(-step / AVERAGED),
        inner_steps=steps + 1, seed=seed,
    )  # fmt: skip
    for _ in range(steps):
        p.grad = gradient(p.detach())
        opt.step()
    return np.asarray((start - opt.state[p]["z"]) / gamma)


def gradient_of(viscosity: float) -> Array:
    """∇u of that viscosity at 61 places, every tenth of them one of ``POINTS``."""
    grid = Grid.uniform((POINTS[0], POINTS[-1], 601))
    return np.asarray(viscous(LOSS.f, grid, GAMMA, viscosity).gradient[0][::10])


def measure(chains: int = 8192) -> Numbers:
    """The optimizer's average at three temperatures against ∇u, and the viscosity that it belongs to."""
    optimizer, every = [], []
    for seed, temperature in enumerate(TEMPERATURES):
        coarse, fine = (
            optimizer_average(LOSS.gradient, POINTS, GAMMA, temperature, chains, step, 10 * k + seed)
            for k, step in ((1, 2 * STEP), (2, STEP))
        )
        # The chain's stationary density is off by a multiple of its step: extrapolate to step 0.
        mean = 2 * fine.mean(1) - coarse.mean(1)
        error = np.sqrt((4 * fine.var(1, ddof=1) + coarse.var(1, ddof=1)) / chains)
        fitted = fitted_viscosity(lambda delta: gradient_of(delta)[::10], mean, error, temperature / 2)
        every.append(fitted)
        curve = gradient_of(temperature / 2)
        optimizer.append(
            {
                "temperature": temperature,
                "mean": floats(mean),
                "error": floats(error),
                "exact": floats(curve[::10]),
                "curve": floats(curve),
                "fitted": fitted.mean,
                "fitted_error": fitted.error,
            }
        )
    together = pooled(every)
    return {
        "x": floats(POINTS),
        "curve_x": floats(np.linspace(POINTS[0], POINTS[-1], 61)),
        "chains": chains,
        "optimizer": optimizer,
        "fitted": together.mean,
        "fitted_error": together.error,
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    for style, marker, o in zip(STYLES, MARKERS, n["optimizer"]):
        left.plot(n["curve_x"], o["curve"], **style, linewidth=1)
        label = f"temperature {o['temperature']:g}"
        left.plot(n["x"], o["mean"], marker=marker, color=style["color"], linestyle="", mfc="none", label=label)
        right.errorbar(
            [o["temperature"]], [o["fitted"]], [CONFIDENCE * o["fitted_error"]], fmt=marker, color=style["color"],
            mfc="none", capsize=4,
        )  # fmt: skip
    left.set(xlabel="x", title="(x − z)/γ of EntropySGD, and ∇u (lines)")
    legend(left)
    right.axhline(1, color="0.6", linewidth=1)
    right.set(xlabel="temperature", ylim=(0.8, 1.2), title="fitted viscosity/(temperature/2), 95 %")
    right.set_xticks([o["temperature"] for o in n["optimizer"]])


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    rows = [
        [
            f"{o['temperature']:g}",
            f"{o['temperature'] / 2:g}",
            f"{max(abs(m - e) for m, e in zip(o['mean'], o['exact'])):.4f}",
            f"{max(o['error']):.4f}",
            f"{max(abs(m - e) / s for m, e, s in zip(o['mean'], o['exact'], o['error'])):.1f}",
            interval(o["fitted"], o["fitted_error"]),
        ]
        for o in n["optimizer"]
    ]
    heads = [
        "temperature", "δ", "largest difference", "largest standard error", "largest in standard errors",
        "fitted viscosity/δ, [95 %]",
    ]  # fmt: skip
    return (
        "The average that the fused kernel computes: (x − z)/γ of `EntropySGD` over "
        f"{n['chains']:,} chains for each of {len(n['x'])} points, f = {LOSS.formula}, γ = {GAMMA}, extrapolated to "
        "`inner_lr` = 0, against ∇u of viscosity δ = temperature/2; and the viscosity whose ∇u fits all points of a "
        "temperature best:\n\n"
        + table(heads, rows)
        + f"\n\nOver all three temperatures, the fitted viscosity is {interval(n['fitted'], n['fitted_error'])} times "
        "half the temperature."
    )


STATEMENT = Statement("lemma_3", "Lemma 3: the gradient of local entropy as an average", measure, draw, tell)
