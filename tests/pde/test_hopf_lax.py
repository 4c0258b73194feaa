"""Hopf-Lax: the lower envelope, closed forms, and the set of proximal points."""

import re

import numpy as np
import pytest

from deeprelax.pde import Grid, lower_envelope, non_viscous, proximal_points
from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.losses import LOSSES

LINE = Grid.uniform((-3, 3, 1201))
X, H = LINE.axes[0], LINE.spacing[0]
WELL = LOSSES["double-well"].f


def absolute_value(x: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """u and the proximal point of |x|: Huber's function, and x shrunk by γ."""
    point = np.sign(x) * np.maximum(np.abs(x) - gamma, 0)
    return np.where(np.abs(x) <= gamma, x**2 / (2 * gamma), np.abs(x) - gamma / 2), point


def two_parabolas(x: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of the double well ½(|x| - 1)²; at x = 0 that of the right well."""
    side = np.where(x >= 0, 1.0, -1.0)
    return (np.abs(x) - 1) ** 2 / (2 * (1 + gamma)), (x + gamma * side) / (1 + gamma)


@pytest.mark.parametrize("gamma", [1e-3, 0.3, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_lower_envelope_is_the_minimum_over_all_nodes(gamma: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y, x = np.sort(draw.uniform(-2, 2, 70)), np.sort(draw.uniform(-3, 3, 90))
    values = draw.normal(size=70) * draw.choice([0.01, 1, 100])
    u, index = lower_envelope(values, y, x, gamma)
    everything = values + (x[:, None] - y) ** 2 / (2 * gamma)
    np.testing.assert_allclose(u, everything.min(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(everything[np.arange(90), index], everything.min(1), rtol=1e-12, atol=1e-12)


def test_the_lower_envelope_of_many_nodes_takes_no_square_of_their_number() -> None:
    y = np.linspace(-10, 10, 200_001)  # their square would be 4e10 operations: minutes
    u, index = lower_envelope(np.abs(y), y, y, 0.5)
    exact, point = absolute_value(y, 0.5)
    np.testing.assert_allclose(u, exact, atol=1e-8)
    np.testing.assert_allclose(y[index], point, atol=2e-4)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    ("f", "closed"),
    [(np.abs, absolute_value), (WELL, quartic_well), (lambda x: (np.abs(x) - 1) ** 2 / 2, two_parabolas)],
)
def test_envelope_and_proximal_point_have_the_closed_forms(f, closed, gamma: float) -> None:
    found = non_viscous(f, LINE, gamma)
    u, point = closed(X, gamma)
    curvature = 3 * 3**2 + 1 / gamma  # of f(y) + (x - y)²/2γ, at most
    assert np.all(found.u >= u - 1e-12)
    np.testing.assert_allclose(found.u, u, rtol=0, atol=curvature * H**2 / 8)
    unique = np.abs(X) > H  # both wells count at x = 0
    np.testing.assert_allclose(found.point[0][unique], point[unique], rtol=0, atol=H)
    np.testing.assert_allclose(found.gradient[0], (X - found.point[0]) / gamma)


def test_in_two_dimensions_it_is_the_minimum_over_the_plane() -> None:
    plane = Grid.uniform((-1, 1, 13), (-2, 1, 16))
    f = np.random.default_rng(0).normal(size=plane.shape)
    found = non_viscous(f, plane, 0.2)
    nodes = np.stack([m.ravel() for m in plane.mesh], 1)
    apart = ((nodes[:, None] - nodes) ** 2).sum(-1)
    everything = f.ravel() + apart / 0.4
    np.testing.assert_allclose(found.u.ravel(), everything.min(1), atol=1e-12)
    np.testing.assert_allclose(found.point.reshape(2, -1).T, nodes[everything.argmin(1)], atol=1e-12)
    separable = non_viscous(lambda x, y: np.abs(x) + 0 * y, plane, 0.2)
    np.testing.assert_allclose(separable.u[:, 3], non_viscous(np.abs, Grid.uniform((-1, 1, 13)), 0.2).u, atol=1e-12)


def test_a_callables_minimiser_may_lie_beyond_the_grid() -> None:
    narrow = Grid.uniform((2, 3, 201))
    found = non_viscous(lambda x: 4 * x**2 / 2, narrow, 1.0)
    np.testing.assert_allclose(found.point[0], narrow.axes[0] / 5, atol=narrow.spacing[0])
    inside = non_viscous(narrow.values(lambda x: 2 * x**2), narrow, 1.0)
    assert np.all(inside.point[0] == 2)


def test_a_deeper_well_behind_a_barrier_is_found() -> None:
    well = LOSSES["tilted-well"].f
    narrow, wide = (non_viscous(well, Grid.uniform(r), 50.0) for r in ((0.5, 1.5, 101), (-3, 3, 601)))
    np.testing.assert_allclose(narrow.u, wide.u[350:451], atol=1e-12)
    np.testing.assert_allclose(narrow.point[0], wide.point[0][350:451], atol=1e-12)
    assert narrow.u[50] == pytest.approx(-0.1128, abs=1e-4)
    plane = Grid.uniform((0.5, 1.5, 41), (-0.2, 0.2, 17))
    found = non_viscous(lambda x, y: well(x) + y**2, plane, 50.0)
    assert found.u[20, 8] == pytest.approx(-0.1128, abs=1e-3)


def test_the_search_continues_where_it_finds_a_lower_value() -> None:
    """From -2 f rises to a barrier at 0; the well at 5 is seen only after the one at 2.5 has been."""

    def f(x):
        return 0.2 * x**2 * np.exp(-(x**2)) - 4 * np.exp(-((x - 2.5) ** 2)) - 30 * np.exp(-((x - 6) ** 2) / 0.1)

    everything = Grid.uniform((-20, 20, 4001))
    exact = non_viscous(everything.values(f), everything, 20.0).u[1900:2001]
    np.testing.assert_allclose(non_viscous(f, Grid.uniform((-1, 0, 101)), 20.0).u, exact, atol=1e-12)


def test_a_plane_is_searched_within_four_million_nodes() -> None:
    sizes = []

    def f(x, y):
        sizes.append(x.size)
        return -(x**2) - y**2

    with pytest.raises(ValueError, match="has no minimum within"):
        non_viscous(f, Grid.uniform((-1, 1, 9), (-1, 1, 9)), 1.0)
    assert 1e6 < max(sizes) <= 4e6


def test_a_steep_function_is_not_evaluated_where_it_overflows() -> None:
    grid = Grid.uniform((-3, 3, 601))
    found = non_viscous(lambda x: np.cosh(10 * x), grid, 1.0)
    assert found.u[300] == 1
    assert np.all(np.abs(found.point[0]) < 0.5)


def test_the_set_of_minimisers_has_one_member_or_two() -> None:
    side = (2 / 3) ** 0.5
    assert proximal_points(WELL, 0.0, 3.0, LINE) == pytest.approx(np.array([[-side], [side]]), abs=1e-8)
    between = Grid.uniform((-3, 3, 1200))  # the minimum 0 lies between two equal nodes
    assert proximal_points(WELL, 0.0, 0.3, between) == pytest.approx(np.zeros((1, 1)), abs=1e-7)
    almost = 1e-11  # 1e-11 off the tie: the two values differ by 5e-12
    assert len(proximal_points(WELL, almost, 3.0, LINE)) == 2
    assert proximal_points(WELL, almost, 3.0, LINE, tolerance=1e-13) == pytest.approx(np.array([[side]]), abs=1e-8)
    for x in (-1.3, 0.4):
        for gamma in (0.3, 3.0):
            exact = quartic_well(np.asarray(x), gamma)[1]
            assert proximal_points(WELL, x, gamma, LINE) == pytest.approx(np.array([[exact]]), abs=1e-7)
    assert proximal_points(np.abs, 0.2, 0.5, LINE) == pytest.approx(np.zeros((1, 1)), abs=1e-10)


def test_the_minimisers_of_values_on_a_grid_are_the_tied_nodes() -> None:
    grid = Grid.uniform((-2, 2, 401))
    values = grid.values(WELL)
    assert proximal_points(values, 0.0, 3.0, grid) == pytest.approx(np.array([[-0.82], [0.82]]), abs=1e-12)
    assert proximal_points(values, 0.1, 3.0, grid) == pytest.approx(np.array([[0.84]]), abs=1e-12)
    assert len(proximal_points(np.zeros(401), 0.0, 0.5, grid, tolerance=4.1e-4)) == 5  # y² ≤ 4.1e-4: |y| ≤ 0.02
    assert proximal_points(grid.values(lambda x: x), 0.0, 10.0, grid) == pytest.approx(np.array([[-2.0]]))  # the edge
    plane = Grid.uniform((-1, 1, 21), (-1, 1, 21))
    values = plane.values(lambda x, y: -(x**2) - y**2)
    corners = proximal_points(values, [0.0, 0.0], 1.0, plane)
    assert sorted(corners.tolist()) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]


def test_in_two_dimensions_both_minimisers_are_found() -> None:
    plane = Grid.uniform((-2, 2, 81), (-2, 2, 81))
    found = proximal_points(lambda x, y: (x * x - 1) ** 2 + y * y, [0.0, 0.5], 2.0, plane)
    assert sorted(found.tolist()) == pytest.approx(
        [pytest.approx([-((7 / 8) ** 0.5), 0.1], abs=1e-7), pytest.approx([(7 / 8) ** 0.5, 0.1], abs=1e-7)]
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: non_viscous(np.cos, LINE, 0.0), "gamma is 0.0"),
        (lambda: non_viscous(lambda x: x + np.nan, LINE, 1.0), "the function is nan"),
        (lambda: non_viscous(lambda x: -(x**2), LINE, 1.0), "has no minimum"),
        (lambda: non_viscous(lambda x, y: x**2 - y**2, Grid.uniform((-1, 1, 9), (-1, 1, 9)), 1.0), "has no minimum"),
        (lambda: non_viscous(lambda x: -1000 * x, LINE, 0.102), "no minimum"),  # 102 away, of which 103 - 3 is seen
        (lambda: non_viscous(lambda x: np.log(np.maximum(x + 9, 0)), LINE, 9.0), "the function is -inf at"),
        (lambda: lower_envelope(X, X, X, 0.0), "gamma is 0.0"),
        (lambda: lower_envelope(X * np.nan, X, X, 1.0), "values of shape (1201,): finite"),
        (lambda: lower_envelope(X, X, X + np.inf, 1.0), "x of shape (1201,): finite"),
        (lambda: lower_envelope(X, X[None], X, 1.0), "y of shape (1, 1201)"),
        (lambda: lower_envelope(X[:0], X[:0], X, 1.0), "values of shape (0,)"),
        (lambda: lower_envelope(X[1:], X, X, 1.0), "1200 values at 1201 places"),
        (lambda: lower_envelope(X, X[::-1], X, 1.0), "increasing order"),
        (lambda: lower_envelope(X, X, X[::-1], 1.0), "increasing order"),
        (lambda: lower_envelope(X, 0 * X, X, 1.0), "no y twice"),
        (lambda: proximal_points(WELL, 0.0, -1.0, LINE), "gamma is -1.0"),
        (lambda: proximal_points(WELL, 0.0, 1.0, LINE, tolerance=-1e-9), "tolerance is -1e-09"),
        (lambda: proximal_points(WELL, [0.0, 1.0], 1.0, LINE), "a point of 1 finite coordinates"),
        (lambda: proximal_points(WELL, np.nan, 1.0, LINE), "x is [nan]"),
        (lambda: proximal_points(np.zeros(5), 0.0, 1.0, LINE), "values of shape (5,)"),
        (lambda: proximal_points(lambda x: x, 0.0, 10.0, LINE), "lies on its edge, at (-3.0,)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_input_is_refused_by_name(call, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        call()
