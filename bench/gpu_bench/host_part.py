"""Part ``host``: the host's time for ``step()``, by that of ``torch.optim.SGD(fused=True)``."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax.kernels import Backend, layout
from gpu_bench.context import Context
from gpu_bench.timing import Contestant, HostTimer, Sample, measure, ratios, spread

SGD = "torch.optim.SGD(fused=True)"
STEPS = 10  # at a time: a short queue, which the device never fills
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "EntropySGD": {"inner_lr": 1e-3, "temperature": 1e-8, "seed": 0},
    "HJ": {},
    "Heat": {"seed": 0},
}


def parameters(context: Context) -> list[Tensor]:
    params = [
        torch.nn.Parameter(torch.randn(context.scale.of, device=context.device)) for _ in range(context.scale.tensors)
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    return list(params)


def is_capturable(backend: Backend) -> bool:
    return bool(getattr(backend, "capturable", False))


def run(context: Context) -> None:
    """All backends and optimizers, capturable and not, alternating with SGD."""
    results = context.record.results("host")
    # Without torch's exchange capsule the addresses of tensors are asked for one by one, which takes longer.
    results.update(tensors=context.scale.tensors, exchange_capsule=layout._native() is not None, rows=[])
    optimizers: dict[str, Any] = {}
    for backend_name, backend in context.backends.items():
        for name, options in OPTIMIZERS.items():
            for capturable in (False, True) if is_capturable(backend) else (False,):
                what = f"{name} [{backend_name}{', capturable' * capturable}]"
                with context.record.attempt("host", what):
                    make = getattr(deeprelax, name)
                    opt = make(parameters(context), **options, backend=backend_name, capturable=capturable)
                    opt.step()
                    context.synchronize()
                    optimizers[what] = opt
    optimizers[SGD] = torch.optim.SGD(parameters(context), lr=1e-6, fused=True)
    samples = measure(
        {what: burst(opt.step) for what, opt in optimizers.items()},
        QueueTimer(context.synchronize),
        2 * context.scale.rounds,
    )
    for what in optimizers:
        us = spread([1e6 * s.seconds for s in samples[what]])
        results["rows"].append({"name": what, "us": us, "by_sgd": statistics.median(ratios(samples, what, SGD))})
    context.record.save()
    results["profiles"] = {what: hottest(opt.step, context) for what, opt in optimizers.items()}


def burst(step: Callable[[], object]) -> Contestant:
    def enqueue() -> None:
        for _ in range(STEPS):
            step()

    return Contestant(enqueue, STEPS)


class QueueTimer:
    """The host's clock around a burst that begins with an idle device, which is not waited for.

    Args:
        synchronize: waits for the device.
    """

    def __init__(self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._synchronize = synchronize
        self._timer = HostTimer(clock)

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        self._synchronize()
        return self._timer(name, contestant)


def hottest(step: Callable[[], object], context: Context, lines: int = 8) -> list[str]:
    """Where Python spends a step, for whoever wants to shorten it."""
    context.synchronize()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(STEPS):
        step()
    profile.disable()
    stats: Any = pstats.Stats(profile)
    rows = [(own, calls, where) for where, (_, calls, own, _, _) in stats.stats.items()]
    rows.sort(reverse=True)
    return [
        f"{1e6 * own / STEPS:.1f} us, {calls / STEPS:g} calls: {file.rpartition('/')[2]}:{line} {function}"
        for own, calls, (file, line, function) in rows[:lines]
    ]
