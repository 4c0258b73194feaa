"""Paths of (CSGD) and their costs, with a martingale of mean 0 as control variate: section 5 by Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deeprelax.pde.finite_differences import Evolution
from deeprelax.pde.grid import Array, Function, Grid
from deeprelax.pde.theory.linear import linear


@dataclass(frozen=True)
class Costs:
    """Of every path, (rows, paths).

    Attributes:
        end: x(T).
        spent: ½∫α² ds.
        martingale: ∫∇u·dW, of mean 0. By Itô's formula and (HJB), V(x(T)) + ½∫α² - ∫∇u·dW is u(x₀) + ½∫|α - ∇u|² on
            each single path: what remains to be averaged is the control's mistake, not the noise.
    """

    end: Array
    spent: Array
    martingale: Array


def follow(
    value: Evolution,
    gradient: Function,
    grid: Grid,
    starts: Sequence[float],
    scales: Sequence[float],
    paths: int,
    time: float,
    steps: int,
    coarse: int = 1,
) -> Costs:
    """dx = -∇f ds - cα* ds + dW with α* = ∇u, by Euler-Maruyama: a row of paths for each start and its c.

    Args:
        value: u by the time that is left, on a grid in one dimension. For c = 0 it may be v, the cost without control.
        gradient: ∇f.
        grid: of u. Beyond it ∇u is that of the outermost node.
        starts, scales: x₀ and c, of one length.
        paths: for each row; the noise is the same for every row, and for every ``coarse``.
        time: T.
        steps: how many increments of noise are drawn.
        coarse: how many of them make one step.
    """
    rng = np.random.default_rng(0)
    x = np.repeat(np.asarray(starts, dtype=np.float64)[:, None], paths, axis=1)
    c = np.asarray(scales, dtype=np.float64)[:, None]
    h = coarse * time / steps
    spent, martingale = np.zeros_like(x), np.zeros_like(x)
    slopes = value.gradient(grid)[:, 0]
    for k in range(0, steps, coarse):
        left = int(np.searchsorted(value.times, time - k * time / steps))
        p = linear(x, grid, slopes[min(left, len(slopes) - 1)])
        noise = np.sqrt(time / steps) * sum(rng.standard_normal(paths) for _ in range(coarse))
        spent += h * (c * p) ** 2 / 2
        martingale += p * noise
        x = x - h * (gradient(x) + c * p) + noise
    return Costs(x, spent, martingale)
