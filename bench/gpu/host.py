"""Host time of ``step()`` over that of ``torch.optim.SGD(fused=True)``: python bench/gpu/host.py --backend cuda

Gradients stay where they are, or lie elsewhere after each step, as after ``zero_grad(set_to_none=True)``.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from common import Rows, arguments, gpu, spread, synchronize
from torch import Tensor
from torch.utils.benchmark import Timer

import deeprelax
from deeprelax.benchmark.timing import alternate

TENSORS, ELEMENTS, ROUNDS = 300, 1024, 30
STEPS = 10  # a round
SGD = "torch.optim.SGD(fused=True)"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "EntropySGD": {"inner_lr": 1e-3, "temperature": 1e-8, "seed": 0},
    "HJ": {},
    "Heat": {"seed": 0},
    "EntropyAdamW": {},
}


class Exchange:
    """Gives parameters one of two sets of gradients in turn."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params, self.here = params, [p.grad for p in params]
        self.there: list[Tensor | None] = [torch.randn_like(p) for p in params]

    def __call__(self) -> None:
        """The other set."""
        self.here, self.there = self.there, self.here
        for p, grad in zip(self.params, self.here):
            p.grad = grad


def timer(opt: torch.optim.Optimizer, exchanges: bool, device: torch.device) -> Timer:
    """Times one step that begins with an idle device and does not wait for it at the end."""
    exchange = Exchange([p for group in opt.param_groups for p in group["params"]]) if exchanges else lambda: None
    known = {"step": opt.step, "exchange": exchange, "wait": lambda: synchronize(device)}
    return Timer("step()", "exchange(); wait()", globals=known, timer=time.perf_counter)


def parameters(device: torch.device, tensors: int) -> list[Tensor]:
    """Of the optimizers, each its own."""
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(ELEMENTS, device=device)) for _ in range(tensors)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def measure(rows: Rows, backend: str, rounds: int = ROUNDS, tensors: int = TENSORS) -> None:
    """All optimizers, capturable and not, alternating with SGD; those that are not capturable also with new gradients,
    compared with SGD on new gradients."""
    timers: dict[tuple[str, bool, bool], Timer] = {}
    for name, options in OPTIMIZERS.items():
        for capturable in (False, True):
            with rows.attempt(f"{name} [{backend}{', capturable' * capturable}]"):
                make, params = getattr(deeprelax, name), parameters(rows.device, tensors)
                opt = make(params, **options, backend=backend, capturable=capturable)
                opt.step()
                for new in (False, True)[: 1 if capturable else 2]:
                    timers[name, capturable, new] = timer(opt, new, rows.device)
    sgd = torch.optim.SGD(parameters(rows.device, tensors), lr=1e-6, fused=True)
    timers |= {(SGD, False, new): timer(sgd, new, rows.device) for new in (False, True)}
    seconds: dict[tuple[str, bool, bool], list[float]] = {key: [] for key in timers}

    def timed(key: tuple[str, bool, bool]) -> None:
        seconds[key].append(statistics.median(timers[key].timeit(1).mean for _ in range(STEPS)))

    alternate({key: partial(timed, key) for key in timers}, rounds)
    for key, (_, *times) in seconds.items():  # the first warms up
        name, capturable, new = key
        by_sgd = statistics.median(a / b for a, b in zip(times, seconds[SGD, False, new][1:]))
        common = {"name": name, "backend": backend, "capturable": capturable, "new_gradients": new, "tensors": tensors}
        rows.add(**common, us=spread([1e6 * t for t in times]), by_sgd=by_sgd)


def main() -> None:
    """On the current GPU."""
    given = arguments(str(__doc__))
    measure(Rows(given.out, "host", gpu()), given.backend)


if __name__ == "__main__":
    main()
