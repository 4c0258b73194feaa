"""The optimizers against closed forms, quadrature, ``torch.optim.SGD`` and the paper's lines in plain numpy."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from deeprelax import HJ, EntropySGD, Heat
from deeprelax.kernels import Draw, noise

Gradient = Callable[[Tensor], Tensor]
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}]


def chains(value: float | Tensor, count: int) -> torch.nn.Parameter:
    """As many independent one-dimensional problems, all at ``value``, as one parameter; a row for each value."""
    values = torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1)
    return torch.nn.Parameter(values.repeat(1, count))


def steps(opt: torch.optim.Optimizer, p: torch.nn.Parameter, gradient: Gradient, count: int) -> None:
    for _ in range(count):
        p.grad = gradient(p.detach())
        opt.step()


def x_of(opt: torch.optim.Optimizer, p: torch.nn.Parameter) -> Tensor:
    opt.eval()
    x = p.detach().clone()
    opt.train()
    return x


@pytest.mark.parametrize("coupling", ["explicit", "implicit"])
def test_the_inner_chain_on_a_quadratic_has_the_moments_of_an_ar1(coupling: str) -> None:
    curvature, gamma, h, temperature, alpha, x, n = 1.5, 0.5, 0.2, 2.0, 0.75, 3.0, 2**15
    p = chains(x, n)
    opt = EntropySGD([p], inner_lr=h, gamma=gamma, temperature=temperature, alpha=alpha, coupling=coupling,
                     inner_steps=10_000, seed=1)  # fmt: skip
    divisor = 1 if coupling == "explicit" else 1 + h / gamma
    c = (1 - h * curvature - h / gamma) if coupling == "explicit" else (1 - h * curvature) / divisor
    mean = x / gamma / (curvature + 1 / gamma)
    variance = h * temperature / divisor**2 / (1 - c * c)
    variance_z = variance * (1 - alpha) / (1 + alpha) * (1 + alpha * c) / (1 - alpha * c)
    steps(opt, p, lambda y: curvature * y, 80)
    ys, zs = [], []
    for _ in range(20):
        steps(opt, p, lambda y: curvature * y, 19)
        before = p.detach().clone()
        steps(opt, p, lambda y: curvature * y, 1)
        ys.append(p.detach().clone())
        zs.append(opt.state[p]["z"].clone())
    y, z, total = torch.cat(ys), torch.cat(zs), 20 * n
    assert float(y.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / total))
    assert float(y.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / total))
    assert float(z.mean()) == pytest.approx(mean, abs=8 * math.sqrt(variance_z / total))
    assert float(z.var()) == pytest.approx(variance_z, rel=8 * math.sqrt(2 / total))
    covariance = float(((before - mean) * (ys[-1] - mean)).mean())
    assert covariance == pytest.approx(c * variance, abs=4 * variance / math.sqrt(n))


def smoothed_gradient(f: Callable[[float], float], x: float, gamma: float, viscosity: float) -> float:
    """du/dx of u = -d log(G_{d gamma} * exp(-f/d)), by quadrature of the Hopf-Cole formula."""

    def u(x: float) -> float:
        density = lambda y: math.exp(-(f(y) + (y - x) ** 2 / (2 * gamma)) / viscosity)  # noqa: E731
        integral = quad(density, -6, 6, points=[-1, 0, 1, x], epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        return -viscosity * math.log(integral / math.sqrt(2 * math.pi * gamma * viscosity))

    return (u(x + 1e-3) - u(x - 1e-3)) / 2e-3


@pytest.mark.parametrize("temperature", [2.0, 0.7])
def test_the_outer_force_on_a_double_well_is_the_viscous_gradient(temperature: float) -> None:
    x, gamma, h, n, lr = torch.linspace(-2, 1.5, 8), 0.2, 0.01, 2**12, 0.125
    p = chains(x, n)
    # z averages over 1/(1 - alpha) calls, 4 units of time, and has forgotten where it began by 6 e-foldings and more.
    opt = EntropySGD(
        [p], lr=lr, inner_lr=h, gamma=gamma, temperature=temperature, alpha=0.9975, inner_steps=2500, seed=2
    )
    steps(opt, p, lambda y: y**3 - y, 2500)
    assert opt.outer_step_happened
    found = ((chains(x, n) - p.detach()) / lr).mean(1)
    well = lambda y: (y * y - 1) ** 2 / 4  # noqa: E731
    expected = [smoothed_gradient(well, float(v), gamma, temperature / 2) for v in x]
    assert found.tolist() == pytest.approx(expected, abs=0.04)
    other = [smoothed_gradient(well, float(v), gamma, temperature) for v in x]
    assert max(abs(a - b) for a, b in zip(expected, other)) > 0.1  # what a wrong viscosity would give


@pytest.mark.parametrize(("curvature", "alpha"), [(0.5, 0.0), (1.0, 0.75), (10.0, 0.75)])
def test_hj_finds_the_proximal_point_of_a_quadratic(curvature: float, alpha: float) -> None:
    gamma, x = 0.6, torch.linspace(-3, 3, 7, dtype=torch.float64)
    p = torch.nn.Parameter(x.clone())
    opt = HJ([p], lr=gamma, gamma=gamma, alpha=alpha, inner_steps=400)
    steps(opt, p, lambda y: curvature * y, 399)
    proximal_point = x / (1 + gamma * curvature)
    torch.testing.assert_close(opt.state[p]["p"], (x - proximal_point) / gamma, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.detach(), proximal_point, rtol=0, atol=1e-12)  # x - gamma p
    steps(opt, p, lambda y: curvature * y, 1)
    torch.testing.assert_close(p.detach(), proximal_point, rtol=0, atol=1e-12)  # x - lr p


def test_undamped_hj_diverges_where_gamma_times_curvature_exceeds_1() -> None:
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    steps(HJ([p], gamma=0.6, alpha=0.0, inner_steps=400), p, lambda y: 2 * y, 200)
    assert float(p.detach().abs()) > 1e6


def test_hj_on_the_absolute_value_finds_the_huber_gradient() -> None:
    gamma, alpha = 0.5, 0.99
    x = torch.tensor([-3.0, -0.8, -0.501, -0.4, -0.1, 0.2, 0.45, 0.501, 1.0, 7.0], dtype=torch.float64)
    p = torch.nn.Parameter(x.clone())
    opt = HJ([p], gamma=gamma, alpha=alpha, inner_steps=10_000)
    steps(opt, p, torch.sign, 3500)
    found, far = opt.state[p]["p"], x.abs() > gamma
    torch.testing.assert_close(found[far], x[far].sign(), rtol=0, atol=1e-12)
    # At the kink p oscillates by at most (1 - alpha) |sign - p|.
    torch.testing.assert_close(found[~far], x[~far] / gamma, rtol=0, atol=2 * (1 - alpha))


@pytest.mark.parametrize("shape", ["cosine", "quartic"])
def test_heats_mean_gradient_is_that_of_the_smoothed_function(shape: str) -> None:
    x, gamma, n, lr, k = torch.linspace(-1, 2, 4, dtype=torch.float64), 0.3, 2**14, 0.5, 2.0
    p = chains(x, n)
    opt = Heat([p], lr=lr, gamma=gamma, inner_steps=16, seed=3)
    opt.train()  # else the first gradient is taken at x
    gradient, expected, deviation = (
        (lambda y: -k * torch.sin(k * y), -k * torch.sin(k * x) * math.exp(-k * k * gamma / 2), k)
        if shape == "cosine"
        else (lambda y: y**3, x**3 + 3 * gamma * x, 8.0)
    )
    steps(opt, p, gradient, 16)
    found = ((chains(x, n) - x_of(opt, p)) / lr).mean(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * deviation / math.sqrt(16 * n))


def test_heats_perturbation_is_fresh_and_has_variance_gamma() -> None:
    n, gamma = 2**16, 0.5
    p = chains(1.0, n)
    opt = Heat([p], lr=0.1, gamma=gamma, scoping=0.25, inner_steps=3, seed=4)
    perturbations = []
    for call in range(1, 10):
        steps(opt, p, torch.zeros_like, 1)
        w = p.detach() - 1.0
        assert float(w.var()) == pytest.approx(gamma * 0.75 ** (call // 3), rel=4 * math.sqrt(2 / n))
        assert abs(float(w.mean())) < 4 * math.sqrt(gamma / n)
        perturbations.append(w / w.std())
    for a, b in itertools.combinations(perturbations, 2):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(n)


def test_alpha_is_the_weight_of_the_old_average() -> None:
    p, q = chains(1.0, 1), chains(1.0, 1)
    entropy = EntropySGD([p], inner_lr=0.1, alpha=0.9, temperature=0, gamma=1.0, inner_steps=9)
    steps(entropy, p, lambda y: torch.full_like(y, 2.0), 1)
    assert float(entropy.state[p]["z"]) == pytest.approx(0.9 * 1.0 + 0.1 * 0.8, rel=1e-14)
    hj = HJ([q], alpha=0.9, inner_steps=9)
    for expected in (0.1 * 2, 0.9 * 0.2 + 0.1 * 2):
        steps(hj, q, lambda y: torch.full_like(y, 2.0), 1)
        assert float(hj.state[q]["p"]) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("options", MOMENTA, ids=str)
@pytest.mark.parametrize("absorb", [False, True])
def test_entropy_sgds_outer_update_is_torchs_sgd_on_the_force(options: dict, absorb: bool) -> None:
    p = chains(torch.linspace(-2, 2, 5), 1)
    reference = torch.nn.Parameter(p.detach().clone())
    gamma, h, alpha = 0.4, 0.1, 0.6
    opt = EntropySGD([p], lr=0.05, inner_lr=h, gamma=gamma, alpha=alpha, temperature=0, scoping=0.01, inner_steps=4,
                     absorb_gamma=absorb, **options)  # fmt: skip
    sgd = torch.optim.SGD([reference], lr=0.05, **options)
    for _ in range(30):
        x = y = z = reference.detach().clone()
        for _ in range(4):
            y = y - h * (torch.sin(3 * y) + (y - x) / gamma)
            z = alpha * z + (1 - alpha) * y
        reference.grad = (x - z) if absorb else (x - z) / gamma
        sgd.step()
        gamma *= 0.99
        steps(opt, p, lambda y: torch.sin(3 * y), 4)
        torch.testing.assert_close(p, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("options", MOMENTA, ids=str)
def test_hj_with_one_undamped_inner_step_is_torchs_sgd(options: dict, maximize: bool, decay: float) -> None:
    p, reference = chains(torch.linspace(-2, 2, 5), 1), chains(torch.linspace(-2, 2, 5), 1)
    options = {"lr": 0.03, "maximize": maximize, "weight_decay": decay, **options}
    hj = HJ([p], inner_steps=1, alpha=0.0, gamma=1e-30, **options)
    sgd = torch.optim.SGD([reference], **options)
    for opt, q in ((hj, p), (sgd, reference)):
        steps(opt, q, lambda y: torch.sin(3 * y), 100)
    torch.testing.assert_close(p, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("carry", [False, True])
def test_the_inner_velocity_restarts_each_cycle_unless_carried(carry: bool) -> None:
    p = chains(1.0, 1)
    opt = EntropySGD([p], lr=0.5, inner_lr=0.1, gamma=1.0, temperature=0, inner_momentum=0.9, inner_steps=3,
                     carry_inner_momentum=carry)  # fmt: skip
    steps(opt, p, torch.ones_like, 3)
    x, velocity = float(p.detach()), float(opt.state[p]["inner_momentum_buffer"])
    assert velocity > 2
    steps(opt, p, torch.ones_like, 1)
    assert float(p.detach()) == pytest.approx(x - 0.1 * (1 + 0.9 * velocity * carry), rel=1e-13)


# The paper's lines, section by section, on numpy's float64. `draw(k)` is the noise of the gradient taken after k calls.


def momentum(m: np.ndarray, d: np.ndarray, mu: float, nesterov: bool) -> tuple[np.ndarray, np.ndarray]:
    m = mu * m + d
    return m, d + mu * m if nesterov else m


def paper(kind: type, x: np.ndarray, gradient: Callable, draw: Callable, o: dict, calls: int) -> list[np.ndarray]:
    """Where every gradient is taken, and where the last call leads."""
    y, z, s, p, m, v = x, x, 0 * x, 0 * x, 0 * x, 0 * x
    gamma, L, points = o["gamma"], o["inner_steps"], [x]
    mu, nesterov, sign = o.get("momentum", 0), o.get("nesterov", False), -1 if o.get("maximize") else 1
    for k in range(calls):
        first, last = k % L == 0, k % L == L - 1
        g = sign * gradient(points[-1], k) + o.get("weight_decay", 0) * points[-1]
        if kind is EntropySGD:  # section 6.1
            h, nu, implicit = o["inner_lr"], o.get("inner_momentum", 0), o.get("coupling") == "implicit"
            w = float(np.sqrt(np.float32(h) * np.float32(o["temperature"]))) * draw(k)
            d = g if implicit else g + (y - x) / gamma
            if nu:
                fresh = first and not o.get("carry_inner_momentum")
                v, d = momentum(0 * v if fresh else v, d, nu, nesterov)
            y = (y - h * d + h / gamma * x + w) / (1 + h / gamma) if implicit else y - h * d + w
            z = o["alpha"] * z + (1 - o["alpha"]) * y
            force = x - z if o.get("absorb_gamma") else (x - z) / gamma
        elif kind is HJ:  # section 6.2
            p = force = g if first and o.get("warm_start") else o["alpha"] * p + (1 - o["alpha"]) * g
        else:  # section 6.3, eq. 26
            s = s + g
            force = s / L
        if last:
            m, d = momentum(m, force, mu, nesterov) if mu else (m, force)
            x = x - o["lr"] * d
            y, z, s, p = x, x, 0 * x, 0 * x
            gamma = gamma * (1 - o.get("scoping", 1e-3))
        points.append({EntropySGD: y, HJ: x - gamma * p}.get(kind, x))
        if kind is Heat:
            points[-1] = x + float(np.sqrt(np.float32(gamma))) * draw(k + 1)
    return points


def normals(seed: int, index: int, count: int) -> Callable[[int], np.ndarray]:
    return lambda step: noise.normal(Draw(seed, step), index, 0, (count,), "cpu").double().numpy()


ALL = {"lr": 0.07, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "maximize": True, "scoping": 0.01}
INNER = {"lr": 0.07, "inner_lr": 0.1, "gamma": 0.3, "alpha": 0.6, "temperature": 0.01, "inner_steps": 7}
RUNS = [(EntropySGD, INNER), (EntropySGD, {**INNER, **ALL}), (EntropySGD, {**INNER, "coupling": "implicit"})]
RUNS += [(EntropySGD, {**INNER, **ALL, "inner_momentum": 0.5, "coupling": c, "carry_inner_momentum": k, "nesterov": n})
         for c, k, n in itertools.product(["explicit", "implicit"], [False, True], [False, True])]  # fmt: skip
RUNS += [(EntropySGD, {**INNER, **ALL, "absorb_gamma": True}), (EntropySGD, {**INNER, "inner_steps": 1})]
RUNS += [(HJ, {"lr": 0.1, "gamma": 0.2, "alpha": 0.6, "inner_steps": n, "warm_start": w, **more})
         for n, w, more in itertools.product([1, 5], [False, True], [{}, {"weight_decay": 0.1}, ALL])]  # fmt: skip
RUNS += [(Heat, {"lr": 0.1, "gamma": 0.04, "inner_steps": n, **more})
         for n, more in itertools.product([1, 5], [{}, {"weight_decay": 0.1}, {"momentum": 0.9}, ALL])]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), RUNS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_a_hundred_calls_follow_the_papers_equations(kind: type, options: dict) -> None:
    rng, seed = np.random.default_rng(6), 2**35 + 11
    starts = [rng.standard_normal(n) for n in (5, 9)]
    batches = rng.standard_normal(100)
    gradient = lambda y, k: np.tanh(y) + batches[k] * np.sin(3 * y)  # noqa: E731
    parameters = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in starts]
    opt = kind(parameters, **options, **({} if kind is HJ else {"seed": seed}))
    expected = [paper(kind, x, gradient, normals(seed, i, len(x)), options, 100) for i, x in enumerate(starts)]
    for k in range(100):
        for p, points in zip(parameters, expected):
            np.testing.assert_allclose(p.detach().numpy(), points[k], rtol=1e-9, atol=1e-11, err_msg=f"call {k}")
            p.grad = torch.from_numpy(gradient(p.detach().numpy(), k))
        opt.step()
    for p, points in zip(parameters, expected):
        np.testing.assert_allclose(p.detach().numpy(), points[100], rtol=1e-9, atol=1e-11)
