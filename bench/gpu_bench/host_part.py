"""Part ``host``: the host's time for ``step()``, by that of ``torch.optim.SGD(fused=True)``."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax.kernels import Backend, layout
from gpu_bench.context import Context
from gpu_bench.targets import NEW
from gpu_bench.timing import Contestant, HostTimer, Sample, measure, ratios, spread

SGD = "torch.optim.SGD(fused=True)"
STEPS = 10  # at a time: a short queue, which the device never fills; even, so that gradients end where they began
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


class Exchange:
    """Gives parameters one of two sets of gradients in turn, as ``zero_grad(set_to_none=True)`` and a backward pass
    may: the addresses that the kernels read have to be uploaded again."""

    def __init__(self, opt: torch.optim.Optimizer) -> None:
        self._params: list[Tensor] = [p for group in opt.param_groups for p in group["params"]]
        self._here = [p.grad for p in self._params]
        self._there: list[Tensor | None] = [torch.randn_like(p) for p in self._params]

    def __call__(self) -> None:
        self._here, self._there = self._there, self._here
        for p, grad in zip(self._params, self._here):
            p.grad = grad


def run(context: Context) -> None:
    """All backends and optimizers, capturable and not, alternating with SGD; each with gradients that stay where they
    are, and those that are not capturable also with gradients in two places in turn."""
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
    steps = {what: Contestant(opt.step, 1) for what, opt in optimizers.items()}
    exchanges = {what + NEW: Exchange(opt) for what, opt in optimizers.items() if "capturable" not in what}
    steps |= {what: steps[what.removesuffix(NEW)] for what in exchanges}
    samples = measure(steps, QueueTimer(context.synchronize, exchanges), 2 * context.scale.rounds)
    for what in steps:
        us = spread([1e6 * s.seconds for s in samples[what]])
        by_sgd = statistics.median(ratios(samples, what, SGD + NEW if what.endswith(NEW) else SGD))
        results["rows"].append(
            {"name": what, "us": us, "by_sgd": by_sgd, "judged": "capturable" not in what and SGD not in what}
        )
    context.record.save()
    results["profiles"] = {what: hottest(opt.step, context) for what, opt in optimizers.items()}


class QueueTimer:
    """The host's clock around each of some steps that begin with an idle device, which is not waited for.

    Args:
        synchronize: waits for the device.
        before: by name of a contestant what is done before each of its steps, and not timed.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        before: Mapping[str, Callable[[], None]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize, self._before = synchronize, before
        self._timer = HostTimer(clock)

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        before = self._before.get(name)
        self._synchronize()
        seconds = 0.0
        for _ in range(STEPS):
            if before is not None:
                before()
            seconds += self._timer(name, contestant).seconds / STEPS
        return Sample(seconds, seconds, False)


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
