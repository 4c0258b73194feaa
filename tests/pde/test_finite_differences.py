"""Monotone finite differences: order, comparison, CFL. test_theory.py has their convergence to Hopf-Cole, and that of
the Bellman equation to a linear one."""

import math
import re

import numpy as np
import pytest

from deeprelax.pde import Grid, hamilton_jacobi, hamilton_jacobi_bellman, viscous
from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.losses import LOSSES

WELL = LOSSES["double-well"]


def order(errors: list[float]) -> float:
    """From errors at spacings that are halved each time."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def test_non_viscous_hj_converges_to_hopf_lax_at_first_order() -> None:
    errors = []
    for nodes in (101, 201, 401):
        grid = Grid.uniform((-2.5, 2.5, nodes))
        found = hamilton_jacobi(WELL.f, grid, 3.0).u[-1]  # a kink at 0
        errors.append(float(np.abs(found - quartic_well(grid.axes[0], 3.0)[0]).max()))
    assert order(errors) == pytest.approx(1, abs=0.25)
    assert errors[-1] < 0.02


def test_a_tent_sinks_everywhere_at_the_same_rate() -> None:
    """-|x| - t/2: at the kink Godunov's flux counts the steeper side only, not both."""
    grid = Grid.uniform((-2, 2, 81))
    found = hamilton_jacobi(lambda x: -np.abs(x), grid, 0.5).u[-1]
    inner = np.abs(grid.axes[0]) < 1  # the reflecting ends are felt 12 steps of one node away, 0.6
    np.testing.assert_allclose(found[inner], -np.abs(grid.axes[0][inner]) - 0.25, atol=1e-12)


def test_in_2d_a_sum_of_functions_gives_the_sum_of_solutions() -> None:
    errors = []
    for nodes in (21, 41, 81):
        plane, line = Grid.uniform((-2, 2, nodes), (-1, 1, nodes)), Grid.uniform((-2, 2, nodes))
        other = Grid.uniform((-1, 1, nodes))
        found = hamilton_jacobi(lambda x, y: WELL.f(x) + np.cos(2 * y), plane, 0.3, viscosity=0.5).u[-1]
        f, g = line.values(WELL.f), other.values(lambda y: np.cos(2 * y))
        exact = viscous(f, line, 0.3, 0.5).u[:, None] + viscous(g, other, 0.3, 0.5).u
        errors.append(float(np.abs(found - exact).max()))
    assert order(errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("viscosity", [0.0, 0.5])
@pytest.mark.parametrize("controlled", [None, True, False])
def test_the_scheme_is_monotone(viscosity: float, controlled: bool | None) -> None:
    """A larger start gives a larger solution everywhere, whatever the start."""
    grid, draw = Grid.uniform((-1, 1, 41)), np.random.default_rng(0)
    for _ in range(10):
        low = draw.normal(size=41)
        high = low + draw.uniform(0, 0.1, 41) * draw.choice([0, 1], 41)
        step = 2e-4  # below 0.05 / (steepest slope + drift)
        if controlled is None:
            a, b = (hamilton_jacobi(f, grid, 0.02, viscosity, step).u[-1] for f in (low, high))
        else:
            drift = draw.normal(size=41)
            a, b = (
                hamilton_jacobi_bellman([drift], f, grid, 0.02, viscosity, controlled=controlled, step=step).u[-1]
                for f in (low, high)
            )
        assert np.all(a <= b + 1e-13)


def test_without_drift_the_bellman_equation_is_viscous_hj() -> None:
    grid = Grid.uniform((-2, 2, 81))
    still = hamilton_jacobi_bellman([np.zeros(81)], WELL.f, grid, 0.4, 0.7)
    np.testing.assert_array_equal(still.u, hamilton_jacobi(WELL.f, grid, 0.4, 0.7).u)


def test_the_gradient_of_the_steps_is_the_central_difference() -> None:
    grid = Grid.uniform((-1, 1, 21), (0, 1, 11))
    run = hamilton_jacobi(lambda x, y: x**2 + y, grid, 0.05)
    slope = run.gradient(grid)
    assert slope.shape == (len(run.times), 2, 21, 11)
    np.testing.assert_allclose(slope[0, 0, 1:-1], 2 * grid.mesh[0][1:-1], atol=1e-12)
    np.testing.assert_allclose(slope[0, 1, :, 1:-1], 1, atol=1e-12)


@pytest.mark.parametrize("record", [1, 7])
def test_the_given_number_of_steps_is_kept_including_the_last(record: int) -> None:
    grid = Grid.uniform((-2, 2, 101))
    everything, some = (hamilton_jacobi(WELL.f, grid, 0.5, 0.3, record=r) for r in (None, record))
    assert len(everything.times) > 60
    assert len(some.times) == len(some.u) == record + 1
    assert np.abs(some.times - np.linspace(0, 0.5, record + 1)).max() <= everything.times[1]
    np.testing.assert_array_equal(some.u, everything.u[np.isin(everything.times, some.times)])
    np.testing.assert_array_equal(some.u[-1], everything.u[-1])


def test_a_step_that_is_not_monotone_is_refused_with_the_largest_that_is() -> None:
    grid = Grid.uniform((-2, 2, 101))
    with pytest.raises(ValueError, match=r"step 0.1 is not monotone: at time 0 at most 0\.00[0-9]+ is"):
        hamilton_jacobi(WELL.f, grid, 0.5, step=0.1)
    steepest = np.abs(np.diff(WELL.f(grid.axes[0]))).max() / grid.spacing[0]
    hamilton_jacobi(WELL.f, grid, 0.05, step=0.99 * grid.spacing[0] / steepest)
    with pytest.raises(ValueError, match="not monotone"):
        hamilton_jacobi(WELL.f, grid, 0.05, step=1.05 * grid.spacing[0] / steepest)


def test_a_step_that_becomes_non_monotone_is_halved_unless_asked_for() -> None:
    grid = Grid.uniform((-1, 1, 101))

    def run(step: float | None) -> np.ndarray:
        # -cx² in f = 3x²: c' = 2c² - 12c, so the speed |∇u + ∇f| = |6 - 2c||x| grows from 2|x| towards 6|x|.
        return hamilton_jacobi_bellman([lambda x: 6 * x], lambda x: -2 * x**2, grid, 0.1, 0.0, step=step).u[-1]

    allowed = 0.02 / 2  # h / speed at the ends, at first
    assert np.isfinite(run(None)).all()
    with pytest.raises(ValueError, match=r"not monotone: at time 0\.0[0-9]*[1-9]"):
        run(0.95 * allowed)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda g: hamilton_jacobi(np.cos, g, 0.0), "gamma is 0.0"),
        (lambda g: hamilton_jacobi(np.cos, g, 1.0, viscosity=-1.0), "viscosity is -1.0"),
        (lambda g: hamilton_jacobi(np.cos, g, 1.0, step=0.0), "step is 0.0"),
        (lambda g: hamilton_jacobi(np.cos, g, 1.0, record=0), "record is 0"),
        (lambda g: hamilton_jacobi(lambda x: x / 0 * np.nan, g, 1.0), "the function is nan"),
        (lambda g: hamilton_jacobi_bellman([np.cos, np.cos], np.cos, g, 1.0), "2 components of the drift in 1"),
        (lambda g: hamilton_jacobi_bellman([np.cos], np.cos, g, -1.0), "time is -1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_bad_input_is_refused_by_name(call, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        call(Grid.uniform((-1, 1, 21)))
