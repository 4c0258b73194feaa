"""A small run of every rule, dtype, kind of call and path of the CUDA kernels, and of most of Triton's, for
compute-sanitizer.

compute-sanitizer --tool memcheck python bench/gpu/sanitize.py --backend cuda
"""

from __future__ import annotations

from dataclasses import replace
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
# In mid-call of Philox every element is taken by itself.
STARTS = (0, 1, 0, 4, 0, 2, 8)


def at_end(size: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random elements at the end of their allocation, so that accesses past them are detected."""
    return torch.randn(size + offset, device=device).to(dtype)[offset:]


def parameters(dtype: torch.dtype, offset: int, device: torch.device) -> list[Tensor]:
    """Tails of elements, of packs, several blocks, and nothing; one has no gradient."""
    sizes = [0, 1, 5, 64, BLOCKS, BLOCKS + 3, 2 * BLOCKS - 1]
    params: list[Tensor] = [torch.nn.Parameter(at_end(size, offset, dtype, device)) for size in sizes]
    for p in params[:3] + params[4:]:
        p.grad = at_end(p.numel(), offset, dtype, device)
    return params


def run(rule: Rule, backend: Backend, dtype: torch.dtype, offset: int, device: torch.device, **options: Any) -> None:
    """Two cycles, since only the first call of a run reads x from the parameter."""
    group = {"params": parameters(dtype, offset, device), "noise_index": list(enumerate(STARTS))}
    opt = replace(rule, length=len(KINDS)).make([group], backend, **options)
    for _ in 2 * KINDS:
        opt.step()


def everything(backend: Backend, device: torch.device) -> None:
    """Every rule on every dtype, in all settings."""
    for dtype in DTYPES[backend.name]:
        for rule in EVERY[backend.name]:
            rounding = (False, True) if dtype == torch.bfloat16 and rule.kernel.keeps_y else (False,)
            for weight_decay, momentum, offset in SETTINGS[backend.name]:
                for rounded in rounding:
                    options = {"stochastic_rounding": True} if rounded else {}
                    run(rule, backend, dtype, offset, device, weight_decay=weight_decay, momentum=momentum, **options)


def outer_passes(backend: Backend, device: torch.device) -> None:
    """Two cycles of ``OuterLoop``, whose rule has no gradients, on every dtype."""
    for dtype in DTYPES[backend.name]:
        for offset in (0, 1):
            sgd = torch.optim.SGD(parameters(dtype, offset, device), lr=1e-6)
            opt = deeprelax.OuterLoop(sgd, inner_steps=len(KINDS), alpha=0.5, backend=backend)
            for _ in 2 * KINDS:
                opt.step()


def captured_steps(backend: Backend, device: torch.device) -> None:
    """Two cycles of every capturable optimizer; the gradients of the second step overflow."""
    for rule in RULES:
        params = [torch.nn.Parameter(torch.randn(size, device=device)) for size in (5, 4100)]
        opt = replace(rule, length=2).make(params, backend, capturable=True)
        for step in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.grad_scale = torch.full((), 4.0, device=device)
            opt.found_inf = torch.full((), float(step == 1), device=device)
            opt.step()


def main() -> None:
    backend = kernels.get(arguments(str(__doc__)).backend, GPU)
    everything(backend, GPU)
    outer_passes(backend, GPU)
    captured_steps(backend, GPU)
    synchronize(GPU)


if __name__ == "__main__":
    main()
