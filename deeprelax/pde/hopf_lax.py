"""Smoothing by the non-viscous Hamilton-Jacobi equation: the Hopf-Lax formula and the proximal point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar

from deeprelax.pde.grid import Array, Function, Grid, non_negative, positive


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

    The parabolas, all of one width, are kept on a stack in the order of their vertices, each with the abscissa from
    which it is the lowest; a new one removes those that it undercuts from their start on.

    Args:
        values: heights of the vertices, (m,).
        y: their places, (m,), increasing.
        x: where the envelope is wanted, (n,), increasing.
        gamma: γ > 0.

    Returns:
        The envelope (n,) and the indices (n,).

    Raises:
        ValueError: γ ≤ 0; an array that is empty, of another shape, not finite or, y and x, not increasing.
    """
    positive("gamma", gamma)
    for name, numbers in (("values", values), ("y", y), ("x", x)):
        if np.ndim(numbers) != 1 or len(numbers) == 0 or not np.isfinite(numbers).all():
            raise ValueError(f"{name} of shape {np.shape(numbers)}: finite numbers in a row are needed")
    if len(values) != len(y):
        raise ValueError(f"{len(values)} values at {len(y)} places y")
    if not ((np.diff(y) > 0).all() and (np.diff(x) >= 0).all()):
        raise ValueError("y and x must be in increasing order, and no y twice")
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
    for i, position in enumerate(x.tolist()):
        while starts[k + 1] <= position:
            k += 1
        index[i] = lowest[k]
    return values[index] + (x - y[index]) ** 2 / (2 * gamma), index


def non_viscous(f: Function | ArrayLike, grid: Grid, gamma: float) -> Envelope:
    """The viscosity solution of u_t = -½|∇u|² from u = f, at time ``gamma``: Hopf-Lax (Lemma 5) on the grid's nodes.

    Exact for minimisation over the nodes: u is too large by at most |∇²f + 1/γ| h²/8 per dimension, and the gradient
    off by at most h/2γ where the proximal point is unique. A callable's minimisers may lie beyond the grid: the search
    extends to |x - y|² ≤ 2γ(f(x) - inf f). The lowest value found within that distance stands for inf f, so that a
    deeper well beyond it is only found from a grid that is wider, or on which f varies more.

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        grid: where u is wanted.
        gamma: γ, the time.

    Raises:
        ValueError: γ ≤ 0, f not finite, no minimum (f falls faster than -|x|²/2γ).
    """
    positive("gamma", gamma)
    nodes = _window(f, grid, gamma) if callable(f) else (0,) * grid.dimensions
    wide = grid.widened(nodes)
    u = grid.beyond(f, nodes)
    points: list[Array] = []
    for axis, (x, y) in enumerate(zip(grid.axes, wide.axes)):
        u, index = _along(u, y, x, gamma, axis)
        points = [np.take_along_axis(p, index, axis) for p in points] + [y[index]]
    if callable(f) and any(((p == y[0]) | (p == y[-1])).any() for p, y in zip(points, wide.axes)):
        raise _unbounded(wide, gamma)
    point = np.stack(points)
    return Envelope(u, point, (np.stack(grid.mesh) - point) / gamma)


