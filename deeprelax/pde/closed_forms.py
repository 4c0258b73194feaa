"""Solutions that are known in closed form: what the numerical ones are held against.

Every function takes and returns arrays of any shape, element by element, in one dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeprelax.pde.grid import Array


def quadratic_viscous(x: Array, gamma: float, curvature: float, viscosity: float) -> tuple[Array, Array]:
    """u and ∇u of the viscous HJ equation from ½ax²: ½ax²/(1 + aγ) + ½δ ln(1 + aγ) and ax/(1 + aγ); δ = 0 as well."""
    shrink = 1 + curvature * gamma
    return curvature * x**2 / (2 * shrink) + viscosity * np.log(shrink) / 2, curvature * x / shrink


def quadratic_heat(x: Array, gamma: float, curvature: float) -> tuple[Array, Array]:
    """u and ∇u of the heat equation from ½ax²: the gradient is not smoothed at all."""
    return curvature * (x**2 + gamma) / 2, curvature * x


def absolute_value(x: Array, gamma: float) -> tuple[Array, Array]:
    """u and the proximal point of |x|: Huber's function, and x shrunk by γ."""
    point = np.sign(x) * np.maximum(np.abs(x) - gamma, 0)
    return np.where(np.abs(x) <= gamma, x**2 / (2 * gamma), np.abs(x) - gamma / 2), point


def two_parabolas(x: Array, gamma: float) -> tuple[Array, Array]:
    """u and the proximal point of the double well ½(|x| - 1)²; at x = 0 that of the right well."""
    side = np.where(x >= 0, 1.0, -1.0)
    return (np.abs(x) - 1) ** 2 / (2 * (1 + gamma)), (x + gamma * side) / (1 + gamma)


def quartic_well(x: Array, gamma: float) -> tuple[Array, Array]:
    """u and the proximal point of the double well ¼(x² - 1)²; at x = 0 that of the right well, if there are two.

    The proximal point is the largest root of y³ + (1/γ - 1)y = x/γ for x ≥ 0: of three roots it lies on x's side and
    in the deeper well.
    """
    p, q = 1 / gamma - 1, np.abs(x) / gamma
    disc = (q / 2) ** 2 + (p / 3) ** 3
    root = np.sqrt(np.maximum(disc, 0))
    single = np.cbrt(q / 2 + root) + np.cbrt(q / 2 - root)
    radius = np.sqrt(max(-p / 3, 0.0))
    cosine = np.clip(q / (2 * radius**3) if radius > 0 else np.ones_like(q), -1, 1)
    triple = 2 * radius * np.cos(np.arccos(cosine) / 3)
    point = np.where(disc >= 0, single, triple) * np.where(x >= 0, 1.0, -1.0)
    return (point**2 - 1) ** 2 / 4 + (x - point) ** 2 / (2 * gamma), point


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """dx = -a x dt + √T dW from a Gaussian: mean and variance at every time."""

    rate: float
    temperature: float

    def mean(self, start: float, time: float) -> float:
        """Of the process at a time, from a start."""
        return float(start * np.exp(-self.rate * time))

    def variance(self, start: float, time: float) -> float:
        """Of the process at a time, from a variance at the start."""
        decay = float(np.exp(-2 * self.rate * time))
        return start * decay + self.temperature * (1 - decay) / (2 * self.rate)


def normal_density(x: Array, mean: float, variance: float) -> Array:
    """The density of N(mean, variance)."""
    return np.asarray(np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance))
