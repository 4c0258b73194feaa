"""Whole steps of the optimizers over a cycle, compared with torch's fused AdamW on the same parameters.

python bench/gpu/steps.py --backend cuda     # or triton
python bench/gpu/steps.py --plain            # Entropy-SGD's inner step in plain torch; --plain --compiled: compiled
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import KINDS, RULES, Memory, Rows, Rule, arguments, figures, gpu, ratios, sample, synchronize, timer_of
from torch import Tensor

import deeprelax
from deeprelax.benchmark.baselines import PEERS, CompiledEntropySGD, EagerEntropySGD, ForeachEntropySGD
from deeprelax.benchmark.shapes import Workload, named
from deeprelax.benchmark.timing import Step, Timer
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved

WORKLOADS = ("resnet50", "decoder-1.3b")
ADAMW = "torch.optim.AdamW(fused=True)"
PEER_STEPS, ROUNDS = 5, 6
PLAIN: dict[str, Callable[[list[Tensor]], Any]] = {
    "EntropySGD, noise, eager torch": EagerEntropySGD,
    "EntropySGD, noise, torch._foreach": ForeachEntropySGD,
}
COMPILED = {"EntropySGD, noise, torch.compile": CompiledEntropySGD}  # compiling takes most of a minute


def make(rule: Rule, params: list[Tensor], backend: str, capturable: bool) -> Any:
    """The optimizer with a cycle of the rule's length, and rates so small that weights keep their size."""
    options: dict[str, Any] = {"lr": 1e-6, "inner_steps": rule.length, "backend": backend, "capturable": capturable}
    if rule.optimizer == "EntropySGD":
        options |= {"inner_lr": 1e-6, "temperature": 1e-8 if rule.noise else 0.0, "gamma": 1.0}
    if rule.optimizer == "EntropyAdamW":
        options |= {"momentum": 0.0}
    if rule.optimizer != "HJ":
        options |= {"seed": 0}
    return getattr(deeprelax, rule.optimizer)(params, **options)


def parameters(workload: Workload, device: torch.device) -> list[Tensor]:
    """Random weights with random gradients."""
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in workload.shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def captured(opt: Any, device: torch.device) -> Step:
    """One step in a CUDA graph, replayed. Where there are no graphs (the tests' CPU), the step itself."""
    step: Step = opt.step
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def repeated(step: Step, count: int) -> Step:
    """So many calls."""

    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def group(rows: Rows, workload: Workload, backend: str, capturable: bool, timer: Timer, rounds: int = ROUNDS) -> None:
    """A backend's optimizers and torch's, all on the same parameters."""
    device, params = rows.device, parameters(workload, rows.device)
    what = f"{backend}, graph" if capturable else backend
    contestants: dict[str, tuple[Step, int, float]] = {}
    for rule in RULES:
        with rows.attempt(f"{rule.name}, {workload.name} [{what}]"):
            opt = make(rule, params, backend, capturable)
            step = captured(opt, device) if capturable else opt.step
            step()
            synchronize(device)  # what does not run at all must not take the others with it
            moved = {kind: float(bytes_moved(rule.optimizer, torch.float32, kind)) for kind in KINDS}
            contestants[rule.name] = repeated(step, rule.length), rule.length, rule.per_cycle(moved)
    for name, build in PEERS.items():
        moved_by_peer = float(peer_bytes_moved(name, torch.float32))
        contestants[name] = repeated(build(params).step, PEER_STEPS), PEER_STEPS, moved_by_peer
    add(rows, workload, what, contestants, timer, rounds)


def plain(
    rows: Rows, workload: Workload, builders: Mapping[str, Callable[[list[Tensor]], Any]], timer: Timer, rounds: int = 3
) -> None:
    """Those of PLAIN or COMPILED, and AdamW."""
    params, moved = parameters(workload, rows.device), float(bytes_moved("EntropySGD", torch.float32, "inner"))
    adamw = repeated(PEERS[ADAMW](params).step, PEER_STEPS)
    contestants = {ADAMW: (adamw, PEER_STEPS, float(peer_bytes_moved(ADAMW, torch.float32)))}
    for name, build in builders.items():
        with rows.attempt(name):
            contestants[name] = repeated(build(params).step, 2), 2, moved
            contestants[name][0]()
    add(rows, workload, "plain torch", contestants, timer, rounds)


def add(
    rows: Rows,
    workload: Workload,
    what: str,
    contestants: dict[str, tuple[Step, int, float]],
    timer: Timer,
    rounds: int,
) -> None:
    """Add a row for each: time and bandwidth of a step, time and time per byte relative to AdamW's."""
    samples = sample({name: step for name, (step, _, _) in contestants.items()}, timer, rounds)
    steps, per_element = contestants[ADAMW][1:]
    for name, (_, calls, moved) in contestants.items():
        by_adamw = statistics.median(ratios(samples, name, ADAMW)) * steps / calls
        found = figures(samples, name, calls, moved * workload.elements)
        by_byte = by_adamw * per_element / moved
        rows.add(workload=workload.name, backend=what, name=name, **found, by_adamw=by_adamw, by_adamw_per_byte=by_byte)


def main() -> None:
    """On the current GPU."""
    flags = [(name, {"action": "store_true"}) for name in ("--plain", "--compiled")]
    given = arguments(str(__doc__), *flags)
    rows = Rows(given.out, "steps", gpu())
    timer = timer_of(Memory(2**26, rows.device))
    with rows.loaded():
        if given.plain:
            plain(rows, named(WORKLOADS[0]), COMPILED if given.compiled else PLAIN, timer)
            return
        for which in WORKLOADS:
            for capturable in (False, True):
                with rows.attempt(which):
                    group(rows, named(which), given.backend, capturable, timer)
                gc.collect()


if __name__ == "__main__":
    main()
