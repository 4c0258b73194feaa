"""A small run of every rule, dtype, kind of call and path of the kernels, for compute-sanitizer.

compute-sanitizer --tool memcheck python bench/gpu/sanitize.py --backend cuda
"""

from __future__ import annotations

import importlib
from array import array
from dataclasses import replace

import torch
from common import GPU, KINDS, RULES, Rule, arguments
from torch import Tensor

from deeprelax import kernels
from deeprelax.kernels import Backend, Flag, Scalars, Table
from deeprelax.optim.bucket import buffers_of, new_buffer

# What is launched on: Triton compiles a kernel for each, so that it gets fewer.
DTYPES = {
    "cuda": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16),
}
SETTINGS = {"cuda": ((0.0, 0), (0.0, 1), (0.01, 0), (0.01, 3)), "triton": ((0.0, 0), (0.0, 1))}


def at_offset(size: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random elements at the end of their allocation, so that accesses past them are detected."""
    return torch.randn(size + offset, device=device).to(dtype)[offset:]


def run(
    backend: Backend, rule: Rule, call: Scalars, chunk: int, dtype: torch.dtype, offset: int, device: torch.device
) -> None:
    """One call on weights and gradients that begin ``offset`` elements into their memory; one has no gradient."""
    sizes = [0, 1, 5, 64, chunk, chunk + 3, 2 * chunk - 1]  # tails of elements, of packs, several blocks, nothing
    weights = [at_offset(size, offset, dtype, device) for size in sizes]
    grads: list[Tensor | None] = [at_offset(size, offset, dtype, device) for size in sizes]
    grads[3] = None
    # A start in mid-call of Philox takes every element by itself.
    table = Table(weights, list(range(len(weights))), starts=[0, 1, 0, 4, 0, 2, 8])
    rounded = bool(call.flags & Flag.STOCHASTIC_ROUNDING)
    buffers = {name: new_buffer(name, table) for name in buffers_of(rule.kernel, table.compute_dtype != dtype, rounded)}
    addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
    backend.bind(rule.kernel, table, buffers).run(call, grads, addresses)


def everything(backend: Backend, chunk: int, device: torch.device) -> int:
    """All of it; returns the number of calls."""
    count = 0
    for dtype in DTYPES[backend.name]:
        for rule in RULES:
            for kind in KINDS:
                for weight_decay, offset in SETTINGS[backend.name]:
                    rounded = dtype == torch.bfloat16 and rule.kernel.keeps_y
                    for flags in (0, int(Flag.STOCHASTIC_ROUNDING))[: 1 + rounded]:
                        run(backend, rule, rule.call(kind, weight_decay, flags), chunk, dtype, offset, device)
                        count += 1
    return count


def captured_steps(backend: str, device: torch.device) -> int:
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
    return 4 * len(RULES)


def main() -> None:
    given = arguments(str(__doc__))
    chunk = importlib.import_module("deeprelax._cuda").chunk if given.backend == "cuda" else 2048
    count = everything(kernels.get(given.backend, GPU), chunk, GPU) + captured_steps(given.backend, GPU)
    torch.cuda.synchronize()
    print(f"{count} calls")


if __name__ == "__main__":
    main()
