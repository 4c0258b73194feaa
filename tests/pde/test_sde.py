"""Monte Carlo: Langevin's equation against Ornstein-Uhlenbeck, the two-scale system against its moment equations."""

import math

import numpy as np
import pytest
from scipy.linalg import expm

from deeprelax.pde import Estimate, langevin, two_scales

PATHS = 40_000
SIGMAS = 4.5


def test_an_estimate_has_the_standard_error_of_its_mean() -> None:
    found = Estimate.of(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3
    assert found.error == pytest.approx(math.sqrt(14 / 3 / 4))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_langevin_in_a_parabola_has_ornstein_uhlenbecks_moments(temperature: float) -> None:
    rate, time, step = 1.4, 0.8, 0.004
    decay = math.exp(-rate * time)
    start = np.random.default_rng(0).normal(2.0, 0.3, PATHS)
    seen: list[float] = []
    found = langevin(
        lambda x: rate * x, start, time, step, temperature, np.random.default_rng(1), lambda t, x: seen.append(t)
    )
    variance = 0.09 * decay**2 + temperature * (1 - decay**2) / (2 * rate)
    # Euler's mean is off by time · rate² · step/2 of itself, the variance by twice that.
    bias = time * rate**2 * step
    assert found.mean() == pytest.approx(2.0 * decay, rel=bias, abs=SIGMAS * math.sqrt(variance / PATHS))
    assert found.var(ddof=1) == pytest.approx(variance, rel=2 * bias + SIGMAS * math.sqrt(2 / PATHS))
    assert seen[-1] == pytest.approx(time)
    assert len(seen) == 200


def test_averaged_noise_leaves_no_first_order_error_in_the_variance() -> None:
    rate, temperature, step = 1.0, 2.0, 0.4
    found = langevin(lambda x: rate * x, np.zeros(PATHS), 12.0, step, temperature, np.random.default_rng(2))
    exact = temperature / (2 * rate)
    # Exact for a parabola in the stationary limit; Euler-Maruyama's would be 1/(1 - rate·step/2) = 1.25 times it.
    assert found.var(ddof=1) == pytest.approx(exact, rel=SIGMAS * math.sqrt(2 / PATHS))


def test_the_two_scale_system_of_a_parabola_has_its_linear_moments() -> None:
    a, gamma, epsilon, time, temperature = 1.2, 0.5, 0.8, 0.3, 1.6
    step, paths = 0.003, 4 * PATHS
    matrix = np.array([[-1 / gamma, 1 / gamma], [1 / gamma / epsilon, -(a + 1 / gamma) / epsilon]])
    mean = expm(time * matrix) @ np.array([1.5, -0.5])
    # dC/dt = MC + CMᵀ + Q by van Loan's exponential.
    noise = np.diag([0.0, temperature / epsilon])
    block = expm(time * np.block([[-matrix, noise], [np.zeros((2, 2)), matrix.T]]))
    covariance = block[2:, 2:].T @ block[:2, 2:]
    x, y, recorded = two_scales(
        lambda x, y: -(x - y) / gamma, lambda x, y: -(a * y + (y - x) / gamma), np.full(paths, 1.5),
        np.full(paths, -0.5), epsilon, time, np.random.default_rng(3), temperature=temperature, step=step, record=7,
    )  # fmt: skip
    bias = step * (a + 1 / gamma)  # relative, of a step that is short for the fast variable
    for value, m, v in ((x, mean[0], covariance[0, 0]), (y, mean[1], covariance[1, 1])):
        assert value.mean() == pytest.approx(m, rel=bias, abs=SIGMAS * math.sqrt(v / paths))
        assert value.var(ddof=1) == pytest.approx(v, rel=bias + SIGMAS * math.sqrt(2 / paths))
    assert recorded.shape == (7, paths)
    np.testing.assert_array_equal(recorded[-1], x)


def test_the_same_seed_gives_the_same_paths() -> None:
    a, b = (langevin(np.sin, np.ones(5), 1.0, 0.1, 1.0, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"time": 0.0}, "time is 0.0"), ({"step": -1.0}, "step is -1.0"), ({"temperature": -1.0}, "temperature is -1.0")],
)
def test_bad_input_is_refused_by_name(changes: dict[str, float], named: str) -> None:
    options = {"time": 1.0, "step": 0.1, "temperature": 1.0, **changes}
    with pytest.raises(ValueError, match=named):
        langevin(np.sin, np.ones(2), rng=np.random.default_rng(0), **options)
    for step in (0.0, -0.02, math.nan):
        with pytest.raises(ValueError, match=f"step is {step}"):
            two_scales(
                lambda x, y: x, lambda x, y: y, np.ones(2), np.ones(2), 1.0, 1.0, np.random.default_rng(0), step=step
            )
    with pytest.raises(ValueError, match="epsilon is 0"):
        two_scales(lambda x, y: x, lambda x, y: y, np.ones(2), np.ones(2), 0, 1.0, np.random.default_rng(0))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_diverging_paths_are_reported_with_their_step() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 paths are not finite .* steps of 0\.5"):
        langevin(lambda x: x**3, np.array([0.0, 9.0, -9.0]), 10.0, 0.5, 0.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 of 1 paths"):
        two_scales(lambda x, y: 0 * x, lambda x, y: -(y**3), np.zeros(1), np.full(1, 9.0), 1.0, 10.0,
                   np.random.default_rng(0), temperature=0.0, step=0.5)  # fmt: skip
