"""One-dimensional losses for figures and statements, with derivatives, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeprelax.pde.grid import Array, Function


@dataclass(frozen=True)
class Loss:
    """A loss of one variable.

    Attributes:
        formula: for titles.
        f, gradient, curvature: the function and its first two derivatives, element by element; they take torch's
            tensors too where only powers and sums occur (``quadratic``, ``tilted_well``).
        low, high: where it is worth looking at.
    """

    formula: str
    f: Function
    gradient: Function
    curvature: Function
    low: float
    high: float


def quadratic(a: float) -> Loss:
    """½ax²."""
    return Loss(f"{a:g} x²/2", lambda x: a * x**2 / 2, lambda x: a * x, lambda x: a + 0 * x, -3, 3)


def tilted_well(tilt: float) -> Loss:
    """¼(x² - 1)² + tilt·x: ∇²f ≥ -1, minima near ±1."""
    return Loss(
        f"(x² − 1)²/4 + {tilt:g} x" if tilt else "(x² − 1)²/4",
        lambda x: (x**2 - 1) ** 2 / 4 + tilt * x,
        lambda x: x**3 - x + tilt,
        lambda x: 3 * x**2 - 1,
        -2.2,
        2.2,
    )


def rugged() -> Loss:
    """A wide valley with ripples: several local minima, the global one away from where a run would start."""

    def f(x: Array) -> Array:
        return 0.15 * (x - 1) ** 2 + 0.6 * np.sin(4 * x) + 0.25 * np.sin(9 * x + 1)

    def gradient(x: Array) -> Array:
        return 0.3 * (x - 1) + 2.4 * np.cos(4 * x) + 2.25 * np.cos(9 * x + 1)

    def curvature(x: Array) -> Array:
        return 0.3 - 9.6 * np.sin(4 * x) - 20.25 * np.sin(9 * x + 1)

    return Loss("0.15(x − 1)² + 0.6 sin 4x + 0.25 sin(9x + 1)", f, gradient, curvature, -4, 5)


LOSSES: dict[str, Loss] = {"rugged": rugged(), "double-well": tilted_well(0.0), "tilted-well": tilted_well(0.15)}
