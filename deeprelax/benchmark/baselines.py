"""What the fused kernels are measured against: torch's optimizers, and Entropy-SGD's inner step in plain torch.

These draw with ``torch.randn_like`` and round as torch pleases; the bit-exact reference is ``kernels/reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# torch's own, at rates that leave weights as they are.
PEERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "torch.optim.SGD(fused=True)": lambda params: torch.optim.SGD(params, lr=1e-6, fused=True),
    "torch.optim.SGD(momentum, fused=True)": lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9, fused=True),
    "torch.optim.AdamW(fused=True)": lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True),
}

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
        """One inner step."""
        for y, x, z in zip(self.params, self.x, self.z):
            self.update(y, y.grad, x, z)


class ForeachEntropySGD(EagerEntropySGD):
    """``torch._foreach_*`` over all parameters at once."""

    @torch.no_grad()
    def step(self) -> None:
        """One inner step."""
        params = self.params
        direction = torch._foreach_sub(params, self.x)
        torch._foreach_div_(direction, GAMMA)
        torch._foreach_add_(direction, [p.grad for p in params if p.grad is not None])
        torch._foreach_add_(params, direction, alpha=-INNER_LR)
        torch._foreach_add_(params, [torch.randn_like(p) for p in params], alpha=NOISE)
        torch._foreach_mul_(self.z, ALPHA)
        torch._foreach_add_(self.z, params, alpha=1 - ALPHA)


class CompiledEntropySGD(EagerEntropySGD):
    """The plain step under ``torch.compile``: one graph for tensors of all shapes, which it sees as vectors.

    Compiled shape by shape, ResNet-50's would pass dynamo's limit of recompilations, and most tensors would run in
    eager mode under the name of the compiler. Here that is an error.

    Args:
        params: with their gradients, as they will be at every step.
        compiler: a backend of torch.compile's.
    """

    def __init__(self, params: list[Tensor], compiler: str | Callable[..., object] = "inductor") -> None:
        super().__init__(params, torch.compile(inner_step, dynamic=True, backend=compiler))
        whole = [(p, p.grad, x, z) for p, x, z in zip(params, self.x, self.z)]
        # Detached, they do not show dynamo the rank of what they are views of.
        self._vectors = [[t.view(-1).detach() for t in tensors if t is not None] for tensors in whole]

    @torch.no_grad()
    def step(self) -> None:
        """One inner step."""
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for y, g, x, z in self._vectors:
                self.update(y, g, x, z)
