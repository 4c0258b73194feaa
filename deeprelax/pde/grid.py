"""Uniform grids in one or two dimensions, and functions on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# One array of coordinates per dimension in, an array of the same shape out.
Function = Callable[..., Array]

# The largest grid that widening may make; beyond, an integral counts as divergent, a function as unbounded.
MAX_NODES = 40_000  # along one dimension
MAX_TOTAL = 4_000_000


def positive(name: str, value: float) -> float:
    """``value`` as a float, if it is finite and greater than zero."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {value}; a finite number > 0 is needed")
    return number


def non_negative(name: str, value: float) -> float:
    """``value`` as a float, if it is finite and not negative."""
    return 0.0 if value == 0 else positive(name, value)


@dataclass(frozen=True)
class Grid:
    """Evenly spaced nodes. ``Grid.uniform((-3, 3, 601))``; a second triple makes it a plane.

    Attributes:
        axes: the coordinates of the nodes along each dimension, one array each.

    Raises:
        ValueError: other than one or two axes; one that is not an increasing, evenly spaced row of three or more.
    """

    axes: tuple[Array, ...]

    def __post_init__(self) -> None:
        if len(self.axes) not in (1, 2):
            raise ValueError(f"{len(self.axes)} axes; one (a line) or two (a plane) are needed")
        for axis in self.axes:
            if np.ndim(axis) != 1 or len(axis) < 3 or not np.isfinite(axis).all():
                raise ValueError(f"an axis of shape {np.shape(axis)}: at least 3 finite numbers in a row are needed")
            even = np.linspace(axis[0], axis[-1], len(axis))
            spacing = even[1] - even[0]
            # Coordinates are rounded: a grid far from 0 is even to so much only.
            slack = 1e-6 * spacing + 8 * np.finfo(np.float64).eps * np.abs(even).max()
            if not (spacing > 0 and np.abs(axis - even).max() <= slack):
                raise ValueError("an axis is not increasing and evenly spaced; Grid.uniform makes one that is")

    @classmethod
    def uniform(cls, *ranges: tuple[float, float, int]) -> Grid:
        """A grid from (first node, last node, number of nodes) for each of one or two dimensions.

        Raises:
            ValueError: no such grid: other than one or two ranges, an empty one, fewer than three nodes.
        """
        if len(ranges) not in (1, 2):
            raise ValueError(f"{len(ranges)} ranges; one (a line) or two (a plane) are needed")
        for each in ranges:
            if len(each) != 3:
                raise ValueError(f"{each}: first node, last node and number of nodes are needed")
            low, high, points = each
            if not (math.isfinite(low) and math.isfinite(high) and low < high and int(points) == points >= 3):
                raise ValueError(f"({low}, {high}, {points}): first node < last node and at least 3 nodes are needed")
        return cls(tuple(np.linspace(low, high, int(points)) for low, high, points in ranges))

    @property
    def dimensions(self) -> int:
        """The number of axes."""
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Between neighbours along each axis."""
        return tuple(float((axis[-1] - axis[0]) / (len(axis) - 1)) for axis in self.axes)

    @property
    def cell(self) -> float:
        """The length or area that belongs to a node."""
        return math.prod(self.spacing)

    @property
    def mesh(self) -> list[Array]:
        """Coordinates of every node, one array of ``shape`` per dimension."""
        return list(np.meshgrid(*self.axes, indexing="ij"))

    def values(self, f: Function | ArrayLike) -> Array:
        """``f`` at every node, as float64 of ``shape``: a callable is evaluated, an array is checked.

        Raises:
            ValueError: of another shape, or not finite somewhere.
            TypeError: complex.
        """
        try:
            given = f(*self.mesh) if callable(f) else f
        except Exception as error:
            error.add_note(f"f gets {self.dimensions} arrays of coordinates, each of shape {self.shape}")
            raise
        if np.iscomplexobj(given):
            raise TypeError("the function is complex; real values are needed")
        found = np.asarray(given, dtype=np.float64)
        if callable(f) and found.ndim == 0:  # a constant
            found = np.full(self.shape, found)
        if found.shape != self.shape:
            raise ValueError(f"values of shape {found.shape} on a grid of shape {self.shape}")
        if not np.isfinite(found).all():
            where = np.unravel_index(int(np.argmin(np.isfinite(found))), self.shape)
            point = tuple(float(axis[i]) for axis, i in zip(self.axes, where))
            raise ValueError(f"the function is {found[where]} at {point}; it must be finite on the whole grid")
        return found

    def limited(self, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """``nodes``, or fewer if the grid with so many more on either side would be too large to evaluate."""
        nodes = tuple(min(m, max((MAX_NODES - n) // 2, 0)) for n, m in zip(self.shape, nodes))
        while any(nodes) and math.prod(n + 2 * m for n, m in zip(self.shape, nodes)) > MAX_TOTAL:
            nodes = tuple(m * 9 // 10 for m in nodes)
        return nodes

    def widened(self, nodes: tuple[int, ...]) -> Grid:
        """The grid with so many more nodes on either side of each dimension, at the same spacing."""
        return Grid(
            tuple(axis[0] + h * np.arange(-m, len(axis) + m) for axis, h, m in zip(self.axes, self.spacing, nodes))
        )

    def beyond(self, f: Function | ArrayLike, nodes: tuple[int, ...]) -> Array:
        """``f`` on the widened grid: a callable is evaluated there, an array is mirrored at the outermost nodes."""
        if callable(f):
            return self.widened(nodes).values(f)
        return np.pad(self.values(f), [(m, m) for m in nodes], mode="reflect")
