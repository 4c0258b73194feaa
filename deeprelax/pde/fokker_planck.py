"""The Fokker-Planck equation (FP): conservative, positive, with the Gibbs density as its exact discrete limit."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import eigsh, splu

from deeprelax.pde.grid import Array, Function, Grid, positive

# Largest density at an edge, relative to its mean over the grid: beyond, the grid is too small. A normal
# distribution's is 1e-4 at 4.6 standard deviations.
AT_EDGE = 1e-4
MASS_MISSING = 1e-3
# Between neighbouring nodes 2f/T may differ by so much: beyond, Scharfetter-Gummel is upwind, of first order.
UPWIND = 2.0
MASS_UPWIND = 0.01  # and by more at the nodes of this much of the mass before a warning says so
GAP_OF_RATES = 1e-14  # a spectral gap that is less of the largest rate is rounding


class FokkerPlanck:
    """∂ρ/∂t = ∇·(∇f ρ) + (T/2)Δρ, the density of dx = -∇f dt + √T dW. Boundaries reflect.

    Scharfetter-Gummel: between neighbouring nodes the flux is that of the stationary problem with a linear potential,
    so it vanishes exactly where ρ ∝ exp(-2f/T). Euler backward in time: the matrix has positive off-diagonal elements
    and columns that sum to 1, so that no density becomes negative and no mass is lost, whatever the step.

    Args:
        potential: f; takes one array of coordinates per dimension, or values of the grid's shape.
        grid: the domain.
        temperature: T; (FP) as printed is T = 1.

    Attributes:
        generator: the sparse matrix A of dρ/dt = Aρ over flattened densities; Aᵀ is that of the backward equation.

    Raises:
        ValueError: T ≤ 0, f not finite.
    """

    def __init__(self, potential: Function | ArrayLike, grid: Grid, temperature: float = 1.0) -> None:
        self.grid = grid
        self._phi = 2 / positive("temperature", temperature) * grid.values(potential)
        index = np.arange(self._phi.size).reshape(grid.shape)
        self._steep = np.zeros(grid.shape, dtype=bool)  # nodes from which the flux is upwind
        rows, columns, rates = [], [], []
        for axis, h in enumerate(grid.spacing):
            nodes = np.moveaxis(index, axis, 0)
            phi = np.moveaxis(self._phi, axis, 0)
            z = (phi[1:] - phi[:-1]).ravel()
            here, there = nodes[:-1].ravel(), nodes[1:].ravel()
            rate = temperature / 2 / h**2
            self._steep |= _touched(np.abs(phi[1:] - phi[:-1]) > UPWIND, axis)
            for source, target, out in ((here, there, rate * bernoulli(z)), (there, here, rate * bernoulli(-z))):
                rows += [target, source]
                columns += [source, source]
                rates += [out, -out]
        entries = (np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns)))
        self.generator = sp.coo_matrix(entries, shape=(index.size, index.size)).tocsc()

    def stationary(self) -> Array:
        """The Gibbs density exp(-2f/T)/Z, the density of (9) for T = 2.

        Raises:
            ValueError: the grid does not hold its mass.
        """
        density = np.exp(-(self._phi - self._phi.min()))
        return self._held(density / (density.sum() * self.grid.cell))

    def evolve(self, density: Function | ArrayLike, time: float, steps: int = 200) -> Array:
        """The density after ``time``; first order in time/steps, second in the spacing.

        Second in the spacing h only as long as |∇f|h < T where the mass is: beyond, the flux is upwind, of first order,
        which adds |∇f|h/2 or so to T/2. A warning says so.

        Args:
            density: at the start; takes one array of coordinates per dimension, or values of the grid's shape.
            time: how long.
            steps: of equal length.

        Returns:
            Of the grid's shape; ``sum() * grid.cell`` is what it was at the start.

        Raises:
            ValueError: a negative density, one whose integral over the grid is not 1, one that reaches the edge, at
                any step.
        """
        if steps < 1:
            raise ValueError(f"{steps} steps; at least 1 is needed")
        rho = self.grid.values(density)
        if (rho < 0).any():
            raise ValueError(f"the density is negative: {rho.min():.3g}")
        mass = float(rho.sum() * self.grid.cell)
        if abs(mass - 1) > MASS_MISSING:
            raise ValueError(f"the density's mass on the grid is {mass:.6g}, not 1: widen or refine the grid")
        self._held(rho)
        dt = positive("time", time) / steps
        step = splu((sp.identity(rho.size, format="csc") - dt * self.generator).tocsc())
        upwind = self._mass_upwind(rho)
        for _ in range(steps):
            rho = self._held(step.solve(rho.ravel()).reshape(self.grid.shape))
            upwind = max(upwind, self._mass_upwind(rho))
        if upwind > MASS_UPWIND:
            warnings.warn(
                f"{upwind:.2g} of the mass has been where |grad f| times the spacing is more than the temperature: the "
                "density spreads there by first-order errors; use more nodes",
                stacklevel=2,
            )
        return rho

    def spectral_gap(self) -> float:
        """The slowest rate at which a density approaches the Gibbs density.

        Raises:
            ValueError: it is below the rounding of the other rates.
        """
        # Similar to a symmetric matrix, as every reversible chain is: off the diagonal √(AᵢⱼAⱼᵢ).
        symmetric = self.generator.multiply(self.generator.T).sqrt().tolil()
        symmetric.setdiag(self.generator.diagonal())
        values = eigsh(symmetric.tocsc(), k=2, sigma=1e-9, return_eigenvectors=False)
        gap, fastest = float(-values.min()), float(-self.generator.diagonal().min())
        if gap < GAP_OF_RATES * fastest:
            raise ValueError(
                f"the spectral gap is below rounding, {GAP_OF_RATES:g} of the fastest rate {fastest:.3g}: the barrier "
                "is too high for the temperature, or the grid finer than needed"
            )
        return gap

    def _mass_upwind(self, density: Array) -> float:
        return float(density[self._steep].sum()) * self.grid.cell

    def _held(self, density: Array) -> Array:
        """``density``, if it is negligible at the grid's edge, whatever the spacing."""
        for axis, n in enumerate(self.grid.shape):
            for end in (0, -1):
                share = float(density.take(end, axis).sum() / density.sum()) * n
                if share > AT_EDGE:
                    raise ValueError(
                        f"the grid does not hold the density's mass: at an edge the density is {share:.2g} of its mean "
                        "over the grid; widen the grid"
                    )
        return density


def _touched(faces: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """The nodes on either side of faces, which are those between the nodes along the first axis; ``axis`` is where
    that one belongs."""
    nodes = np.zeros((len(faces) + 1, *faces.shape[1:]), dtype=bool)
    nodes[1:] |= faces
    nodes[:-1] |= faces
    return np.moveaxis(nodes, 0, axis)


def bernoulli(z: Array) -> Array:
    """z/(e^z - 1), 1 at 0."""
    small = np.abs(z) < 1e-8
    # e^z overflows to infinity for z > 709, and the quotient is 0 as it should be.
    with np.errstate(over="ignore"):
        return np.where(small, 1 - z / 2, np.where(small, 1.0, z) / np.expm1(np.where(small, 1.0, z)))
