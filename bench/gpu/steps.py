"""Whole steps of the optimizers over a cycle, compared with torch's fused AdamW on the same parameters.

python bench/gpu/steps.py --backend cuda     # or triton
python bench/gpu/steps.py --plain            # Entropy-SGD's inner step in plain torch; --compiled: under torch.compile
python bench/gpu/steps.py --host             # the host's time, compared with fused SGD's
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from functools import partial
from itertools import product
from typing import Any

import common
import torch
from common import KINDS, OUT, RULES, WORKLOADS, Contestant, Rows, compare, in_turn
from torch import Tensor

from deeprelax.benchmark import throughput
from deeprelax.benchmark.baselines import PEERS, CompiledEntropySGD, EagerEntropySGD, ForeachEntropySGD
from deeprelax.benchmark.shapes import Workload, named, parameters
from deeprelax.benchmark.timing import Step
from deeprelax.benchmark.traffic import peer_bytes_moved

SGD, ADAMW = "torch.optim.SGD(fused=True)", "torch.optim.AdamW(fused=True)"
ROUNDS = 6
TENSORS, ELEMENTS, HOST_ROUNDS = 300, 1024, 300  # of the host's time
# What makes an optimizer, how many of its steps are timed at a time, and the bytes that one moves per element.
Build = tuple[Callable[[list[Tensor]], Any], int, float]


def ours(backend: str, capturable: bool) -> dict[str, Build]:
    """The optimizers on a backend, a whole cycle at a time."""
    found: dict[str, Build] = {}
    for rule in RULES:
        moved = rule.per_cycle({kind: rule.bytes("fp32", kind) for kind in KINDS})
        found[rule.name] = partial(rule.make, backend=backend, capturable=capturable), rule.length, moved
    return found


def theirs(*names: str) -> dict[str, Build]:
    """torch's optimizers: keys of ``PEERS``."""
    return {name: (PEERS[name], 5, peer_bytes_moved(name, torch.float32)) for name in names}


def plain(compiled: bool) -> dict[str, Build]:
    """Entropy-SGD's inner step in plain torch; compiling it takes most of a minute."""
    found = {"eager torch": EagerEntropySGD, "torch._foreach": ForeachEntropySGD}
    if compiled:
        found = {"torch.compile": CompiledEntropySGD}
    moved = RULES[1].bytes("fp32", "inner")
    return {f"{RULES[1].name}, {name}": (build, 2, moved) for name, build in found.items()}


def graph(step: Step) -> Step:
    """A step in a CUDA graph, replayed. Where there are no graphs (the tests' CPU), the step itself."""
    if common.GPU.type != "cuda":
        return step
    step()  # compiles what it launches
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def measure(rows: Rows, workload: Workload, what: str, builds: dict[str, Build], graphs: Collection[str] = ()) -> None:
    """A row for each, all on the same parameters; those in ``graphs`` are captured."""
    params, contestants = parameters(workload.shapes, common.GPU), {}
    made = []  # a graph uses the memory of its optimizer, and does not keep it
    for name, (build, calls, moved) in builds.items():
        with rows.attempt(f"{name}, {workload.name} [{what}]"):
            made.append(build(params))
            step = graph(made[-1].step) if name in graphs else made[-1].step
            step()
            common.synchronize()  # what does not run at all must not take the others with it
            contestants[name] = Contestant(partial(in_turn, [step], calls), calls, moved * workload.elements)
    for name, figures in compare(contestants, ROUNDS, ADAMW).items():
        rows.add(workload=workload.name, backend=what, name=name, **figures)


def host(rows: Rows, backend: str) -> None:
    """A row for each, capturable or not, with the gradients of the step before, or new ones as after
    ``zero_grad(set_to_none=True)``. A step begins with an idle device, and does not wait for it at the end."""
    for capturable, new in product((False, True), repeat=2):
        steps: dict[str, Step] = {}
        prepare: dict[str, Step] = {}
        for name, (build, *_) in (ours(backend, capturable) | theirs(SGD)).items():
            with rows.attempt(f"{name} [{backend}{', capturable' * capturable}]"):
                params = parameters([(ELEMENTS,)] * TENSORS, common.GPU)
                step = build(params).step
                step()  # what does not run at all must not take the others with it
                change = [throughput.exchange(params, [torch.randn_like(p) for p in params])] * new
                steps[name], prepare[name] = step, partial(in_turn, [*change, common.synchronize], 1 + new)
        times = throughput.measure(steps, HOST_ROUNDS, prepare)
        for name, seconds in times.items():
            us, by_sgd = common.spread([1e6 * t for t in seconds]), throughput.ratio(times, name, SGD)
            about = {"name": name, "backend": backend, "capturable": capturable, "new_gradients": new}
            rows.add(**about, tensors=TENSORS, us=us, by_sgd=by_sgd)


def main() -> None:
    given = common.arguments(str(__doc__), "--plain", "--compiled", "--host")
    if given.host:
        host(Rows(OUT, "host"), given.backend)
        return
    rows = Rows(OUT, "steps")
    with rows.loaded():
        if given.plain or given.compiled:
            measure(rows, named(WORKLOADS[0]), "plain torch", plain(given.compiled) | theirs(ADAMW))
            return
        for which in WORKLOADS:
            for what, graphs in ((given.backend, {}), (f"{given.backend}, graph", ours(given.backend, True))):
                with rows.attempt(which):
                    measure(rows, named(which), what, ours(given.backend, False) | graphs | theirs(*PEERS), graphs)
                gc.collect()  # optimizers and their memory are in reference cycles


if __name__ == "__main__":
    main()
