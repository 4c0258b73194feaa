"""Times a training step on several processes over gloo: Elastic-SGD and Parle next to DDP, PostLocalSGD and DiLoCo.

    python bench/workers.py --out out/workers.json          # starts 2, then 3 processes itself

In every round all contestants make L = 20 steps each, in a new random order, the same on all processes; ratios are
medians of ratios within a round, of the slowest process's time. The last table is a model, not a measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo

import deeprelax
from deeprelax.benchmark.throughput import ratio
from deeprelax.benchmark.timing import alternate
from deeprelax.environment import describe
from deeprelax.files import write_json

L, BATCH = 20, 32
INPUTS, CLASSES = 784, 10
DDP = "DDP + SGD"
ALONE = "EntropySGD with noise, no exchange"
# The model of larger groups: seconds until a message arrives, bytes a second of a link, seconds of computing a step.
LATENCY, BANDWIDTH = 20e-6, 12.5e9
SIZES = (2, 8, 64, 1024)


def network(width: int) -> nn.Module:
    """The same on every process."""
    torch.manual_seed(0)
    hidden = [nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def contestants(width: int) -> dict[str, tuple[nn.Module, Any]]:
    """(model, optimizer) by name."""
    found: dict[str, tuple[nn.Module, Any]] = {}
    model: nn.Module = DistributedDataParallel(network(width))
    found[DDP] = model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model = network(width)
    averager = PeriodicModelAverager(period=L)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    found["PostLocalSGDOptimizer"] = model, PostLocalSGDOptimizer(sgd, averager)
    model = network(width)
    found["DiLoCo of torchft"] = model, diloco(model)
    options = {"inner_lr": 0.01, "inner_steps": L, "temperature": 1e-8, "seed": 0}
    for name, make, more in (
        ("ElasticSGD", deeprelax.ElasticSGD, {}),
        ("Parle", deeprelax.Parle, {}),
        ("Parle, overlap", deeprelax.Parle, {"overlap": True}),
        (ALONE, deeprelax.EntropySGD, {}),
    ):
        model = network(width)
        found[name] = model, make(model.parameters(), **options, **more)
    return found


def diloco(model: nn.Module) -> torch.optim.Optimizer:
    """SGD whose every L-th step is DiLoCo's, under the lighthouse of ``run``."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=datetime.timedelta(seconds=60)),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=dist.get_world_size(),
        use_async_quorum=False,
        replica_id=f"worker{dist.get_rank()}",
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
    )
    manager.own_store = store  # lives as long as the manager
    DiLoCo(manager, [model], sgd, outer, sync_every=L).__enter__()
    return sgd


def train(model: nn.Module, opt: Any, inputs: Tensor, targets: Tensor, steps: int = L) -> None:
    """So many steps."""
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        opt.step()


def batch() -> tuple[Tensor, Tensor]:
    """Inputs and classes, others on every process."""
    torch.manual_seed(dist.get_rank())
    return torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))


def measure(width: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, the slowest process's, one a round."""
    torch.set_num_threads(1)
    (inputs, targets), everyone = batch(), contestants(width)
    times: dict[str, list[float]] = {name: [] for name in everyone}

    def timed(name: str) -> None:
        dist.barrier()
        begin = time.perf_counter()
        train(*everyone[name], inputs, targets)
        slowest = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        times[name].append(float(slowest) / L)

    alternate({name: partial(timed, name) for name in everyone}, rounds)
    return {name: found[1:] for name, found in times.items()}  # the first warms up


def model_of(compute: float, exchanged: float, every: int, size: int) -> float:
    """Seconds of a step: computing, and a ring's all-reduce of so many bytes once in ``every`` steps."""
    ring = 2 * (size - 1) * LATENCY + 2 * (size - 1) / size * exchanged / BANDWIDTH
    return compute + ring / every


def row(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    """One contestant's figures."""
    found = {"name": name, "ms": 1e3 * statistics.median(times[name])}
    return {**found, "by_ddp": ratio(times, name, DDP), "by_alone": ratio(times, name, ALONE)}


def run(size: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of so many processes, started here."""
    lighthouse = LighthouseServer("[::]:0", min_replicas=size)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "WORLD_SIZE": str(size), "STORE": f"{folder}/store", "OMP_NUM_THREADS": "1"}
        environment["TORCHFT_LIGHTHOUSE"] = lighthouse.address()
        command = [sys.executable, __file__, "--out", f"{folder}/rows.json", f"--width={width}", f"--rounds={rounds}"]
        started = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(size)]
        for each in started:
            each.wait()
        lighthouse.shutdown()
        found: list[dict[str, Any]] = json.loads(Path(folder, "rows.json").read_text())
        return found


def main() -> None:
    """One process of a group, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/workers.json"))
    parser.add_argument("--width", type=int, default=1536, help="of the hidden layers")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    if "STORE" in os.environ:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{os.environ['STORE']}",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
        times = measure(given.width, given.rounds)
        if dist.get_rank() == 0:
            write_json(given.out, [row(times, name) for name in times])
        dist.barrier()
        os._exit(0)  # tearing a gloo group down crashes now and then
    elements = sum(p.numel() for p in network(given.width).parameters())
    measured = {size: run(size, given.width, given.rounds) for size in (2, 3)}
    compute = 1e-3 * next(r["ms"] for r in measured[2] if r["name"] == ALONE)
    every: dict[str, Callable[[int], float]] = {
        DDP: lambda size: model_of(compute, 4 * elements, 1, size),
        "ElasticSGD, Parle": lambda size: model_of(compute, 4 * elements, L, size),
        "Parle, overlap": lambda size: max(compute, model_of(0.0, 4 * elements, L, size)),
    }
    result = {
        **{"machine": describe(), "date": datetime.date.today().isoformat(), "elements": elements},
        **{"inner_steps": L, "measured": measured, "latency": LATENCY, "bandwidth": BANDWIDTH},
        "model": {name: {size: 1e3 * of(size) for size in SIZES} for name, of in every.items()},
    }
    write_json(given.out, result)
    print(json.dumps(result["measured"], indent=1))


if __name__ == "__main__":
    main()
