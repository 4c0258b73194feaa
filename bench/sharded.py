"""What sharding costs on a CPU: the host's time for DTensors, and the kernels' time for parts of parameters.

    python bench/sharded.py --out out/bench/sharded.json

One thread. Contestants alternate; figures are medians, and ratios are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
from array import array
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import deeprelax
from deeprelax.benchmark.throughput import exchange, measure, ratio
from deeprelax.benchmark.timing import Step
from deeprelax.environment import describe
from deeprelax.files import write_json
from deeprelax.kernels import Table

TENSORS, ELEMENTS = 300, 16  # of the host's time
INNER: dict[str, Any] = {"lr": 1e-3, "inner_steps": 10**9}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "EntropySGD": {**INNER, "inner_lr": 1e-3, "temperature": 1e-8, "seed": 0},
    "HJ": INNER,
}
SGD = "torch.optim.SGD(foreach=True)"
# Of the kernels' time: a weight that stays in the second-level cache with its streams.
SIZE = 2**15
# Where a part lies in its parameter: its first element, and the length and the distance of its runs.
WHOLE = "whole"
PARTS: dict[str, tuple[int, tuple[int, int] | None]] = {
    WHOLE: (0, None),
    **{f"from element {start} on": (start, None) for start in (1, 2, 3)},
    **{f"every other run of {length}": (0, (length, 2 * length)) for length in (128, 512, 129, 513)},
}


def parameters(mesh: DeviceMesh | None) -> list[Tensor]:
    """With gradients; on a mesh DTensors, whose gradients share their description as under FSDP."""
    params: list[Tensor] = []
    for _ in range(TENSORS):
        p = torch.randn(ELEMENTS)
        params.append(nn.Parameter(p if mesh is None else distribute_tensor(p, mesh, [Shard(0)])))
    for p in params:
        p.grad = new_gradient(p)
    return params


def new_gradient(p: Tensor) -> Tensor:
    """One as ``parameters`` gives."""
    g = torch.randn(ELEMENTS)
    return DTensor(g, p._spec, requires_grad=False) if isinstance(p, DTensor) else g


def host(mesh: DeviceMesh, rounds: int) -> list[dict[str, Any]]:
    """Rows of the host's time: of DTensors by that of plain tensors, and by SGD's on the same."""
    steps: dict[str, Step] = {}
    before: dict[str, Step] = {}
    for new in (False, True):
        for kind in (*OPTIMIZERS, SGD):
            for on, where in (("tensors", None), ("DTensors", mesh)):
                params, name = parameters(where), f"{kind} {on} {new}"
                made = getattr(deeprelax, kind)(params, **OPTIMIZERS[kind]) if kind in OPTIMIZERS else None
                steps[name] = (made or torch.optim.SGD(params, lr=1e-6, foreach=True)).step
                if new:
                    before[name] = exchange(params, [new_gradient(p) for p in params])
    times = measure(steps, rounds, before)
    return [
        {
            "name": kind,
            "new_gradients": new,
            "us": 1e6 * statistics.median(times[f"{kind} DTensors {new}"]),
            "by_tensors": ratio(times, f"{kind} DTensors {new}", f"{kind} tensors {new}"),
            "by_sgd": ratio(times, f"{kind} DTensors {new}", f"{SGD} DTensors {new}"),
        }
        for new in (False, True)
        for kind in (*OPTIMIZERS, SGD)
    ]


def kernels(rounds: int) -> list[dict[str, Any]]:
    """Rows of the kernels' time for parts, by that for a whole parameter. All of them use the same memory: where it
    lies makes a difference, too."""
    steps: dict[str, Step] = {}
    for kind, options in OPTIMIZERS.items():
        p = nn.Parameter(torch.randn(SIZE))
        p.grad = torch.randn(SIZE)
        opt = getattr(deeprelax, kind)([p], **options)
        for _ in range(2):
            opt.step()
        plan = opt._shared.plans[0]
        (bucket,), scalars = plan.buckets, plan.clock._next[0]
        flat = {name: torch.randn(2 * SIZE) for name in bucket.buffers}
        for part, (start, run) in PARTS.items():
            weight = p.detach()[: SIZE - SIZE % run[0] if run else SIZE]
            table = Table([weight], [0], [start], [run])
            buffers = {name: buffer[: table.length] for name, buffer in flat.items()}
            update = bucket.backend.bind(bucket.rule, table, buffers)
            steps[f"{kind} {part}"] = partial(update.run, scalars, [p.grad], array("q", [p.grad.data_ptr()]))
    times = measure(steps, rounds)
    return [
        {
            "name": kind,
            "part": part,
            "us": 1e6 * statistics.median(times[f"{kind} {part}"]),
            "by_whole": ratio(times, f"{kind} {part}", f"{kind} {WHOLE}"),
        }
        for kind in OPTIMIZERS
        for part in PARTS
    ]


def main() -> None:
    """Both, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench/sharded.json"))
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    result = {
        **{"machine": describe(), "date": date.today().isoformat()},
        **{"tensors": TENSORS, "elements": SIZE},
        "host": host(DeviceMesh("cpu", [0]), given.rounds),
        "kernels": kernels(given.rounds),
    }
    write_json(given.out, result)
    for row in (*result["host"], *result["kernels"]):
        print({name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
