"""Smoothing by the heat equation and by the viscous Hamilton-Jacobi equation, with gradients.

A function given as a callable is smoothed on the whole line or plane: it is evaluated beyond the grid as far as its
values count. One given as an array is mirrored at the outermost nodes, which makes the result the solution with
reflecting boundaries, as ``finite_differences`` has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import fftconvolve

from deeprelax.pde.grid import Array, Function, Grid, positive

DEVIATIONS = 9  # a Gaussian beyond so many standard deviations is less than 1e-18 of its mass
NEGLIGIBLE = 1e-12  # share of the outermost node in the integral
# Nodes that an integral must rest on, 1/Σw². A Gaussian of deviation σ rests on 2√π σ/h of them: at 0.7 h the sum over
# the nodes is off by 1e-4 of the integral. A peak between two nodes, however narrow, rests on 2.
RESTS_ON = 2.5


@dataclass(frozen=True)
class Smoothed:
    """A smoothed function on a grid.

    Attributes:
        u: its values, of the grid's shape.
        gradient: its gradient, of shape (dimensions, *grid's shape).
    """

    u: Array
    gradient: Array


def _reach(variance: float, grid: Grid) -> tuple[int, ...]:
    """Nodes that a Gaussian needs on either side; the grid must resolve it."""
    deviation = math.sqrt(variance)
    for h in grid.spacing:
        # The trapezoidal rule's relative error is 2 exp(-2 (pi deviation / h)²), 5e-9 at deviation = h.
        if deviation < h:
            raise ValueError(
                f"the grid's spacing {h:.3g} is wider than the Gaussian's standard deviation {deviation:.3g}: "
                "use more nodes, or smooth more"
            )
    return tuple(math.ceil(DEVIATIONS * deviation / h) for h in grid.spacing)


def heat(f: Function | ArrayLike, grid: Grid, gamma: float) -> Smoothed:
    """The heat equation u_t = ½Δu from u = f, at time ``gamma``: eq. 21, the convolution of f with N(0, γI).

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        grid: where u is wanted; √γ must be at least its spacing.
        gamma: γ, the time and the variance.

    Raises:
        ValueError: γ ≤ 0, f not finite, the grid too coarse.
    """
    reach = _reach(positive("gamma", gamma), grid)
    values = grid.beyond(f, reach)
    results = [values] * (1 + grid.dimensions)  # u, then the derivative along each dimension
    for axis, (h, m) in enumerate(zip(grid.spacing, reach)):
        offset = h * np.arange(-m, m + 1)
        kernel = np.exp(-(offset**2) / (2 * gamma))
        # Normalised by the sums, so that constants and linear functions come out exactly.
        smooth, derive = kernel / kernel.sum(), -offset * kernel / (offset**2 * kernel).sum()
        shape = [-1 if i == axis else 1 for i in range(grid.dimensions)]
        results = [
            fftconvolve(r, (derive if i == axis + 1 else smooth).reshape(shape), mode="valid", axes=axis)
            for i, r in enumerate(results)
        ]
    return Smoothed(results[0], np.stack(results[1:]))


def viscous(f: Function | ArrayLike, grid: Grid, gamma: float, viscosity: float = 1.0) -> Smoothed:
    """The viscous Hamilton-Jacobi equation u_t = -½|∇u|² + (δ/2)Δu from u = f, at time ``gamma``, by Hopf-Cole.

    u = -δ log(G_{δγ} * exp(-f/δ)): Lemma 2 for δ = 1, local entropy. ∇u = (x - E[y])/γ over the density (12) (Lemma
    3). Integrals are sums over the grid in log space: nothing overflows or vanishes, however large f/δ.

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        grid: where u is wanted; √(δγ) must be at least its spacing, and exp(-f/δ) times the Gaussian must be wider
            than a spacing or so (in a valley of curvature a, √(δ/(a + 1/γ)) must be at least 0.72 of it).
        gamma: γ, the time.
        viscosity: δ = β⁻¹. Noise of temperature T in eq. 4 (dW is T = 1) gives δ = T/2.

    Raises:
        ValueError: γ or δ ≤ 0, f not finite, the grid too coarse, a divergent integral.
    """
    u, means = _integrate(f, [], grid, gamma, viscosity)
    return Smoothed(u, np.stack([(x - y) / gamma for x, y in zip(grid.mesh, means)]))


def gibbs_average(
    h: Function, f: Function | ArrayLike, grid: Grid, gamma: float, viscosity: float = 1.0
) -> Array:  # fmt: skip
    """The mean of h(y) over the density (12), ∝ exp(-(f(y) + |x - y|²/2γ)/δ), at every node x.

    With h = ∂f/∂x this is ∇u by eq. 13, after y ← x - y.

    Args:
        h: takes one array of coordinates per dimension.
        f, grid, gamma, viscosity: as in ``viscous``; h is mirrored with an array f.

    Returns:
        Means of the grid's shape.
    """
    return _integrate(f, [h if callable(f) else grid.values(h)], grid, gamma, viscosity)[1][-1]


def _integrate(
    f: Function | ArrayLike, riders: list[Function | Array], grid: Grid, gamma: float, viscosity: float
) -> tuple[Array, list[Array]]:
    """u, and the means of the coordinates and of the riders over (12), each of the grid's shape."""
    variance = positive("viscosity", viscosity) * positive("gamma", gamma)
    nodes = _reach(variance, grid)
    if not callable(f):
        # The mirror images that count may be all of each node's nearest ones on either side, up to two widths away; the
        # next are 9 deviations of the Gaussian farther, or two widths.
        nodes = tuple(max(m, 2 * (n - 1)) for m, n in zip(nodes, grid.shape))
    while True:
        wide = grid.widened(nodes)
        log_weight = -grid.beyond(f, nodes) / viscosity
        means = [*wide.mesh, *(grid.beyond(r, nodes) for r in riders)]
        edge: list[float] = []
        squares: list[Array] = []
        for axis, (x, y, h) in enumerate(zip(grid.axes, wide.axes, grid.spacing)):
            log_kernel = -((x[:, None] - y) ** 2) / (2 * variance) + math.log(h / math.sqrt(2 * math.pi * variance))
            log_weight, averaged, square, share = _pass(log_weight, means + squares, log_kernel, axis)
            means, squares = averaged[: len(means)], [*averaged[len(means) :], square]
            edge.append(share)
        if not callable(f) or max(edge) < NEGLIGIBLE:
            _resolved(squares, grid, viscosity)
            return -viscosity * log_weight, means
        nodes = tuple(2 * m if share >= NEGLIGIBLE else m for m, share in zip(nodes, edge))
        if grid.limited(nodes) != nodes:
            raise ValueError(
                f"exp(-f/viscosity) times the Gaussian does not decay within {' by '.join(map(str, wide.shape))} nodes "
                f"(gamma {gamma:.3g}, viscosity {viscosity:.3g}): f must not fall faster than -|x|²/(2 gamma)"
            )


def _resolved(squares: list[Array], grid: Grid, viscosity: float) -> None:
    """ValueError if an integral along a dimension, with these Σw² at every node, rests on too few nodes."""
    for square, h in zip(squares, grid.spacing):
        if square.max() > 1 / RESTS_ON:
            where = np.unravel_index(int(square.argmax()), grid.shape)
            point = tuple(float(axis[i]) for axis, i in zip(grid.axes, where))
            raise ValueError(
                f"the grid's spacing {h:.3g} is too wide for exp(-f/viscosity): at {point} the integral rests on "
                f"{1 / square.max():.2g} nodes; use more nodes, or a viscosity larger than {viscosity:.3g}"
            )


def _pass(
    log_weight: Array, means: list[Array], log_kernel: Array, axis: int
) -> tuple[Array, list[Array], Array, float]:
    """Integrate one dimension: log of the integrals, conditional means, Σw², the largest share of an outermost node.

    ``log_kernel`` has a row for each x and a column for each y. The Gaussian is a product, so one dimension after the
    other is enough: a mean over y₁ for given (x₁, y₂) is averaged over y₂ afterwards.
    """
    log_weight = np.moveaxis(log_weight, axis, -1)
    means = [np.moveaxis(m, axis, -1) for m in means]
    logs = np.empty((*log_weight.shape[:-1], len(log_kernel)))
    averaged = [np.empty_like(logs) for _ in means]
    squares, edge = np.empty_like(logs), 0.0
    for i, row in enumerate(log_kernel):
        exponent = log_weight + row
        top = exponent.max(-1, keepdims=True)
        weight = np.exp(exponent - top)
        total = weight.sum(-1)
        logs[..., i] = top[..., 0] + np.log(total)
        for mean, out in zip(means, averaged):
            out[..., i] = (weight * mean).sum(-1) / total
        squares[..., i] = np.square(weight).sum(-1) / total**2
        edge = max(edge, float((np.maximum(weight[..., 0], weight[..., -1]) / total).max()))
    logs, squares, *averaged = (np.moveaxis(a, -1, axis) for a in (logs, squares, *averaged))
    return logs, averaged, squares, edge
