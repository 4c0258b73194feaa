"""What the measuring parts are given: real on a GPU, small and emulated in the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deeprelax.benchmark.shapes import Workload, named
from deeprelax.kernels import Backend
from gpu_bench.record import Budget, Record
from gpu_bench.timing import Timer, cuda_timer


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        elements: of the kernels' table.
        sizes: of the picture.
        rounds: of the kernels; the other parts have theirs in proportion.
        workloads: whose whole steps are timed.
        tensors, of: of the host's part, and their elements.
    """

    elements: int = 2**28
    sizes: tuple[int, ...] = tuple(2**n for n in range(16, 29, 2))
    rounds: int = 15
    workloads: tuple[str | Workload, ...] = ("resnet50", "decoder-1.3b")
    tensors: int = 300
    of: int = 1024

    def workload(self, which: str | Workload) -> Workload:
        return named(which) if isinstance(which, str) else which


@dataclass
class Context:
    """Where a part measures and what it writes to.

    Attributes:
        device: where.
        backends: what is measured, by name.
        timer: of work on the device.
        synchronize: waits for the device.
        record, budget: of the run.
    """

    device: torch.device
    backends: dict[str, Backend]
    timer: Timer
    synchronize: Callable[[], None]
    record: Record
    budget: Budget
    scale: Scale = field(default_factory=Scale)


def on_gpu(backends: dict[str, Backend], record: Record, budget: Budget) -> Context:
    """On the current CUDA device."""
    device = torch.device("cuda", torch.cuda.current_device())
    return Context(device, backends, cuda_timer(), torch.cuda.synchronize, record, budget)
