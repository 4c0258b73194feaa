"""Closed forms in one dimension; every function takes and returns arrays of any shape, element by element."""

from __future__ import annotations

import numpy as np

from deeprelax.pde.grid import Array


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


def normal_density(x: Array, mean: float, variance: float) -> Array:
    """The density of N(mean, variance)."""
    return np.asarray(np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance))