def _window(f: Function, grid: Grid, gamma: float) -> tuple[int, ...]:
    """Nodes beyond the grid on either side, so that the proximal points of all its nodes are among them.

    A proximal point y of x has |x - y|² ≤ 2γ(f(x) - inf f). The lowest value seen stands for inf f: if the search finds
    a lower one, it continues farther out.
    """
    f_here = grid.values(f)
    lowest, place = np.inf, np.zeros(grid.dimensions)
    nodes, last = (0,) * grid.dimensions, False
    while True:
        wide = grid.widened(nodes)
        with np.errstate(all="ignore"):  # far out f may overflow, or not exist: no proximal point is there
            seen = np.nan_to_num(np.broadcast_to(f(*wide.mesh), wide.shape), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        where = np.unravel_index(int(seen.argmin()), wide.shape)
        if seen[where] == -np.inf:
            grid.beyond(f, nodes)  # says where
        if seen[where] < lowest:
            lowest, place = float(seen[where]), np.asarray([axis[i] for axis, i in zip(wide.axes, where)])
        height = 2 * gamma * (f_here - lowest)
        wanted = _nodes_within(float(height.max()), grid)
        if last or all(w <= m for w, m in zip(wanted, nodes)):
            break
        asked = tuple(max(w, 2 * m) for w, m in zip(wanted, nodes))
        nodes = grid.limited(asked)
        last = nodes != asked
    if last:  # as far as can be seen: where the first node's proximal point is at the edge, there is none
        objective = seen + sum((m - x[0]) ** 2 for m, x in zip(wide.mesh, grid.axes)) / (2 * gamma)
        minimiser = np.unravel_index(int(objective.argmin()), wide.shape)
        if any(i in (0, n - 1) for i, n in zip(minimiser, wide.shape)):
            raise _unbounded(wide, gamma)
    # Nor is a proximal point farther from x than the place of the lowest value.
    apart = sum((m - p) ** 2 for m, p in zip(grid.mesh, place))
    within = _nodes_within(float(np.minimum(height, apart).max()), grid)
    return tuple(min(w, m) for w, m in zip(within, nodes))


def _nodes_within(square: float, grid: Grid) -> tuple[int, ...]:
    """Nodes that a distance takes, and one more."""
    return tuple(math.ceil(math.sqrt(square) / h) + 1 for h in grid.spacing)


def _unbounded(wide: Grid, gamma: float) -> ValueError:
    size = " by ".join(map(str, wide.shape))
    return ValueError(
        f"f(y) + |x - y|²/(2 gamma) has no minimum within {size} nodes (gamma {gamma:.3g}): f must not fall faster "
        "than -|x|²/(2 gamma)"
    )


def _along(values: Array, y: Array, x: Array, gamma: float, axis: int) -> tuple[Array, NDArray[np.intp]]:
    lines = np.moveaxis(values, axis, -1)
    u = np.empty((*lines.shape[:-1], len(x)))
    index = np.empty(u.shape, dtype=np.intp)
    for i in np.ndindex(*lines.shape[:-1]):
        u[i], index[i] = lower_envelope(lines[i], y, x, gamma)
    return np.moveaxis(u, -1, axis), np.moveaxis(index, -1, axis)


def proximal_points(
    f: Function | ArrayLike, x: ArrayLike, gamma: float, grid: Grid, tolerance: float = 1e-9
) -> Array:  # fmt: skip
    """The set of global minimisers of f(y) + |x - y|²/(2γ) (eq. 15) over the grid's range.

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        x: one point, a number or (dimensions,).
        gamma: γ > 0.
        grid: where to look. For a callable, every local minimum over its nodes is refined between the neighbouring
            nodes; two that come out less than a spacing apart count as one. For an array, only the nodes are known:
            the minimisers are nodes, neighbours and those on the edge too.
        tolerance: how much above the minimum a value of f(y) + |x - y|²/(2γ) still counts as minimal.

    Returns:
        (number of minimisers, dimensions), lowest first.

    Raises:
        ValueError: γ ≤ 0, f or x not finite, an x of other dimensions than the grid, a callable's minimiser on the
            edge of the grid.
    """
    positive("gamma", gamma)
    non_negative("tolerance", tolerance)
    point = np.atleast_1d(np.asarray(x, dtype=np.float64))
    if point.shape != (grid.dimensions,) or not np.isfinite(point).all():
        raise ValueError(f"x is {point}; a point of {grid.dimensions} finite coordinates is needed")
    objective = grid.values(f) + sum((m - a) ** 2 for m, a in zip(grid.mesh, point)) / (2 * gamma)
    if not callable(f):
        order = np.argsort(objective, axis=None, kind="stable")
        tied = order[objective.ravel()[order] <= objective.min() + tolerance]
        return np.stack([m.ravel()[tied] for m in grid.mesh], 1)

    def value(y: Array) -> float:
        return float(f(*y)) + float(((y - point) ** 2).sum()) / (2 * gamma)

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
