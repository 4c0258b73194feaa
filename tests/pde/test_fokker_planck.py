"""Fokker-Planck: mass, positivity, the Gibbs density, Ornstein-Uhlenbeck's Gaussian."""

import math
import re
import warnings

import numpy as np
import pytest

from deeprelax.pde import FokkerPlanck, Grid
from deeprelax.pde.closed_forms import normal_density
from deeprelax.pde.fokker_planck import bernoulli
from deeprelax.pde.losses import LOSSES, rugged

WELL = LOSSES["tilted-well"]


def test_the_gibbs_density_is_an_exact_fixed_point() -> None:
    grid = Grid.uniform((-3, 3, 101))  # coarse on purpose
    for temperature in (0.4, 1.0, 2.0):
        equation = FokkerPlanck(WELL.f, grid, temperature)
        gibbs = np.exp(-2 * WELL.f(grid.axes[0]) / temperature)
        gibbs /= gibbs.sum() * grid.cell
        np.testing.assert_allclose(equation.stationary(), gibbs, rtol=1e-12)
        np.testing.assert_allclose(equation.evolve(gibbs, 5.0, 7), gibbs, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 10, 300])
def test_mass_is_conserved_to_rounding_and_no_density_is_negative(steps: int) -> None:
    grid = Grid.uniform((-5, 6, 501))
    spike = np.zeros(501)
    spike[200] = 1 / grid.cell
    found = FokkerPlanck(rugged().f, grid, 0.1).evolve(spike, 15.0, steps)
    assert found.sum() * grid.cell == pytest.approx(1, abs=1e-12)
    assert found.min() >= 0


def test_a_gaussian_in_a_parabola_stays_ornstein_uhlenbecks() -> None:
    rate, temperature, errors = 1.3, 0.7, []
    decay = math.exp(-rate)
    variance = 0.1 * decay**2 + temperature * (1 - decay**2) / (2 * rate)
    for nodes, steps in ((101, 40), (201, 160), (401, 640)):  # second order in h, first in the time step
        grid = Grid.uniform((-4, 4, nodes))
        x = grid.axes[0]
        found = FokkerPlanck(lambda x: rate * x**2 / 2, grid, temperature).evolve(
            normal_density(x, 1.0, 0.1), 1.0, steps
        )
        exact = normal_density(x, decay, variance)
        errors.append(float(np.abs(found - exact).max()))
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(2, abs=0.3)
    assert errors[-1] < 1e-3


def test_in_2d_a_sum_of_potentials_gives_a_product_of_densities() -> None:
    line, plane = Grid.uniform((-3, 3, 61)), Grid.uniform((-3, 3, 61), (-2.5, 2.5, 51))
    other = Grid.uniform((-2.5, 2.5, 51))
    start = lambda x: normal_density(x, 0.5, 0.1)  # noqa: E731
    # Each line's share of one implicit step is not the plane's: small steps.
    found = FokkerPlanck(lambda x, y: WELL.f(x) + y**2, plane).evolve(lambda x, y: start(x) * start(y), 0.5, 200)
    first = FokkerPlanck(WELL.f, line).evolve(start, 0.5, 200)
    second = FokkerPlanck(lambda y: y**2, other).evolve(start, 0.5, 200)
    np.testing.assert_allclose(found, first[:, None] * second, atol=2e-3)
    assert found.sum() * plane.cell == pytest.approx(first.sum() * line.cell * second.sum() * other.cell, abs=1e-12)
    equation = FokkerPlanck(lambda x, y: WELL.f(x) + y**2, plane)
    gibbs = equation.stationary()
    assert np.abs(equation.generator @ gibbs.ravel()).max() < 1e-10
    f = WELL.f(plane.mesh[0]) + plane.mesh[1] ** 2
    np.testing.assert_allclose(gibbs / gibbs[30, 25], np.exp(-2 * (f - f[30, 25])))


def test_the_spectral_gap_of_a_parabola_is_its_curvature() -> None:
    gaps = [FokkerPlanck(lambda x: 1.7 * x**2 / 2, Grid.uniform((-5, 5, n)), 0.8).spectral_gap() for n in (101, 201)]
    assert abs(gaps[1] - 1.7) == pytest.approx(abs(gaps[0] - 1.7) / 4, rel=0.1)  # second order
    assert (4 * gaps[1] - gaps[0]) / 3 == pytest.approx(1.7, abs=1e-4)


def test_a_gap_below_rounding_is_refused_and_one_above_is_kramers() -> None:
    def gap(ratio: float) -> float:  # 2ΔF/T
        return FokkerPlanck(LOSSES["double-well"].f, Grid.uniform((-2, 2, 801)), 0.5 / ratio).spectral_gap()

    kramers = math.pi / math.sqrt(2) * math.exp(20)  # and the rate is 1/time from either side
    assert 1 / gap(20) == pytest.approx(kramers, rel=0.05)
    for ratio in (32, 60, 200):
        with pytest.raises(ValueError, match="the spectral gap is below rounding"):
            gap(ratio)


