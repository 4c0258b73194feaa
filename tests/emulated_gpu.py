"""``bench/gpu.py`` on the CPU, small, with emulated CUDA kernels and a made-up clock; its processes run this too.

    python tests/emulated_gpu.py --out folder [as bench/gpu.py]

BREAK="kernels/cuda abort" ends the process that measures that in the middle of bf16; with "lost" instead of "abort"
nothing works in it from then on, as after an illegal address.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu  # noqa: E402
from gpu_bench import machine, steps_part, variants  # noqa: E402
from gpu_bench.context import Context, Scale  # noqa: E402
from gpu_bench.record import Budget, Record  # noqa: E402
from gpu_bench.timing import Contestant, Sample  # noqa: E402

from deeprelax import kernels  # noqa: E402
from deeprelax.benchmark.baselines import EagerEntropySGD  # noqa: E402
from deeprelax.benchmark.shapes import Workload  # noqa: E402
from deeprelax.kernels import Backend, Flag  # noqa: E402
from deeprelax.kernels.cuda import Cuda  # noqa: E402

CPU = torch.device("cpu")
TINY = Scale(
    elements=2**10,
    sizes=(2**7, 2**10),
    rounds=3,
    workloads=(Workload("resnet50, tiny", ((5, 3), (70,))), Workload("decoder-1.3b, tiny", ((129,),))),
    tensors=3,
    of=16,
)


class MadeUpTimer:
    """Runs the work; says that a copy takes 1 ms, fused AdamW 4 ms and everything else 2 ms."""

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        contestant.enqueue()
        return Sample({"copy": 1e-3, steps_part.ADAMW: 4e-3}.get(name, 2e-3), 1e-5, False)


class Breaking(Cuda):
    """Breaks at its first bf16 call that begins a cycle: that of inner calls comes before."""

    def __init__(self, module: Any, how: str) -> None:
        super().__init__(module, emulated=True)
        self.how, self.lost = how, False

    def bind(self, rule: Any, table: Any, *arguments: Any) -> Any:
        update = super().bind(rule, table, *arguments)

        def run(scalars: Any, *gradients: Any) -> None:
            if table.dtype == torch.bfloat16 and scalars.flags & Flag.FIRST:
                if self.how == "abort":
                    os.abort()
                self.lost = True
            self.synchronize()
            update.run(scalars, *gradients)

        return SimpleNamespace(run=run, run_ticked=update.run_ticked)

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")


def main() -> int:
    where, _, how = os.environ.get("BREAK", "").partition(" ")
    module = importlib.import_module("deeprelax._cuda")
    backend: Backend = Cuda(module, emulated=True)
    synchronize = functools.partial(bool)
    if where and where in sys.argv:
        backend = Breaking(module, how)
        synchronize = backend.synchronize
    real = kernels.get
    for place in ("deeprelax.optim.bucket", "deeprelax.optim.device_clock"):
        importlib.import_module(place).get = lambda name, device: backend if name == "cuda" else real(name, device)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        get_device_capability=lambda: (9, 0),
        synchronize=synchronize,
    )
    gpu.torch = SimpleNamespace(cuda=cuda, device=torch.device)
    gpu.about = lambda commit, device: {**machine.about(commit, CPU), "why_not": {}}
    gpu.backends = lambda: {"cuda": backend}

    def small(backends: dict[str, Backend], record: Record, budget: Budget) -> Context:
        return Context(CPU, backends, MadeUpTimer(), synchronize, record, budget, TINY)

    gpu.on_gpu = small
    steps_part.PLAIN[steps_part.COMPILED] = EagerEntropySGD  # compiling takes most of a minute
    variants.Builder = functools.partial(variants.Builder, variants={})
    return gpu.main(sys.argv[1:], Path(__file__))


if __name__ == "__main__":
    sys.exit(main())
