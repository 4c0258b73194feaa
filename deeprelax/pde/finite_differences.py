"""Monotone finite differences: Godunov's flux, explicit under a CFL condition, with implicit diffusion.

A scheme is monotone if a larger u at any node never makes a later value smaller; then it converges to the viscosity
solution (Oberman, 2006). Boundaries reflect: the derivative across the outermost nodes is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.sparse.linalg import splu

from deeprelax.pde.grid import Array, Function, Grid, non_negative, positive

CFL = 0.9  # of the largest monotone step


@dataclass(frozen=True)
class Evolution:
    """A solution at the times of its steps, or of some of them.

    Attributes:
        times: (number kept,), from 0 to the end; for the Hamilton-Jacobi-Bellman equation the time that is left.
        u: (number kept, *grid's shape).
    """

    times: Array
    u: Array

    def gradient(self, grid: Grid) -> Array:
        """Central differences of u, (number kept, dimensions, *grid's shape); zero across the boundary."""
        each = []
        for axis, h in enumerate(grid.spacing):
            before, after = one_sided(self.u, axis + 1, h)
            each.append((before + after) / 2)
        return np.stack(each, axis=1)


def one_sided(u: Array, axis: int, h: float) -> tuple[Array, Array]:
    """Backward and forward differences along an axis, with u mirrored at both ends."""
    inner = np.diff(u, axis=axis) / h
    first, last = np.take(inner, [0], axis), np.take(inner, [-1], axis)
    return np.concatenate([-first, inner], axis), np.concatenate([inner, -last], axis)


def laplacian(grid: Grid) -> sp.csc_matrix:
    """The second differences of a flattened u, with u mirrored at the boundaries."""
    total = sp.csc_matrix((int(np.prod(grid.shape)),) * 2)
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing)):
        off = np.ones(n - 1)
        upper, lower = off.copy(), off.copy()
        upper[0] = lower[-1] = 2
        line = sp.diags([lower, -2 * np.ones(n), upper], [-1, 0, 1]) / h**2
        parts = [line if i == axis else sp.identity(m) for i, m in enumerate(grid.shape)]
        total = total + (parts[0] if len(parts) == 1 else sp.kron(parts[0], parts[1]))
    return total.tocsc()


def hamilton_jacobi(
    f: Function | ArrayLike,
    grid: Grid,
    gamma: float,
    viscosity: float = 0.0,
    step: float | None = None,
    record: int | None = None,
) -> Evolution:
    """u_t = -½|∇u|² + (δ/2)Δu from u = f to time ``gamma``: (viscous HJ) for δ = 1, (non-viscous HJ) for δ = 0.

    First order in the spacing.

    Args:
        f: takes one array of coordinates per dimension, or values of the grid's shape.
        grid: the domain; its boundaries reflect.
        gamma: γ, the time to reach.
        viscosity: δ ≥ 0.
        step: the time step; None takes 0.9 of the largest monotone one.
        record: how many times after the first to keep, about evenly spread and the last among them; None keeps all.

    Raises:
        ValueError: γ ≤ 0, δ < 0, f not finite, a step that is not monotone, record < 1.
    """
    start = grid.values(f)
    still = [np.zeros(grid.shape)] * grid.dimensions
    diffusion = non_negative("viscosity", viscosity)
    return _evolve(start, grid, positive("gamma", gamma), still, True, diffusion, step, record)


def hamilton_jacobi_bellman(
    drift: list[Function | ArrayLike],
    terminal: Function | ArrayLike,
    grid: Grid,
    time: float,
    temperature: float = 1.0,
    *,
    controlled: bool = True,
    step: float | None = None,
) -> Evolution:
    """The value function of section 5: -u_t = -∇f·∇u - ½|∇u|² + (T/2)Δu with u = V at the end.

    Args:
        drift: ∇f, one function or array per dimension.
        terminal: V, the terminal cost.
        grid: the domain; its boundaries reflect.
        time: how long before the end to go.
        temperature: T; eq. (HJB) is for dW, T = 1.
        controlled: False leaves out -½|∇u|²: then u is E V(x_sgd), the cost without control.
        step: the time step; None takes 0.9 of the largest monotone one.

    Returns:
        u over the time that is left, so ``u[0]`` is V and ``u[-1]`` the cost from the beginning.

    Raises:
        ValueError: time ≤ 0, values not finite, a step that is not monotone.
    """
    if len(drift) != grid.dimensions:
        raise ValueError(f"{len(drift)} components of the drift in {grid.dimensions} dimensions")
    b = [grid.values(component) for component in drift]
    start = grid.values(terminal)
    return _evolve(start, grid, positive("time", time), b, controlled, non_negative("temperature", temperature), step)


def _hamiltonian(u: Array, grid: Grid, drift: list[Array], quadratic: bool) -> tuple[Array, float]:
    """Godunov's flux for Σ bp + ½p² (without ½p² upwind differences), and the largest monotone step."""
    flux, speed = np.zeros(grid.shape), np.zeros(grid.shape)
    for axis, (h, b) in enumerate(zip(grid.spacing, drift)):
        before, after = one_sided(u, axis, h)
        if quadratic:
            # bp + ½p² = ½(p + b)² - ½b², convex with its minimum at p = -b.
            left, right = np.maximum(before + b, 0), np.minimum(after + b, 0)
            flux += np.maximum(left**2, right**2) / 2 - b**2 / 2
            speed += np.maximum(left, -right) / h
        else:
            flux += np.maximum(b, 0) * before + np.minimum(b, 0) * after
            speed += np.abs(b) / h
    fastest = float(speed.max())
    return flux, 1 / fastest if fastest > 0 else np.inf


def _evolve(
    u: Array,
    grid: Grid,
    time: float,
    drift: list[Array],
    quadratic: bool,
    diffusion: float,
    step: float | None,
    record: int | None = None,
) -> Evolution:
    if record is not None and record < 1:
        raise ValueError(f"record is {record}; at least 1, for the end, is needed")
    if step is not None:
        positive("step", step)
    limit = _hamiltonian(u, grid, drift, quadratic)[1]
    # Diffusion is implicit and bounds no step; where nothing else does, it is resolved all the same.
    dt = min(step or min(CFL * limit, min(grid.spacing)), time)
    dt = time / np.ceil(time / dt * (1 - 1e-12))
    solve = _diffusion(grid, diffusion, dt)
    now, end, every = 0.0, time * (1 - 1e-12), 0.0 if record is None else time / record
    times, history = [0.0], [u]
    while now < end:
        flux, limit = _hamiltonian(u, grid, drift, quadratic)
        if dt > limit:
            if step is not None:
                raise ValueError(
                    f"step {step:.3g} is not monotone: at time {now:.3g} at most {limit:.3g} is (the spacing "
                    "over the largest slope); use a smaller one, or step=None"
                )
            dt /= 2
            solve = _diffusion(grid, diffusion, dt)
            continue
        u = solve(u - dt * flux)
        now += dt
        if now >= len(times) * every * (1 - 1e-12):
            times.append(now)
            history.append(u)
    return Evolution(np.asarray(times), np.stack(history))


def _diffusion(grid: Grid, diffusion: float, dt: float) -> Callable[[Array], Array]:
    """One implicit Euler step of u_t = (diffusion/2)Δu."""
    if diffusion == 0:
        return lambda u: u
    matrix = sp.identity(int(np.prod(grid.shape)), format="csc") - dt * diffusion / 2 * laplacian(grid)
    factor = splu(matrix.tocsc())
    return lambda u: factor.solve(u.ravel()).reshape(grid.shape)
