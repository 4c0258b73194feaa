"""Entropy-SGD's inner step as one would write it in plain torch: what the fused kernels are measured against.

These draw with ``torch.randn_like`` and round as torch pleases; the bit-exact reference is ``kernels/eager.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

INNER_LR, GAMMA, ALPHA, NOISE = 1e-3, 1.0, 0.75, 1e-6


def inner_step(y: Tensor, g: Tensor, x: Tensor, z: Tensor) -> None:
    """Section 6.1, one tensor."""
    y.sub_(g + (y - x) / GAMMA, alpha=INNER_LR).add_(torch.randn_like(y), alpha=NOISE)
    z.mul_(ALPHA).add_(y, alpha=1 - ALPHA)


class EagerEntropySGD:
    """A loop over the parameters."""

    def __init__(self, params: list[Tensor], update: Callable[..., None] = inner_step) -> None:
        self.params, self.update = params, update
        self.x = [p.detach().clone() for p in params]
        self.z = [p.detach().clone() for p in params]

    @torch.no_grad()
    def step(self) -> None:
        for y, x, z in zip(self.params, self.x, self.z):
            self.update(y, y.grad, x, z)


class ForeachEntropySGD(EagerEntropySGD):
    """``torch._foreach_*`` over all parameters at once."""

    @torch.no_grad()
    def step(self) -> None:
        params = self.params
        direction = torch._foreach_sub(params, self.x)
        torch._foreach_div_(direction, GAMMA)
        torch._foreach_add_(direction, [p.grad for p in params if p.grad is not None])
        torch._foreach_add_(params, direction, alpha=-INNER_LR)
        torch._foreach_add_(params, [torch.randn_like(p) for p in params], alpha=NOISE)
        torch._foreach_mul_(self.z, ALPHA)
        torch._foreach_add_(self.z, params, alpha=1 - ALPHA)


def compiled_entropy_sgd(params: list[Tensor]) -> EagerEntropySGD:
    """The plain step under ``torch.compile``."""
    return EagerEntropySGD(params, torch.compile(inner_step))
