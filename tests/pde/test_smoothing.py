"""Heat and viscous Hamilton-Jacobi smoothing against closed forms and quadrature."""

import math
import re

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp

from deeprelax.pde import Grid, heat, viscous
from deeprelax.pde.losses import rugged

LINE = Grid.uniform((-3, 3, 301))
X = LINE.axes[0]
PLANE = Grid.uniform((-2, 2, 41), (-1.5, 2, 36))
MATRIX = np.array([[1.5, 0.3], [0.3, 1.0]])


def bowl(x, y):
    """½xᵀAx."""
    return (MATRIX[0, 0] * x * x + 2 * MATRIX[0, 1] * x * y + MATRIX[1, 1] * y * y) / 2


def quadratic_viscous(x: np.ndarray, gamma: float, curvature: float, viscosity: float) -> tuple[np.ndarray, np.ndarray]:
    """u and ∇u of the viscous HJ equation from ½ax²: ½ax²/(1 + aγ) + ½δ ln(1 + aγ) and ax/(1 + aγ)."""
    shrink = 1 + curvature * gamma
    return curvature * x**2 / (2 * shrink) + viscosity * np.log(shrink) / 2, curvature * x / shrink


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


def test_an_array_is_the_reflecting_solution_up_to_the_boundary() -> None:
    """All of exp(-f/δ) is at the other end: from a node at one end the images there are up to two widths away."""
    gamma, viscosity = 1.0, 0.01
    grid = Grid.uniform((0, 1, 401))
    x, f = grid.axes[0], -5 * grid.axes[0]
    found = viscous(f, grid, gamma, viscosity)
    assert abs(found.gradient[0][0]) < 1e-12
    assert abs(found.gradient[0][-1]) < 1e-12
    y = grid.spacing[0] * np.arange(-4000, 4401)  # five periods on either side
    images = np.interp(np.abs((y + 1) % 2 - 1), x, f)
    exponent = -(images + (x[:, None] - y) ** 2 / (2 * gamma)) / viscosity
    exact = logsumexp(exponent, axis=1) + math.log(grid.spacing[0] / math.sqrt(2 * math.pi * gamma * viscosity))
    np.testing.assert_allclose(found.u, -viscosity * exact, rtol=0, atol=1e-12)
    assert found.u[0] == pytest.approx(-4.4671, abs=1e-4)


def test_a_mirrored_array_on_a_plane_gives_what_the_callable_does() -> None:
    plane = Grid.uniform((-1, 1, 25), (0, 2, 31))

    def f(x, y):
        return np.cos(np.pi * x) + 2 * np.cos(np.pi * y / 2) * np.cos(np.pi * (x + 1) / 2)

    for gamma in (0.1, 2.0):  # the Gaussian is narrower than the plane, and wider
        mirrored, whole = viscous(plane.values(f), plane, gamma, 0.5), viscous(f, plane, gamma, 0.5)
        np.testing.assert_allclose(mirrored.u, whole.u, rtol=0, atol=1e-11)
        np.testing.assert_allclose(mirrored.gradient, whole.gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5])
def test_what_the_grid_cannot_resolve_is_refused_and_what_it_can_is_right(place: float) -> None:
    """A valley whose density is so many spacings wide, its middle at that share of one."""
    gamma, viscosity, curvature = 1.0, 1e-2, 1e4
    width = math.sqrt(viscosity / (curvature + 1 / gamma))
    for spacings, resolved in ((0.72, True), (0.65, False), (0.1, False)):
        h = width / spacings
        grid = Grid.uniform((-20 * h, 20 * h, 41))
        f = lambda x: curvature * (x - place * h) ** 2 / 2  # noqa: B023, E731
        if resolved:
            u = quadratic_viscous(grid.axes[0] - place * h, gamma, curvature, viscosity)[0]
            np.testing.assert_allclose(viscous(f, grid, gamma, viscosity).u, u, rtol=0, atol=2e-4 * viscosity)
        else:
            with pytest.raises(ValueError, match=r"too wide for exp\(-f/viscosity\).* rests on [12].* nodes"):
                viscous(f, grid, gamma, viscosity)


def test_resolution_is_judged_where_the_density_is_not_negligible() -> None:
    plane = Grid.uniform((-1, 1, 41), (-2, 2, 81))
    narrowing = viscous(lambda x, y: (1 + y**8) * x**2 + 4 * y**2, plane, 0.5, 0.05)  # narrow where it is negligible
    assert np.isfinite(narrowing.u).all()
    with pytest.raises(ValueError, match="too wide"):
        viscous(lambda x, y: 1000 * x**2 + 4 * y**2, plane, 0.5, 0.05)
    with pytest.raises(ValueError, match="too wide"):
        viscous(lambda x, y: 4 * x**2 + 1000 * y**2, plane, 0.5, 0.05)


def test_an_integral_over_a_plane_is_looked_for_within_four_million_nodes() -> None:
    sizes = []

    def f(x, y):
        sizes.append(x.size)
        return -(x**2) - y**2

    with pytest.raises(ValueError, match=r"does not decay within [0-9]+ by [0-9]+ nodes"):
        viscous(f, Grid.uniform((-1, 1, 3), (-1, 1, 3)), 1.0)
    assert 4e5 < max(sizes) <= 4e6


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
        (lambda: viscous(lambda x, y: x**2 - y**2, Grid.uniform((-1, 1, 3), (-1, 1, 3)), 1.0), "does not decay"),
        (lambda: Grid((np.array([0.0, 1, 3]),)), "not increasing and evenly spaced"),
        (lambda: Grid((X[::-1],)), "not increasing and evenly spaced"),
        (lambda: Grid((0 * X,)), "not increasing and evenly spaced"),
        (lambda: Grid((X[:2],)), "an axis of shape (2,)"),
        (lambda: Grid((X[None],)), "an axis of shape (1, 301)"),
        (lambda: Grid((np.array([0.0, 1, np.nan]),)), "3 finite numbers"),
        (lambda: Grid((X, X, X)), "3 axes"),
        (lambda: Grid.uniform((1, 0, 10)), "first node < last node"),
        (lambda: Grid.uniform((-2.0, 2.0)), "(-2.0, 2.0): first node, last node and number of nodes"),  # type: ignore[arg-type]
        (lambda: Grid.uniform((0, 1, 10), (0, 1, 10), (0, 1, 10)), "3 ranges"),
    ],
)
def test_bad_input_is_refused_by_name(call, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        call()


@pytest.mark.parametrize("f", [lambda x, y: float(x), lambda x: x, lambda x, y: x if x > 0 else -x])
def test_an_error_of_the_function_comes_with_what_it_was_given(f) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        Grid.uniform((-1, 1, 3), (-1, 1, 4)).values(f)
    assert raised.value.__notes__ == ["f gets 2 arrays of coordinates, each of shape (3, 4)"]


@pytest.mark.parametrize("f", [lambda x: np.exp(1j * x), np.exp(1j * X), [1j] * 301])
def test_complex_values_are_refused(f) -> None:
    with pytest.raises(TypeError, match="the function is complex"):
        heat(f, LINE, 1.0)


def test_an_axis_far_from_zero_is_even_up_to_its_rounding() -> None:
    assert Grid((1e9 + 1e-4 * np.arange(12),)).widened((3,)).shape == (18,)
