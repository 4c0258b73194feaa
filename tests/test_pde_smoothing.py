"""Heat and viscous Hamilton-Jacobi smoothing against closed forms and quadrature."""

import math
import re

import numpy as np
import pytest
from scipy.integrate import quad

from deeprelax.pde import Grid, gibbs_average, heat, viscous
from deeprelax.pde.closed_forms import quadratic_heat, quadratic_viscous
from deeprelax.pde.losses import LOSSES, rugged

LINE = Grid.uniform((-3, 3, 301))
X = LINE.axes[0]
PLANE = Grid.uniform((-2, 2, 41), (-1.5, 2, 36))
MATRIX = np.array([[1.5, 0.3], [0.3, 1.0]])


def bowl(x, y):
    """½xᵀAx."""
    return (MATRIX[0, 0] * x * x + 2 * MATRIX[0, 1] * x * y + MATRIX[1, 1] * y * y) / 2


def image(matrix: np.ndarray) -> np.ndarray:
    """Matrix times the nodes of the plane."""
    return np.einsum("ij,jkl->ikl", matrix, np.stack(PLANE.mesh))


@pytest.mark.parametrize("viscosity", [1e-2, 1.0, 7.0])
@pytest.mark.parametrize("curvature", [1.5, 0.0, -0.8])
def test_the_viscous_solution_of_a_quadratic_is_the_closed_form(viscosity: float, curvature: float) -> None:
    smooth = viscous(lambda x: curvature * x**2 / 2, LINE, 0.9, viscosity)
    u, slope = quadratic_viscous(X, 0.9, curvature, viscosity)
    np.testing.assert_allclose(smooth.u, u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(smooth.gradient[0], slope, rtol=0, atol=1e-12)


def test_heat_of_a_quadratic_is_the_closed_form() -> None:
    smooth = heat(lambda x: 0.75 * x**2, LINE, 0.4)
    u, slope = quadratic_heat(X, 0.4, 1.5)
    np.testing.assert_allclose(smooth.u, u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(smooth.gradient[0], slope, rtol=0, atol=1e-12)


def test_in_two_dimensions_a_quadratic_gives_the_closed_forms() -> None:
    gamma, viscosity = 0.4, 0.5
    shrink = np.eye(2) + gamma * MATRIX
    smooth = viscous(bowl, PLANE, gamma, viscosity)
    slope = image(MATRIX @ np.linalg.inv(shrink))
    expected = (np.stack(PLANE.mesh) * slope).sum(0) / 2 + viscosity / 2 * math.log(np.linalg.det(shrink))
    np.testing.assert_allclose(smooth.u, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(smooth.gradient, slope, rtol=0, atol=1e-12)
    warm = heat(bowl, PLANE, gamma)
    np.testing.assert_allclose(warm.u, bowl(*PLANE.mesh) + gamma * np.trace(MATRIX) / 2, rtol=0, atol=1e-11)
    np.testing.assert_allclose(warm.gradient, image(MATRIX), rtol=0, atol=1e-11)


@pytest.mark.parametrize("viscosity", [0.3, 1.0])
def test_the_viscous_solution_of_a_rugged_loss_is_hopf_coles_integral(viscosity: float) -> None:
    loss, gamma = rugged(), 0.3
    smooth = viscous(loss.f, LINE, gamma, viscosity)
    for i in (10, 150, 222):
        weight = lambda y: math.exp(-(loss.f(y) + (y - X[i]) ** 2 / (2 * gamma)) / viscosity)  # noqa: B023, E731
        total = quad(weight, X[i] - 6, X[i] + 6, limit=400, epsabs=1e-14, epsrel=1e-12)[0]
        mean = quad(lambda y: y * weight(y), X[i] - 6, X[i] + 6, limit=400, epsabs=1e-14, epsrel=1e-12)[0] / total  # noqa: B023
        u = -viscosity * math.log(total / math.sqrt(2 * math.pi * gamma * viscosity))
        assert smooth.u[i] == pytest.approx(u, abs=1e-9)
        assert smooth.gradient[0][i] == pytest.approx((X[i] - mean) / gamma, abs=1e-8)


def test_the_gradient_is_also_the_average_of_the_losss_gradient() -> None:
    loss = LOSSES["tilted-well"]
    average = gibbs_average(loss.gradient, loss.f, LINE, 0.5, 0.7)
    np.testing.assert_allclose(average, viscous(loss.f, LINE, 0.5, 0.7).gradient[0], rtol=0, atol=1e-11)


def test_nothing_overflows_where_the_exponential_would() -> None:
    scale = 1e6  # exp(-f/δ) is exp(-7.5e8) at the ends
    smooth = viscous(lambda x: scale * 0.75 * x**2, LINE, 0.4 / scale, 1e6 * 0.01)
    u, slope = quadratic_viscous(X, 0.4 / scale, 1.5 * scale, 1e6 * 0.01)
    np.testing.assert_allclose(smooth.u, u, rtol=1e-12)
    np.testing.assert_allclose(smooth.gradient[0], slope, rtol=1e-9, atol=1e-6)


def test_an_array_is_mirrored_at_the_ends_and_a_callable_is_not() -> None:
    f = np.cos(np.pi * X / 3)  # even about both ends: mirroring continues it
    np.testing.assert_allclose(
        viscous(f, LINE, 0.5).u, viscous(lambda x: np.cos(np.pi * x / 3), LINE, 0.5).u, atol=1e-12
    )
    np.testing.assert_allclose(heat(f, LINE, 0.5).u, f * math.exp(-(np.pi**2) / 9 / 4), atol=1e-12)
    assert abs(heat(X, LINE, 0.5).gradient[0][0]) < 1e-12
    assert abs(heat(lambda x: x, LINE, 0.5).gradient[0][0] - 1) < 1e-12


def test_a_large_viscosity_with_the_same_gaussian_is_the_heat_equation() -> None:
    f = rugged().f
    apart = [np.abs(viscous(f, LINE, 0.2 / d, d).u - heat(f, LINE, 0.2).u).max() for d in (1e3, 1e4)]
    assert apart[1] == pytest.approx(apart[0] / 10, rel=0.01)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: viscous(np.cos, LINE, 0.0), "gamma is 0.0; a finite number > 0"),
        (lambda: heat(np.cos, LINE, -1.0), "gamma is -1.0"),
        (lambda: viscous(np.cos, LINE, 1.0, 0.0), "viscosity is 0.0"),
        (lambda: viscous(np.cos, LINE, float("nan")), "gamma is nan"),
        (lambda: heat(np.cos, LINE, 1e-6), "wider than the Gaussian's standard deviation 0.001"),
        (lambda: viscous(lambda x: np.where(x > 1, np.nan, x), LINE, 1.0), "the function is nan at (1.0"),
        (lambda: heat(np.full(301, np.inf), LINE, 1.0), "the function is inf at (-3.0,)"),
        (lambda: heat(np.zeros(300), LINE, 1.0), "values of shape (300,) on a grid of shape (301,)"),
        (lambda: viscous(lambda x: -(x**2), LINE, 1.0), "does not decay"),
        (lambda: Grid.uniform((1, 0, 10)), "first node < last node"),
        (lambda: Grid.uniform((0, 1, 10), (0, 1, 10), (0, 1, 10)), "3 ranges"),
    ],
)
def test_bad_input_is_refused_by_name(call, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        call()
