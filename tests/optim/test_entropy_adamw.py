"""EntropyAdamW against AdamW, SNOO, Lookahead and Entropy-Adam, written from their publications in plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from deeprelax import EntropyAdamW
from deeprelax.kernels import Draw, noise

SNOO: dict[str, Any] = {"gamma": math.inf, "alpha": 0.0, "temperature": 0.0}


def gradient(y: np.ndarray, k: int) -> np.ndarray:
    return np.sin(3 * y + k) + 0.3 * y


def adamw(o: dict[str, Any]) -> Iterator[Any]:
    """Loshchilov and Hutter 2019, algorithm 2, with a schedule multiplier of 1: takes (y, gradient), gives y."""
    (b1, b2), m, v, t, y = o["betas"], 0.0, 0.0, 0, None
    while True:
        y, g = yield y
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        y = y - o["lr"] * (m_hat / (np.sqrt(v_hat) + o["eps"]) + o["weight_decay"] * y)


def two_loops(x: np.ndarray, o: dict[str, Any], calls: int, draw: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """Where every gradient is taken, and where the last call leads. ``o["missing"]``: calls without a gradient."""
    inner, b, points = adamw(o), 0.0, [x]
    next(inner)
    y = z = x
    for k in range(calls):
        if k not in o["missing"]:
            y = inner.send((y, gradient(y, k) + (y - x) / o["gamma"])) + draw(k)
            z = o["alpha"] * z + (1 - o["alpha"]) * y
        if k % o["inner_steps"] == o["inner_steps"] - 1:
            s = x - z  # SNOO, algorithm 1: the outer gradient, and Nesterov's step on it
            b = o["momentum"] * b + s
            x = x - o["outer_lr"] * (s + o["momentum"] * b if o["nesterov"] else b)
            y = z = x
        points.append(y)
    return points


def ours(x: np.ndarray, calls: int, missing: Sequence[int], **options: Any) -> list[np.ndarray]:
    p, other = Parameter(torch.from_numpy(x.copy())), Parameter(torch.ones(1))
    opt, points = EntropyAdamW([p, other], seed=11, **options), [x]
    for k in range(calls):
        p.grad = None if k in missing else torch.from_numpy(gradient(p.detach().numpy(), k))
        other.grad = torch.ones(1)
        opt.step()
        points.append(p.detach().numpy().copy())
    return points


X = np.linspace(-2, 2, 7)
ENTROPY_ADAM = {"gamma": 0.5, "alpha": 0.75, "temperature": 1e-3}
MISSING = range(1, 100, 8)  # at every phase of the cycles of 7, the first and the last too
BASE = {
    **{"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "inner_steps": 7},
    **{"gamma": math.inf, "alpha": 0.0, "temperature": 0.0, "outer_lr": 0.7, "momentum": 0.9, "nesterov": True},
    "missing": (),
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"nesterov": False}, {"momentum": 0.0, "outer_lr": 0.5}, ENTROPY_ADAM, {**ENTROPY_ADAM, "missing": MISSING}],
    ids=["SNOO", "heavy ball", "Lookahead", "Entropy-Adam", "Entropy-Adam without some gradients"],
)
def test_a_hundred_steps_are_those_of_the_published_equations(changes: dict[str, Any]) -> None:
    o = {**BASE, **changes}
    scale = float(np.sqrt(np.float32(o["lr"]) * np.float32(o["temperature"])))
    draw = lambda k: scale * noise.normal(Draw(11, k), 0, 0, X.shape, torch.device("cpu")).double().numpy()  # noqa: E731
    for mine, published in zip(ours(X, 100, **o), two_loops(X, o, 100, draw), strict=True):
        np.testing.assert_allclose(mine, published, rtol=1e-13, atol=1e-15)


def pairs(dtype: torch.dtype, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of torch's AdamW and ours after each step from equal weights; now and then a gradient is missing."""
    draw = torch.Generator().manual_seed(0)
    params = [[Parameter(torch.linspace(0.5, 2, n, dtype=dtype)) for n in (5, 37, 300)] for _ in range(2)]
    opts = [
        torch.optim.AdamW(params[0], foreach=False, **options),
        EntropyAdamW(params[1], inner_steps=1, momentum=0.0, outer_lr=1.0, **SNOO, **options),
    ]
    for k in range(50):
        for i, (p, q) in enumerate(zip(*params)):
            g = torch.randn(p.shape, generator=draw, dtype=dtype)
            p.grad, q.grad = (None, None) if (k + i) % 5 == 4 else (g, g)
        for opt in opts:
            opt.step()
        yield from ((p.detach(), q.detach()) for p, q in zip(*params))
        for p, q in zip(*params):
            q.data.copy_(p.data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_an_outer_loop_it_is_torchs_adamw(dtype: torch.dtype) -> None:
    """To 2 ulp of the weight in each step."""
    for theirs, mine in pairs(dtype, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1):
        assert ((mine - theirs).abs() <= 2 * torch.finfo(dtype).eps * theirs.abs()).all()


def test_with_an_outer_step_of_one_any_cycle_is_adamw_bit_for_bit() -> None:
    found = []
    for length in (1, 4, 1000):
        p = Parameter(torch.linspace(-1, 1, 50))
        opt = EntropyAdamW([p], inner_steps=length, momentum=0.0, outer_lr=1.0, **SNOO)
        for k in range(20):
            p.grad = torch.sin(7 * p.detach() + k)
            opt.step()
        found.append(p.detach().clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_parameter_that_joins_late_begins_its_own_bias_correction() -> None:
    """Its first step has the size of lr for any gradient, as Adam's has."""
    first, late = Parameter(torch.zeros(3)), Parameter(torch.zeros(3))
    opt = EntropyAdamW([first], lr=0.5, weight_decay=0.0, inner_steps=50)
    for k in range(9):
        if k == 6:
            opt.add_param_group({"params": [late]})
        first.grad = late.grad = torch.full((3,), 1e-3)
        opt.step()
        if k == 6:
            torch.testing.assert_close(late.detach(), torch.full((3,), -0.5), rtol=1e-4, atol=0)
    assert [int(opt.state[p]["missed"]) for p in (first, late)] == [0, 6]


def test_state_bytes_per_parameter_are_those_of_the_docs() -> None:
    p = Parameter(torch.zeros(1000))
    for options, bytes_each in (({}, 16), ({"momentum": 0.0}, 12), ({"alpha": 0.5}, 20)):
        state = EntropyAdamW([p], **options).state[p]
        assert sum(t.nbytes for name, t in state.items() if name != "missed") == bytes_each * 1000


def test_alpha_switched_on_in_mid_cycle_averages_from_y() -> None:
    p = Parameter(torch.zeros(2))
    opt = EntropyAdamW([p], lr=0.1, inner_steps=4, weight_decay=0.0)
    for k in range(3):
        if k == 2:
            y = p.detach().clone()
            opt.param_groups[0]["alpha"] = 0.5
        p.grad = torch.ones(2)
        opt.step()
    torch.testing.assert_close(opt.state[p]["z"], (y + p.detach()) / 2)
