"""Whole steps of the optimizers over a cycle, compared with torch's fused AdamW on the same parameters.

python bench/gpu/steps.py --backend cuda     # or triton
python bench/gpu/steps.py --plain            # Entropy-SGD's inner step in plain torch; --compiled: under torch.compile
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import common
import torch
from common import GPU, KINDS, OUT, RULES, WORKLOADS, Contestant, Rows, compare, in_turn
from torch import Tensor

from deeprelax.benchmark.baselines import PEERS, CompiledEntropySGD, EagerEntropySGD, ForeachEntropySGD
from deeprelax.benchmark.shapes import Workload, named, parameters
from deeprelax.benchmark.timing import Step, Timer
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved

ADAMW = "torch.optim.AdamW(fused=True)"
ROUNDS = 6
# What makes an optimizer, how many of its steps are timed at a time, and the bytes that one moves per element.
Build = tuple[Callable[[list[Tensor]], Any], int, float]


def ours(backend: str, capturable: bool) -> dict[str, Build]:
    """The optimizers on a backend, a whole cycle at a time."""
    found: dict[str, Build] = {}
    for rule in RULES:
        moved = rule.per_cycle({kind: bytes_moved(rule.optimizer, torch.float32, kind) for kind in KINDS})
        found[rule.name] = partial(rule.make, backend=backend, capturable=capturable), rule.length, moved
    return found


def theirs(*names: str) -> dict[str, Build]:
    """torch's optimizers: keys of ``PEERS``."""
    return {name: (PEERS[name], 5, peer_bytes_moved(name, torch.float32)) for name in names}


def plain(compiled: bool) -> dict[str, Build]:
    """Entropy-SGD's inner step in plain torch; compiling it takes most of a minute."""
    moved = bytes_moved("EntropySGD", torch.float32, "inner")
    if compiled:
        return {"EntropySGD, noise, torch.compile": (CompiledEntropySGD, 2, moved)}
    return {
        "EntropySGD, noise, eager torch": (EagerEntropySGD, 2, moved),
        "EntropySGD, noise, torch._foreach": (ForeachEntropySGD, 2, moved),
    }


def graph(step: Step, device: torch.device) -> Step:
    """A step in a CUDA graph, replayed. Where there are no graphs (the tests' CPU), the step itself."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def measure(
    rows: Rows, workload: Workload, what: str, builds: dict[str, Build], timer: Timer, graphs: Collection[str] = ()
) -> None:
    """A row for each, all on the same parameters; those in ``graphs`` are captured."""
    params, contestants = parameters(workload.shapes, rows.device), {}
    for name, (build, calls, moved) in builds.items():
        with rows.attempt(f"{name}, {workload.name} [{what}]"):
            step = build(params).step
            if name in graphs:
                step = graph(step, rows.device)
            step()
            common.synchronize(rows.device)  # what does not run at all must not take the others with it
            contestants[name] = Contestant(partial(in_turn, [step], calls), calls, moved * workload.elements)
    for name, figures in compare(contestants, timer, ROUNDS, ADAMW).items():
        rows.add(workload=workload.name, backend=what, name=name, **figures)


def main() -> None:
    given = common.arguments(str(__doc__), "--plain", "--compiled")
    rows = Rows(OUT, "steps", GPU)
    timer = common.timer_of(2**26, GPU)
    with rows.loaded():
        if given.plain or given.compiled:
            measure(rows, named(WORKLOADS[0]), "plain torch", plain(given.compiled) | theirs(ADAMW), timer)
            return
        for which in WORKLOADS:
            for what, graphs in ((given.backend, {}), (f"{given.backend}, graph", ours(given.backend, True))):
                with rows.attempt(which):
                    builds = ours(given.backend, False) | graphs | theirs(*PEERS)
                    measure(rows, named(which), what, builds, timer, graphs)
                gc.collect()  # optimizers and their memory are in reference cycles


if __name__ == "__main__":
    main()