@pytest.mark.parametrize("nodes", [61, 601, 60_001])
def test_whether_the_grid_holds_a_density_does_not_depend_on_its_spacing(nodes: int) -> None:
    def normal(width: float, deviation: float = 1.0) -> FokkerPlanck:
        return FokkerPlanck(lambda x: (x / deviation) ** 2, Grid.uniform((-width, width, nodes)), 2.0)

    assert normal(3.0, 1 / 5).stationary().min() >= 0
    for width in (3.0, 4.5):
        with pytest.raises(ValueError, match="does not hold the density's mass"):
            normal(width, math.sqrt(2)).stationary()  # exp(-x²/2)
    normal(4.9, math.sqrt(2)).stationary()


def test_in_two_dimensions_every_edge_counts() -> None:
    for scales in ((1, 9), (9, 1)):
        plane = Grid.uniform((-2, 2, 41), (-2, 2, 61))
        f = lambda x, y: scales[0] * x**2 + scales[1] * y**2  # noqa: B023, E731
        with pytest.raises(ValueError, match="does not hold"):
            FokkerPlanck(f, plane, 2.0).stationary()
    FokkerPlanck(lambda x, y: 9 * x**2 + 9 * y**2, plane, 2.0).stationary()


def test_a_density_that_touches_the_edge_on_its_way_is_refused() -> None:
    grid = Grid.uniform((-3, 3, 601))
    equation = FokkerPlanck(lambda x: x**2 / 2, grid, 0.3)
    start = normal_density(grid.axes[0], 2.7, 0.001)
    equation.evolve(normal_density(grid.axes[0], 1.5, 0.001), 5.0, 100)
    with pytest.raises(ValueError, match="does not hold"):
        equation.evolve(start, 5.0, 100)
    assert equation.evolve(start, 1e-4, 1)[-1] < 1e-5  # neither at the start


def test_where_the_flux_is_upwind_a_warning_says_so() -> None:
    """|∇f|h = T is where second order ends; far out in a steep potential without mass it does not matter."""
    start, coarse, fine = normal_density, Grid.uniform((-4, 4, 41)), Grid.uniform((-4, 4, 401))
    for grid, expected in ((coarse, 1), (fine, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FokkerPlanck(lambda x: 2 * x**2, grid, 0.3).evolve(start(grid.axes[0], 1.5, 0.05), 0.2)
        assert len(caught) == expected
        assert all("more than the temperature: the density spreads" in str(w.message) for w in caught)
    plane = Grid.uniform((-1, 1, 41), (-4, 4, 41))
    with pytest.warns(UserWarning, match="first-order errors"):
        FokkerPlanck(lambda x, y: 5 * x**2 + 2 * y**2, plane, 0.3).evolve(
            lambda x, y: start(x, 0.0, 0.02) * start(y, 1.5, 0.05), 0.2
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        still = normal_density(coarse.axes[0], 0.0, 0.075)  # the same potential, mass at its bottom only
        FokkerPlanck(lambda x: 2 * x**2, coarse, 0.6).evolve(still, 0.2)


def test_the_bernoulli_function_is_accurate_everywhere() -> None:
    z = np.array([-800.0, -1.0, -1e-9, 0.0, 1e-9, 1e-5, 1.0, 800.0])
    expected = [800.0, 1 / (1 - math.exp(-1)), 1.0, 1.0, 1.0, 1 - 5e-6 + 1e-10 / 12, 1 / (math.e - 1), 0.0]
    np.testing.assert_allclose(bernoulli(z), expected, rtol=1e-8, atol=1e-300)
    np.testing.assert_allclose(bernoulli(-z[:7]), np.exp(z[:7]) * bernoulli(z[:7]), rtol=1e-12)


NARROW = Grid.uniform((-1.0, 1.0, 101))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: FokkerPlanck(np.cos, NARROW, 0.0), "temperature is 0.0"),
        (lambda: FokkerPlanck(lambda x: np.log(np.abs(x)), NARROW), "the function is -inf at"),
        (lambda: FokkerPlanck(WELL.f, NARROW).stationary(), "does not hold the density's mass: at an edge"),
        (
            lambda: FokkerPlanck(WELL.f, NARROW).evolve(lambda x: normal_density(x, 2.0, 0.1), 1.0),
            "mass on the grid is",
        ),
        (lambda: FokkerPlanck(WELL.f, NARROW).evolve(lambda x: normal_density(x, 0, 0.02), 9.0), "widen the grid"),
        (lambda: FokkerPlanck(WELL.f, NARROW).evolve(lambda x: -normal_density(x, 0, 0.02), 9.0), "is negative"),
        (lambda: FokkerPlanck(WELL.f, NARROW).evolve(lambda x: normal_density(x, 0, 0.02), 0.0), "time is 0.0"),
        (lambda: FokkerPlanck(WELL.f, NARROW).evolve(lambda x: normal_density(x, 0, 0.02), 1.0, 0), "0 steps"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_input_is_refused_by_name(call, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        call()
