"""The paper's Figure 1: a loss, both of its smoothings, and where gradient descent on each ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeprelax.files import check_writable, replacing, write_json, write_picture
from deeprelax.pde.closed_forms import normal_density
from deeprelax.pde.finite_differences import Evolution, hamilton_jacobi
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Array, Grid, positive
from deeprelax.pde.hopf_lax import non_viscous
from deeprelax.pde.losses import LOSSES, Loss
from deeprelax.pde.smoothing import viscous

NODES, NOTED = 901, 451  # nodes with a margin of 1 on either side
DESCENT, DESCENT_STEPS = 15.0, 300  # how long the densities evolve
# Beyond what is shown, on either side: boundaries reflect. The first that is wide enough.
MARGINS = [1, 2, 3, 4, *(4 * 1.25**k for k in range(1, 19))]  # up to 222
COARSE = 301  # nodes to try a margin with
LIGHT = 8.0  # Hopf-Cole's weight exp(-LIGHT) at the boundaries, seen from what is shown, counts as nothing
STARTS = {"rugged": (-1.5, 0.1), "double-well": (-0.9, 0.05), "tilted-well": (0.9, 0.05)}  # mean and variance
FRAMES = 30
# Dashes for the curves, hatches for the densities: readable without colour.
CURVES: dict[str, dict[str, Any]] = {
    "loss": {"color": "#000000", "linestyle": "-", "label": "f(x)"},
    "viscous": {"color": "#D55E00", "linestyle": "--", "label": "u(x, T), viscous HJ"},
    "non_viscous": {"color": "#0072B2", "linestyle": "-.", "label": "u(x, T), non-viscous HJ"},
}
DENSITIES: dict[str, dict[str, Any]] = {
    "initial": {"facecolor": "0.88", "edgecolor": "0.55", "label": "initial density"},
    "sgd": {"facecolor": "0.45", "edgecolor": "0.15", "label": "SGD on f"},
    "on_viscous": {"facecolor": "none", "edgecolor": "#D55E00", "hatch": "////", "label": "on viscous u"},
    "on_non_viscous": {"facecolor": "none", "edgecolor": "#0072B2", "hatch": "....", "label": "on non-viscous u"},
}


def compute(name: str = "rugged", time: float = 0.6, beta: float = 2.0, temperature: float = 0.1) -> dict[str, Any]:
    """The curves and densities by monotone finite differences and (FP).

    Args:
        name: one of ``LOSSES``.
        time: T, how long the Hamilton-Jacobi equations smooth the loss (γ elsewhere).
        beta: β; the viscous equation has viscosity β⁻¹.
        temperature: of the noise in all three descents, dx = -∇u dt + √temperature dW.

    Returns:
        Settings, curves and densities at equidistant x as lists, means and errors, ready for JSON. ``check`` holds
        the largest differences on the shown range between finite differences and Hopf-Cole or Hopf-Lax; None where
        the grid is too coarse for Hopf-Cole.

    Raises:
        ValueError: no such loss; a number ≤ 0; a temperature or viscosity that no grid up to 222 beyond what is shown
            can hold.
    """
    loss, grid = _problem(name, time, beta, temperature)
    x = grid.axes[0]
    smooth, sharp = _solutions(loss, grid, time, beta, 1)
    potentials = {"sgd": grid.values(loss.f), "on_viscous": smooth.u[-1], "on_non_viscous": sharp.u[-1]}
    densities = {"initial": _start(name, grid)}
    for key, potential in potentials.items():
        descent = FokkerPlanck(potential, grid, temperature)
        densities[key] = descent.evolve(densities["initial"], DESCENT, DESCENT_STEPS)
    shown = (x >= loss.low) & (x <= loss.high)
    part = Grid((x[shown],))
    exact = {"viscous": _hopf_cole(loss, part, time, beta), "non_viscous": non_viscous(loss.f, part, time).u}
    check = {
        key: None if u is None else float(np.abs(found.u[-1][shown] - u).max())
        for (key, u), found in zip(exact.items(), (smooth, sharp))
    }
    noted = np.linspace(loss.low, loss.high, NOTED)

    def note(values: Array) -> list[float]:
        return [float(f"{v:.6g}") for v in np.interp(noted, x, values)]

    curves = {"loss": potentials["sgd"], "viscous": smooth.u[-1], "non_viscous": sharp.u[-1]}
    return {
        "settings": {
            "function": name,
            "formula": loss.formula,
            "time": time,
            "beta": beta,
            "temperature": temperature,
            "descent": DESCENT,
            "start": STARTS[name],
        },
        "x": [float(f"{v:.6g}") for v in noted],
        "curves": {key: note(values) for key, values in curves.items()},
        "minima": {key: float(x[values.argmin()]) for key, values in curves.items()},
        "densities": {key: note(values) for key, values in densities.items()},
        "mean_loss": {key: float((d * potentials["sgd"]).sum() * grid.cell) for key, d in densities.items()},
        "mass": {key: float(d.sum() * grid.cell) for key, d in densities.items()},
        "check": check,
    }


def _problem(name: str, time: float, beta: float, temperature: float) -> tuple[Loss, Grid]:
    """The loss, and a grid wide enough that its boundaries have no effect."""
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; there are {', '.join(LOSSES)}")
    for what, number in (("time", time), ("beta", beta), ("temperature", temperature)):
        positive(what, number)
    loss = LOSSES[name]
    spacing = (loss.high - loss.low + 2 * MARGINS[0]) / (NODES - 1)
    for margin in MARGINS:
        ends = loss.low - margin, loss.high + margin
        if _wide_enough(name, Grid.uniform((*ends, COARSE)), margin, time, beta, temperature):
            return loss, Grid.uniform((*ends, round((ends[1] - ends[0]) / spacing) + 1))
    raise ValueError(
        f"time {time:g}, beta {beta:g} and temperature {temperature:g} spread {loss.formula} or its densities beyond "
        f"{MARGINS[-1]:.0f} on either side of what is shown"
    )


def _wide_enough(name: str, grid: Grid, margin: float, time: float, beta: float, temperature: float) -> bool:
    """Whether neither the smoothing nor the densities reach the boundaries, tried on a coarse grid."""
    f = grid.values(LOSSES[name].f)
    if beta * (min(f[0], f[-1]) - f.min() + margin**2 / (2 * time)) < LIGHT:
        return False
    smooth = _hopf_cole(LOSSES[name], grid, time, beta)
    for potential in (f, non_viscous(f, grid, time).u, f if smooth is None else smooth):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # accuracy does not matter here
                FokkerPlanck(potential, grid, temperature).evolve(_start(name, grid), DESCENT, DESCENT_STEPS)
        except ValueError:
            return False
    return True


def _start(name: str, grid: Grid) -> Array:
    """The initial density."""
    density = normal_density(grid.axes[0], *STARTS[name])
    return np.asarray(density / (density.sum() * grid.cell))


def _hopf_cole(loss: Loss, grid: Grid, time: float, beta: float) -> Array | None:
    """The exact viscous solution on the whole line, if the grid resolves it."""
    try:
        return viscous(loss.f, grid, time, 1 / beta).u
    except ValueError:
        return None


def _solutions(loss: Loss, grid: Grid, time: float, beta: float, record: int) -> tuple[Evolution, Evolution]:
    smooth = hamilton_jacobi(loss.f, grid, time, 1 / beta, record=record)
    return smooth, hamilton_jacobi(loss.f, grid, time, record=record)


def picture(numbers: dict[str, Any]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    ax = figure.subplots()
    x = np.asarray(numbers["x"])
    bottom, height = _frame(ax, numbers)
    highest = max(max(d) for d in numbers["densities"].values())
    for key, density in numbers["densities"].items():
        top = bottom + height * np.asarray(density) / highest
        ax.fill_between(x, bottom, top, linewidth=1, zorder=1, **DENSITIES[key])
    for key, curve in numbers["curves"].items():
        ax.plot(x, curve, linewidth=1.8, zorder=2, **CURVES[key])
    settings = numbers["settings"]
    ax.set_title(
        f"f = {settings['formula']},  T = {settings['time']:g},  β = {settings['beta']:g};  densities after "
        f"{settings['descent']:g} units of time at temperature {settings['temperature']:g}", fontsize=9
    )  # fmt: skip
    ax.legend(ncols=2, fontsize=9, frameon=False, loc="upper center")
    return figure


def _frame(ax: Axes, numbers: dict[str, Any]) -> tuple[float, float]:
    """Limits of the axes: curves above, densities below; the densities' base line and height."""
    lowest = min(min(c) for c in numbers["curves"].values())
    loss = np.asarray(numbers["curves"]["loss"])
    reach = float(np.median(loss) - lowest) * 2.2
    height = reach * 0.9
    bottom = lowest - height - 0.05 * reach
    ax.set(xlabel="x", xlim=(numbers["x"][0], numbers["x"][-1]), ylim=(bottom, lowest + 1.7 * reach), yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    return bottom, height


def animation(name: str, time: float, beta: float, temperature: float, path: Path) -> None:
    """A GIF of the smoothing, from t = 0 to T."""
    loss, grid = _problem(name, time, beta, temperature)
    runs = _solutions(loss, grid, time, beta, FRAMES - 1)
    x = grid.axes[0]
    shown = (x >= loss.low) & (x <= loss.high)
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    ax = figure.subplots()
    f = grid.values(loss.f)[shown]
    low, high = f.min(), np.median(f) + 1.5 * (np.median(f) - f.min())
    ax.plot(x[shown], f, linewidth=1.2, **CURVES["loss"])
    moving = [{**CURVES[key], "label": CURVES[key]["label"].replace("T)", "t)")} for key in ("viscous", "non_viscous")]
    lines = [ax.plot(x[shown], f, linewidth=1.8, **style)[0] for style in moving]
    room = high - low
    ax.set(xlabel="x", xlim=(loss.low, loss.high), ylim=(low - 0.1 * room, high + 0.4 * room), yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(ncols=3, fontsize=8, frameon=False, loc="upper center")
    title = ax.set_title("")

    def show(frame: int) -> list[Any]:
        now = time * frame / (FRAMES - 1)
        for line, run in zip(lines, runs):
            line.set_ydata(run.u[int(np.abs(run.times - now).argmin())][shown])
        title.set_text(f"t = {now:.2f}, β = {beta:g}")
        return [*lines, title]

    with replacing(path) as partial:
        FuncAnimation(figure, show, frames=FRAMES).save(partial, writer=PillowWriter(fps=10), dpi=80)


def write(
    out: Path, name: str, time: float, beta: float, temperature: float, animate: bool, say: Callable[[str], None]
) -> None:
    """Write figure1.png, .svg and .json, and with ``animate`` figure1.gif, into ``out``, and report their paths."""
    _problem(name, time, beta, temperature)  # raises before anything is computed
    for suffix in ("png", "svg", "json", *(["gif"] if animate else [])):
        check_writable(out / f"figure1.{suffix}")
    numbers = compute(name, time, beta, temperature)
    figure = picture(numbers)
    for suffix in ("png", "svg"):
        write_picture(out / f"figure1.{suffix}", figure, dpi=150)
        say(str(out / f"figure1.{suffix}"))
    write_json(out / "figure1.json", numbers, ensure_ascii=False)
    say(str(out / "figure1.json"))
    if animate:
        animation(name, time, beta, temperature, out / "figure1.gif")
        say(str(out / "figure1.gif"))
    for key, style in DENSITIES.items():
        say(f"mean loss, {style['label']:17} {numbers['mean_loss'][key]:8.4f}")
