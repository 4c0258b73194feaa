"""A small run of every rule, dtype, kind of call and path of the CUDA kernels, and of most of Triton's, for
compute-sanitizer.

compute-sanitizer --tool memcheck python bench/gpu/sanitize.py --backend cuda
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from common import GPU, KINDS, RULES, Rule, arguments, synchronize
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.kernels import Backend

# Triton compiles a kernel for each rule, dtype and setting, so that it gets fewer.
ELASTIC = Rule("ElasticSGD", "ElasticSGD", True, len(KINDS), {"inner_lr": 1e-6, "inner_momentum": 0.9, "seed": 0})
EVERY = {"cuda": (*RULES, ELASTIC), "triton": RULES}
DTYPES = {
    "cuda": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16),
}
# Weight decay, momentum, and the elements by which weights and gradients begin later than their memory.
SETTINGS = {
    "cuda": ((0.0, 0.0, 0), (0.0, 0.9, 1), (0.01, 0.0, 0), (0.01, 0.9, 3)),
    "triton": ((0.0, 0.0, 0), (0.0, 0.0, 1)),
}
BLOCKS = 2**13  # elements: whole blocks of every kernel
SIZES = (0, 1, 5, 64, BLOCKS, BLOCKS + 3, 2 * BLOCKS - 1)
# In mid-call of Philox every element is taken by itself.
STARTS = (0, 1, 0, 4, 0, 2, 8)


def parameters(dtype: torch.dtype, offset: int, device: torch.device) -> list[Tensor]:
    """Tails of elements, of packs, several blocks, and nothing; one has no gradient. All lie at the end of their
    allocation, so that accesses past them are detected."""

    def at_end(size: int) -> Tensor:
        return torch.randn(size + offset, device=device).to(dtype)[offset:]

    params: list[Tensor] = [torch.nn.Parameter(at_end(size)) for size in SIZES]
    for p in params[:3] + params[4:]:
        p.grad = at_end(p.numel())
    return params


def optimizers(backend: Backend, device: torch.device) -> Iterator[Any]:
    """Every rule on every dtype, in all settings; ``OuterLoop``, whose rule has no gradients; and every capturable
    optimizer."""
    outside: dict[str, Any] = {"inner_steps": len(KINDS), "backend": backend}
    for dtype in DTYPES[backend.name]:
        for rule, (weight_decay, momentum, offset) in product(EVERY[backend.name], SETTINGS[backend.name]):
            settings: dict[str, Any] = {"weight_decay": weight_decay, "momentum": momentum}
            for rounding in (False, True)[: 1 + (dtype == torch.bfloat16 and rule.kernel.keeps_y)]:
                group = {"params": parameters(dtype, offset, device), "noise_index": list(enumerate(STARTS))}
                more = {"stochastic_rounding": True} if rounding else {}
                yield rule.make([group], **outside, **settings, **more)
        for offset in (0, 1):
            sgd = torch.optim.SGD(parameters(dtype, offset, device), lr=1e-6)
            yield deeprelax.OuterLoop(sgd, alpha=0.5, **outside)
    for rule in RULES:
        opt = rule.make(parameters(torch.float32, 0, device), **outside, capturable=True)
        opt.grad_scale, opt.found_inf = torch.full((), 4.0, device=device), torch.zeros((), device=device)
        yield opt


def run(opt: Any) -> None:
    """Two cycles, since only the first call of a run reads x from the parameter; under a scaler, the gradients of the
    second step overflow."""
    for step in range(2 * len(KINDS)):
        if getattr(opt, "found_inf", None) is not None:
            opt.found_inf.fill_(step == 1)
        opt.step()


def main() -> None:
    for opt in optimizers(kernels.get(arguments(str(__doc__)).backend, GPU), GPU):
        run(opt)
    synchronize(GPU)


if __name__ == "__main__":
    main()
