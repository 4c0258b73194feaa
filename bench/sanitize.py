"""A small run of every rule, dtype, kind of call and path of the CUDA kernels, for compute-sanitizer.

Run: compute-sanitizer --tool memcheck python bench/sanitize.py (PYTORCH_NO_CUDA_MEMORY_CACHING=1 makes it see more).
"""

from __future__ import annotations

import importlib
from array import array

import torch
from gpu_bench.calls import KINDS, RULES, Rule
from torch import Tensor

import deeprelax
from deeprelax.kernels import Backend, Flag, Scalars, Table
from deeprelax.kernels.cuda import Cuda
from deeprelax.optim.bucket import buffers_of, new_buffer

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def sizes(chunk: int) -> list[int]:
    """A block's tail of single elements, of packs, and neither; more than one block; nothing."""
    return [0, 1, 5, 64, chunk, chunk + 3, 2 * chunk - 1]


def at_offset(size: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random elements that end where their memory ends, so that what reaches past them is seen."""
    return torch.randn(size + offset, device=device).to(dtype)[offset:]


def run(
    backend: Backend, rule: Rule, call: Scalars, chunk: int, dtype: torch.dtype, offset: int, device: torch.device
) -> None:
    """One call on weights and gradients that begin ``offset`` elements into their memory; one has no gradient."""
    weights = [at_offset(size, offset, dtype, device) for size in sizes(chunk)]
    grads: list[Tensor | None] = [at_offset(w.numel(), offset, dtype, device) for w in weights]
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
    for dtype in DTYPES:
        for rule in RULES:
            for kind in KINDS:
                for weight_decay, offset in ((0.0, 0), (0.0, 1), (0.01, 0), (0.01, 3)):
                    run(backend, rule, rule.call(kind, weight_decay), chunk, dtype, offset, device)
                    count += 1
                    if dtype == torch.bfloat16 and rule.kernel.keeps_y:
                        call = rule.call(kind, weight_decay, int(Flag.STOCHASTIC_ROUNDING))
                        run(backend, rule, call, chunk, dtype, offset, device)
                        count += 1
    return count


def captured_steps(device: torch.device) -> int:
    """Two cycles of every optimizer whose clock is on the device, the second step's gradients overflown."""
    names = ("EntropySGD", "HJ", "Heat", "EntropyAdamW")
    for name in names:
        params = [torch.nn.Parameter(torch.randn(size, device=device)) for size in (5, 4100)]
        opt = getattr(deeprelax, name)(params, inner_steps=2, capturable=True, backend="cuda")
        for step in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.grad_scale = torch.full((), 4.0, device=device)
            opt.found_inf = torch.full((), float(step == 1), device=device)
            opt.step()
    return 4 * len(names)


def main() -> None:
    module = importlib.import_module("deeprelax._cuda")
    device = torch.device("cuda", 0)
    count = everything(Cuda(module), module.chunk, device) + captured_steps(device)
    torch.cuda.synchronize()
    print(f"{count} calls")


if __name__ == "__main__":
    main()
