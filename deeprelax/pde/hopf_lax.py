"""Smoothing by the non-viscous Hamilton-Jacobi equation: the Hopf-Lax formula and the proximal point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar

from deeprelax.pde.grid import Array, Function, Grid, positive
from deeprelax.pde.smoothing import MAX_NODES


@dataclass(frozen=True)
class Envelope:
    """The Hopf-Lax envelope of a function on a grid.

    Attributes:
        u: its values, of the grid's shape.
        point: a proximal point (15) for every node, a node of the (widened) grid: shape (dimensions, *grid's shape).
        gradient: (x - point)/γ (16), of the same shape; where there are several proximal points, that of one of them.
    """

    u: Array
    point: Array
    gradient: Array


def lower_envelope(values: Array, y: Array, x: Array, gamma: float) -> tuple[Array, NDArray[np.intp]]:
    """min over j of values[j] + (x[i] - y[j])²/(2γ) for every i, and the j, in time linear in len(x) + len(y).

    The parabolas of one width are kept on a stack in the order of their vertices, each with the abscissa from which
    it is the lowest; a new one takes away those that it undercuts from their own start on.

    Args:
        values: heights of the vertices, (m,).
        y: their places, (m,), increasing.
        x: where the envelope is wanted, (n,), increasing.
        gamma: γ > 0.

    Returns:
        The envelope (n,) and the indices (n,).
    """
    # Where the parabolas j < k meet: difference of (values/… + y²/2γ) over difference of y/γ.
    heights = (gamma * values + y**2 / 2).tolist()
    places = y.tolist()
    lowest, starts = [0], [-np.inf]
    for k in range(1, len(places)):
        while True:
            j = lowest[-1]
            meet = (heights[k] - heights[j]) / (places[k] - places[j])
            if meet > starts[-1]:
                break
            lowest.pop()
            starts.pop()
        lowest.append(k)
        starts.append(meet)
    # Two sorted lists are merged: each x belongs to the last parabola that starts before it.
    index, k = np.empty(len(x), dtype=np.intp), 0
    starts.append(np.inf)
    for i, at in enumerate(x.tolist()):
        while starts[k + 1] <= at:
            k += 1
        index[i] = lowest[k]
    return values[index] + (x - y[index]) ** 2 / (2 * gamma), index


def non_viscous(f: Function | ArrayLike, grid: Grid, gamma: float) -> Envelope:
    """The viscosity solution of u_t = -½|∇u|² from u = f, at time ``gamma``: Hopf-Lax (Lemma 5) on the grid's nodes.

    Exact for minimisation over the nodes: u is too large by at most |∇²f + 1/γ| h²/8 per dimension, and the gradient
    off by at most h/2γ where the proximal point is unique. A callable's minimisers may lie beyond the grid.

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        grid: where u is wanted.
        gamma: γ, the time.

    Raises:
        ValueError: γ ≤ 0, f not finite, no minimum (f falls faster than -|x|²/2γ).
    """
    positive("gamma", gamma)
    nodes = (0,) * grid.dimensions
    while True:
        wide = grid.widened(nodes)
        u = grid.beyond(f, nodes)
        points: list[Array] = []
        outside = []
        for axis, (x, y) in enumerate(zip(grid.axes, wide.axes)):
            u, index = _along(u, y, x, gamma, axis)
            points = [np.take_along_axis(p, index, axis) for p in points] + [y[index]]
            outside.append(bool(((index == 0) | (index == len(y) - 1)).any()))
        if not callable(f) or not any(outside):
            point = np.stack(points)
            return Envelope(u, point, (np.stack(grid.mesh) - point) / gamma)
        nodes = tuple(max(2 * m, n // 2) if out else m for m, n, out in zip(nodes, grid.shape, outside))
        if max(wide.shape) > MAX_NODES:
            raise ValueError(
                f"f(y) + |x - y|²/(2 gamma) has no minimum within {MAX_NODES} nodes (gamma {gamma:.3g}): f must not "
                "fall faster than -|x|²/(2 gamma)"
            )


def _along(values: Array, y: Array, x: Array, gamma: float, axis: int) -> tuple[Array, NDArray[np.intp]]:
    lines = np.moveaxis(values, axis, -1)
    u = np.empty((*lines.shape[:-1], len(x)))
    index = np.empty(u.shape, dtype=np.intp)
    for i in np.ndindex(*lines.shape[:-1]):
        u[i], index[i] = lower_envelope(lines[i], y, x, gamma)
    return np.moveaxis(u, -1, axis), np.moveaxis(index, -1, axis)


def proximal_points(f: Function, x: ArrayLike, gamma: float, grid: Grid, tolerance: float = 1e-9) -> Array:
    """The set of global minimisers of f(y) + |x - y|²/(2γ) (eq. 15) over the grid's range, beyond its resolution.

    Args:
        f: takes one array of coordinates per dimension.
        x: one point, a number or (dimensions,).
        gamma: γ > 0.
        grid: where to look. Every local minimum over its nodes is refined between the neighbouring nodes; two that
            come out less than a spacing apart count as one.
        tolerance: how much above the minimum a value still counts as minimal.

    Returns:
        (number of minimisers, dimensions), lowest first.

    Raises:
        ValueError: γ ≤ 0, f not finite, a minimiser on the edge of the grid.
    """
    positive("gamma", gamma)
    at = np.atleast_1d(np.asarray(x, dtype=np.float64))
    objective = grid.values(f) + sum((m - a) ** 2 for m, a in zip(grid.mesh, at)) / (2 * gamma)

    def value(y: Array) -> float:
        return float(f(*y)) + float(((y - at) ** 2).sum()) / (2 * gamma)

    minimal = np.ones(grid.shape, dtype=bool)
    padded = np.pad(objective, 1, constant_values=np.inf)
    inner = tuple(slice(1, -1) for _ in grid.shape)
    for axis in range(grid.dimensions):
        for shift in (-1, 1):
            minimal &= objective <= np.roll(padded, shift, axis)[inner]
    found = []
    edge: tuple[float, tuple[float, ...]] = (np.inf, ())
    for where in zip(*np.nonzero(minimal)):
        node = np.asarray([axis[i] for axis, i in zip(grid.axes, where)])
        if any(i in (0, n - 1) for i, n in zip(where, grid.shape)):
            edge = min(edge, (float(objective[where]), tuple(map(float, node))))
        else:
            found.append(_refined(value, node, grid.spacing))
    best = min((v for v, _ in found), default=np.inf)
    if edge[0] <= best + tolerance:
        raise ValueError(f"the minimum over the grid lies on its edge, at {edge[1]}: widen the grid")
    distinct: list[Array] = []
    for v, y in sorted(((v, tuple(y)) for v, y in found)):
        if v <= best + tolerance and all((np.abs(y - other) > grid.spacing).any() for other in distinct):
            distinct.append(np.asarray(y))
    return np.stack(distinct)


def _refined(value: Callable[[Array], float], node: Array, spacing: tuple[float, ...]) -> tuple[float, Array]:
    """The minimum near a node, and its place."""
    if len(node) == 1:
        low, high = node[0] - spacing[0], node[0] + spacing[0]
        result = minimize_scalar(
            lambda y: value(np.asarray([y])), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        )
        return float(result.fun), np.asarray([result.x])
    simplex = node + np.vstack([np.zeros(len(node)), np.diag(spacing)]) / 2
    options = {"xatol": 1e-9, "fatol": 1e-15, "initial_simplex": simplex, "maxfev": 2000}
    result = minimize(value, node, method="Nelder-Mead", options=options)
    return float(result.fun), np.asarray(result.x)
