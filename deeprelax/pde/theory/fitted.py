"""The viscosity that fits measured gradients best: all points of a curve in one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deeprelax.pde.grid import Array
from deeprelax.pde.sde import Estimate


def fitted_viscosity(
    gradient: Callable[[float], Array], mean: Array | Sequence[float], error: Array | Sequence[float], viscosity: float
) -> Estimate:
    """The viscosity over ``viscosity`` whose ∇u fits the means best, by weighted least squares, to first order.

    Args:
        gradient: ∇u of a viscosity at the points, (n,).
        mean, error: measured there, with independent standard errors, (n,).
        viscosity: the expected one.
    """
    change = 0.05
    slope = (gradient((1 + change) * viscosity) - gradient((1 - change) * viscosity)) / (2 * change)
    weight = slope / np.asarray(error) ** 2
    information = float(weight @ slope)
    return Estimate(1 + float(weight @ (np.asarray(mean) - gradient(viscosity))) / information, information**-0.5)


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate from independent ones, each weighted by its precision."""
    weights = np.asarray([e.error**-2 for e in estimates])
    return Estimate(float(weights @ [e.mean for e in estimates] / weights.sum()), float(weights.sum() ** -0.5))
