"""A small model and optimizers whose hyper-parameters change on the way, for runs that are compared bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from updates import at_offset

import deeprelax


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """A channels_last convolution, a matrix with gaps, its bias, a number, nothing, and a transposed matrix."""
    g = torch.Generator().manual_seed(5)
    make = lambda *shape: 0.4 * torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    convolution = make(6, 3, 3, 3).to(memory_format=torch.channels_last)
    tensors = [convolution, make(5, 18)[:, ::3], make(5), make(()), make(0, 4), make(7, 6).t()]
    return [torch.nn.Parameter(t) for t in tensors]


def groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:3]}, {"params": params[3:], "lr": 0.02}]


def loss(params: list[torch.nn.Parameter], inputs: Tensor) -> Tensor:
    convolution, matrix, bias, number, nothing, last = (p.to(inputs.dtype) for p in params)
    hidden = torch.tanh(torch.nn.functional.conv2d(inputs, convolution)).mean((2, 3))
    out = torch.nn.functional.linear(hidden, matrix, bias) * number + (hidden @ last)[:, :5]
    return torch.logsumexp(out, 1).mean() - out[:, 0].mean() + nothing.sum()


def fill_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    """Those of a step's batch: some unaligned, some in another layout, some missing."""
    for p in params:
        p.grad = None
    wide = torch.promote_types(params[0].dtype, torch.float32)
    loss(params, torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=wide)).backward()
    if step % 3 == 0:  # a gradient of another layout than its parameter's
        params[0].grad = params[0].grad.contiguous()
        params[5].grad = params[5].grad.contiguous()
    if step % 2:  # an unaligned gradient
        params[2].grad = at_offset(params[2].grad, 1)
    for i, p in enumerate(params):
        if (step * 7 + i * 5) % 11 == 0 or step % 23 == 22:
            p.grad = None


def change(opts: list[Any], step: int) -> None:
    """Change the options whose turn it is with that step; every 31 steps, look at x."""
    for opt in opts:
        if step % 8 == 7:
            opt.param_groups[step // 8 % 2].update(CHANGES[step // 8 % len(CHANGES)])
            opt.param_groups[1]["inner_steps"] = opt.param_groups[0]["inner_steps"]
        if step % 31 == 30:
            opt.eval()
            opt.train()


STEPS = 60  # all of the changes come in them
CHANGES = [{"lr": 0.03, "weight_decay": 0.02}, {"momentum": 0.6, "gamma": 0.7}, {"nesterov": True}, {"maximize": True}]
CHANGES += [{"maximize": False, "momentum": 0.0, "nesterov": False}, {"lr": 0.2, "weight_decay": 0.0, "inner_steps": 5}]
ENTROPY = {"temperature": 1e-3, "inner_lr": 0.2, "gamma": 0.5, "scoping": 0.01, "seed": 2**40 + 7, "inner_steps": 7}
OPTIMIZERS = {
    "EntropySGD": (deeprelax.EntropySGD, {**ENTROPY, "inner_momentum": 0.5, "lr": 0.05}),
    "EntropySGD, implicit": (
        deeprelax.EntropySGD,
        {**ENTROPY, "coupling": "implicit", "carry_inner_momentum": True, "absorb_gamma": True, "inner_momentum": 0.7},
    ),
    "HJ": (deeprelax.HJ, {"gamma": 0.3, "scoping": 0.02, "inner_steps": 4}),
    "HJ, warm start": (deeprelax.HJ, {"gamma": 0.3, "warm_start": True, "weight_decay": 0.1, "inner_steps": 3}),
    "EntropyAdamW": (
        deeprelax.EntropyAdamW,
        {"temperature": 1e-4, "gamma": 0.5, "alpha": 0.3, "scoping": 0.01, "seed": 2**40 + 7, "inner_steps": 7},
    ),
    "Heat": (deeprelax.Heat, {"gamma": 0.01, "scoping": 0.02, "seed": 3, "inner_steps": 4}),
}
