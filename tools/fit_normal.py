"""Recomputes the polynomials of kernels/noise.py and prints them with their errors.

Minimax fits by Lawson's iteration: least squares on a fine Chebyshev grid, each point's weight multiplied by its error
until the largest errors are equal. Run: python tools/fit_normal.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev

from deeprelax.kernels import noise

POINTS, ITERATIONS = 4001, 300


def minimax(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> tuple[np.ndarray, float]:
    """Coefficients, lowest degree first, and the largest absolute error before they are rounded to float32."""
    t = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
    values = function((low + high) / 2 + (high - low) / 2 * t)
    basis, weights = chebyshev.chebvander(t, degree), np.full(POINTS, 1 / POINTS)
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        fitted = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)[0]
        errors = np.abs(basis @ fitted - values)
        weights *= errors
        weights /= weights.sum()
    series = Chebyshev(fitted, domain=[low, high])
    return series.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef, float(errors.max())


def log_ratio(f: np.ndarray) -> np.ndarray:
    """-2 ln(1 + f) / f."""
    return np.where(np.abs(f) < 1e-12, -2.0, -2 * np.log1p(f) / np.where(f == 0, 1, f))


def sin_ratio(t2: np.ndarray) -> np.ndarray:
    """sin(pi/4 t) / t of t^2."""
    t = np.sqrt(np.maximum(t2, 1e-30))
    return np.sin(np.pi / 4 * t) / t


def cosine(t2: np.ndarray) -> np.ndarray:
    """cos(pi/4 t) of t^2."""
    return np.cos(np.pi / 4 * np.sqrt(np.maximum(t2, 0)))


def main() -> None:
    half = np.sqrt(0.5)
    for name, kept, function, low, high in (
        ("LOG", noise.LOG, log_ratio, half - 1, 2 * half - 1),
        ("SIN", noise.SIN, sin_ratio, 0.0, 1.0),
        ("COS", noise.COS, cosine, 0.0, 1.0),
    ):
        coefficients, error = minimax(function, low, high, len(kept) - 1)
        fitted = tuple(float(str(np.float32(c))) for c in coefficients)
        print(f"{name} = {fitted}  # largest error {error:.1e}; {'as kept' if fitted == kept else f'kept: {kept}'}")


if __name__ == "__main__":
    main()
