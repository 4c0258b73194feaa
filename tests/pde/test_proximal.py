"""The proximal operator from samples, and the rule that adapts γ."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from deeprelax.optim.schedules import adaptive_gamma
from deeprelax.pde import Grid, sampled_proximal, viscous


def absolute(y: Tensor) -> Tensor:
    return y.abs().sum(-1)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("viscosity", [0.3, 1.0])
def test_samples_give_the_viscous_solution_and_its_gradient(viscosity: float) -> None:
    gamma, samples = 0.5, 20_000
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    found = [sampled_proximal(absolute, x, gamma, viscosity, samples, draw(seed)) for seed in range(25)]
    grid = Grid.uniform((-1.5, 1.5, 601))
    exact = viscous(np.abs, grid, gamma, viscosity)
    for got, wanted in (("gradient", exact.gradient[0][::100]), ("u", exact.u[::100])):
        values = torch.stack([getattr(f, got).reshape(7) for f in found]).numpy()
        error = values.std(0, ddof=1) / 5
        # 25 repetitions: Student's t with 24 degrees of freedom, 7 points: 5.5 has probability 1e-4.
        # The grid has |x|'s kink at a node: its own error is h²/12 there.
        assert np.all(np.abs(values.mean(0) - wanted) < 5.5 * error + 1e-5), got
    torch.testing.assert_close(found[0].gradient, (x - found[0].point) / gamma)


def test_a_small_viscosity_approaches_the_proximal_point() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    exact = torch.nn.functional.softshrink(x, 0.3)
    far = [
        float((sampled_proximal(absolute, x, 0.3, d, 200_000, draw()).point - exact).abs().max()) for d in (0.4, 0.04)
    ]
    assert far[1] < 0.5 * far[0]
    assert far[1] < 2 * math.sqrt(0.3 * 0.04)  # it is off by the width of the density at most


@pytest.mark.filterwarnings("ignore:the weights have collapsed")
def test_nothing_overflows_when_divided_by_the_viscosity() -> None:
    x = torch.tensor([[1.0], [2.0]])
    found = sampled_proximal(lambda y: 1e30 * absolute(y), x, 0.5, 1e-9, 500, draw())  # 1e39 is infinite
    for each in (found.point, found.gradient, found.u):
        assert torch.isfinite(each).all()
    y = x[:, None] + math.sqrt(0.5e-9) * torch.randn(2, 500, 1, generator=draw())
    torch.testing.assert_close(found.point, y.min(1).values)  # all the weight is there
    half = sampled_proximal(lambda y: 1000 * absolute(y), x.half(), 0.5, 1e-2, 500, draw())  # 65504 is float16's last
    full = sampled_proximal(lambda y: 1000 * absolute(y.half()), x, 0.5, 1e-2, 500, draw())
    assert half.point.dtype == half.u.dtype == torch.float16
    torch.testing.assert_close(half.point.float(), full.point, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(half.u.float(), full.u, rtol=2e-3, atol=2e-3)
    # Squares of 16,000 weights are 0 in float16.
    half, full = (sampled_proximal(absolute, each, 0.5, 1.0, 16_000, draw()) for each in (x.half(), x))
    torch.testing.assert_close(half.effective_samples.float(), full.effective_samples, rtol=5e-3, atol=0)


def test_a_large_constant_in_f_costs_no_digits() -> None:
    def eighths(y: Tensor) -> Tensor:  # exact, with 2³⁰ added too
        return (8 * absolute(y)).round() / 8

    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    plain, lifted = (sampled_proximal(lambda y: c + eighths(y), x, 0.5, 0.3, 500, draw()) for c in (0.0, 2.0**30))  # noqa: B023
    assert torch.equal(lifted.point, plain.point)
    assert torch.equal(lifted.gradient, plain.gradient)
    torch.testing.assert_close(lifted.u - 2.0**30, plain.u, rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_u_of_a_constant_is_that_constant(dtype: torch.dtype) -> None:
    found = sampled_proximal(lambda y: 0 * absolute(y) + 0.7, torch.zeros(3, 2, dtype=dtype), 0.5, 1e3, 777, draw())
    assert torch.equal(found.u, torch.full((3,), 0.7, dtype=dtype))


@pytest.mark.parametrize(
    ("samples", "counting", "warned"),
    [(100, 1, True), (100, 9, True), (100, 11, False), (8, 3, True), (8, 4, False), (19, 9, True), (1, 1, False)],
)
def test_the_warning_is_for_less_than_ten_samples_or_half_of_few(samples: int, counting: int, warned: bool) -> None:
    """So many samples share the weight."""
    values = torch.where(torch.arange(samples) < counting, 0.0, 1e9).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sampled_proximal(
            lambda y: values.expand(y.shape[:2]), torch.zeros(2, 3).double(), 0.5, 1.0, samples, draw()
        )
    assert found.effective_samples.tolist() == pytest.approx([counting] * 2)
    said = f"the weights have collapsed: {counting}.0 of {samples} samples are effective"
    assert [said in str(w.message) for w in caught] == [True] * warned


def test_batches_dimensions_and_dtypes_are_kept() -> None:
    found = sampled_proximal(absolute, torch.zeros(4, 3, dtype=torch.float32), 0.5, 1.0, 100, draw())
    assert found.point.shape == found.gradient.shape == (4, 3)
    assert found.u.shape == found.effective_samples.shape == (4,)
    assert found.point.dtype == torch.float32
    single = sampled_proximal(absolute, torch.zeros(3, dtype=torch.float64), 0.5, 1.0, 100, draw())
    assert (single.point.shape, single.u.shape, single.point.dtype) == ((3,), (), torch.float64)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"gamma": 0.0}, ValueError, "gamma is 0.0"),
        ({"viscosity": -1.0}, ValueError, "viscosity is -1.0"),
        ({"samples": 0}, ValueError, "0 samples"),
        ({"x": torch.zeros(0, 3)}, ValueError, "x of shape (0, 3)"),
        ({"x": torch.zeros(2, 0)}, ValueError, "x of shape (2, 0)"),
        ({"x": torch.zeros(2, 2, 2)}, ValueError, "(2, 2, 2)"),
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "torch.int64"),
        ({"f": lambda y: y}, ValueError, "returned shape (2, 10, 3)"),
        ({"f": lambda y: absolute(y) * math.nan}, ValueError, "not finite at 20 of 20"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict, error: type[Exception], named: str) -> None:
    options = {"f": absolute, "x": torch.zeros(2, 3), "gamma": 0.5, "viscosity": 1.0, "samples": 10, **changes}
    with pytest.raises(error) as caught:
        sampled_proximal(**options)
    assert named in str(caught.value)


def test_gamma_grows_while_the_update_shrinks_fast_and_shrinks_otherwise() -> None:
    assert adaptive_gamma(0.5, 0.9, 1.0) == 0.5 * 1.1  # the bound itself counts as fast
    assert adaptive_gamma(0.5, 0.9001, 1.0) == 0.5 * 0.9
    assert adaptive_gamma(0.5, 2.0, 1.0, shrink=0.5) == 0.25
    assert adaptive_gamma(0.5, 0.5, 1.0, theta=0.4, shrink=0.8) == 0.4
    assert adaptive_gamma(9.9, 0.1, 1.0) == 10
    assert adaptive_gamma(0.00105, 2.0, 1.0) == 1e-3
    assert adaptive_gamma(1.0, 0.0, 0.0) == 1.1


def test_no_bound_moves_gamma_the_wrong_way() -> None:
    falling, rising = (0.1, 1.0), (1.0, 1.0)
    assert adaptive_gamma(1e-4, *rising) == 1e-4
    assert adaptive_gamma(1e-4, *falling) == pytest.approx(1.1e-4, rel=1e-12)
    assert adaptive_gamma(50.0, *falling) == 50
    assert adaptive_gamma(50.0, *rising) == 45


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"norm": math.inf}, "norm is inf"),
        ({"previous_norm": -1.0}, "previous_norm is -1.0"),
        ({"theta": 1.0}, "theta is 1.0"),
        ({"shrink": 1.0}, "shrink is 1.0"),
        ({"grow": 1.0}, "grow is 1.0"),
        ({"smallest": 20.0}, "smallest is 20.0; a finite number > 0 and at most largest, 10.0"),
        ({"largest": math.nan}, "is needed"),
    ],
)
def test_a_rule_out_of_range_is_refused_by_name(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        adaptive_gamma(**{"gamma": 1.0, "norm": 1.0, "previous_norm": 1.0, **changes})
