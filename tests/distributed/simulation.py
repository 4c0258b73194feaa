"""Elastic-SGD and Parle in NumPy, all workers in one process, straight from their equations. Float32, no noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

F = np.float32
L = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "ElasticSGD": {
        **{"lr": 0.3, "inner_lr": 0.05, "inner_steps": L, "gamma": 0.5, "temperature": 0.0, "scoping": 0.25},
        **{"momentum": 0.5, "weight_decay": 0.01, "seed": 1, "backend": "eager"},
    },
    "Parle": {
        **{"lr": 0.2, "inner_lr": 0.05, "inner_steps": L, "gamma": 0.5, "gamma_min": 0.3, "rho": 0.7, "rho_min": 0.5},
        **{"scoping": 0.25, "alpha": 0.5, "absorb_gamma": False, "seed": 1, "backend": "eager"},
    },
}


def parameters() -> list[Parameter]:
    """Two weights, the same on every worker."""
    draw = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=draw)) for shape in ((5, 3), (7,))]


def gradient(p: Tensor, rank: int, step: int, k: int) -> Tensor:
    """Depends on the weight, and on the worker's own data."""
    draw = torch.Generator().manual_seed(1000 * rank + 10 * step + k)
    return p + torch.randn(p.shape, generator=draw)


def take_step(opt: Any, params: list[Parameter], rank: int, number: int) -> None:
    """One step on the worker's gradients."""
    for k, p in enumerate(params):
        p.grad = gradient(p.detach(), rank, number, k)
    opt.step()


def _start(size: int) -> list[list[np.ndarray]]:
    return [[p.detach().numpy().copy() for p in parameters()] for _ in range(size)]


def _offsets(w: list[list[np.ndarray]], x: list[np.ndarray]) -> list[np.ndarray]:
    """The workers' mean offset from x, summed in the order of ranks."""
    return [sum((each[k] - x[k] for each in w[1:]), start=w[0][k] - x[k]) / F(len(w)) for k in range(len(x))]


def elastic(size: int, steps: int = 9, late: bool = False) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Eq. 3: the workers' weights, and the centre after each step; ``late``: it moves by the exchange before."""
    o = OPTIONS["ElasticSGD"]
    w, x = _start(size), _start(1)[0]
    m, gamma, centres, means = [np.zeros_like(t) for t in x], o["gamma"], [], []
    for step in range(steps):
        for rank in range(size):
            for k, y in enumerate(w[rank]):
                g = gradient(torch.from_numpy(y.copy()), rank, step, k).numpy()
                d = g + y * F(o["weight_decay"]) + (y - x[k]) * F(1 / gamma)
                w[rank][k] = y - d * F(o["inner_lr"])
        if step % L == L - 1:
            means = means if late else _offsets(w, x)
            for k, mean in enumerate(means):
                m[k] = m[k] * F(o["momentum"]) + -mean * F(1 / gamma)
                x[k] = x[k] - m[k] * F(o["lr"])
            means = _offsets(w, x)
            gamma *= 1 - o["scoping"]
        centres.append([t.copy() for t in x])
    return w, centres


def parle(size: int, steps: int = 9) -> list[list[np.ndarray]]:
    """Parle's equations: the workers' weights."""
    o = OPTIONS["Parle"]
    w, gamma, rho = _start(size), o["gamma"], o["rho"]
    x, z = [[t.copy() for t in each] for each in w], [[t.copy() for t in each] for each in w]
    for step in range(steps):
        if step % L == 0:
            x, z = [[t.copy() for t in each] for each in w], [[t.copy() for t in each] for each in w]
        for rank in range(size):
            for k, y in enumerate(w[rank]):
                g = gradient(torch.from_numpy(y.copy()), rank, step, k).numpy()
                d = g if step % L == 0 else g + (y - x[rank][k]) * F(1 / gamma)
                y = y - d * F(o["inner_lr"])
                z[rank][k] = z[rank][k] * F(o["alpha"]) + y * F(1 - o["alpha"])
                w[rank][k] = y
        if step % L == L - 1:
            for k in range(len(x[0])):
                total = x[0][k]
                for rank in range(1, size):
                    total = total + x[rank][k]
                mean = total / F(size)
                for rank in range(size):
                    own = x[rank][k] - (x[rank][k] - z[rank][k]) * F(o["lr"] / gamma)
                    w[rank][k] = own - (x[rank][k] - mean) * F(o["lr"] / rho)
            gamma, rho = max(gamma * (1 - o["scoping"]), o["gamma_min"]), max(rho * (1 - o["scoping"]), o["rho_min"])
    return w
