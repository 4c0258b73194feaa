"""Where a step's time goes: ``deeprelax profile``.

A short cycle with one call of every kind (first, inner, last) runs again and again. Between its calls run torch's
optimizers and a large copy: a busy machine slows all of them alike, and no call finds its data in the caches. Figures
are medians over the cycles, ratios medians of ratios within a cycle.
"""

from __future__ import annotations

import gc
import inspect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax.benchmark.baselines import PEERS
from deeprelax.benchmark.shapes import Workload, parameters
from deeprelax.benchmark.throughput import ratio
from deeprelax.benchmark.timing import DeviceTimer, HostTimer, Sample, Step, Timer, alternate, watched
from deeprelax.benchmark.trace import kernels_launched, write_trace
from deeprelax.benchmark.traffic import PEER_OPERANDS, bytes_moved, operands, peer_bytes_moved, width
from deeprelax.environment import describe
from deeprelax.optim.relaxation import Relaxation

OPTIMIZERS: dict[str, type[Relaxation]] = {
    "EntropySGD": deeprelax.EntropySGD,
    "HJ": deeprelax.HJ,
    "Heat": deeprelax.Heat,
    "EntropyAdamW": deeprelax.EntropyAdamW,
}
# Small steps and a constant gamma keep the weights where they are: the gradients never change.
QUIET = {"lr": 1e-3, "inner_lr": 1e-3, "scoping": 0.0, "seed": 0}

#: Bytes that the yardstick reads, and as many that it writes: more than caches hold. A step can beat it where a cache
#: still holds the parameters.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}


@dataclass(frozen=True)
class Plan:
    """What to profile.

    Args:
        workload: the parameters' shapes.
        optimizer: a key of ``OPTIMIZERS``.
        options: arguments of the optimizer besides ``QUIET``'s, ``inner_steps`` and ``backend``.
        inner_steps: L; default the optimizer's.
        dtype: of the parameters.
        device: that of the parameters.
        backend: a backend's name or "auto".
        rounds: cycles that are timed.
    """

    workload: Workload
    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)
    inner_steps: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str = "auto"
    rounds: int = 24

    @property
    def length(self) -> int:
        """L."""
        if self.inner_steps is not None:
            return self.inner_steps
        return int(inspect.signature(OPTIMIZERS[self.optimizer]).parameters["inner_steps"].default)

    @property
    def kinds(self) -> dict[str, int]:
        """The kinds of call in order, and how many of a cycle's L calls are of each kind."""
        if self.length <= 2:
            return dict.fromkeys(("only",) if self.length == 1 else ("first", "last"), 1)
        return {"first": 1, "inner": self.length - 2, "last": 1}

    @property
    def moving(self) -> dict[str, Any]:
        """The arguments that decide what is moved: those in ``options``, else the optimizer's defaults."""
        defaults = {name: p.default for name, p in inspect.signature(OPTIMIZERS[self.optimizer]).parameters.items()}
        known = inspect.signature(operands).parameters
        return {name: value for name, value in {**defaults, **self.options}.items() if name in known}

    def bytes_moved(self, kind: str) -> int:
        """Per element."""
        return bytes_moved(self.optimizer, self.dtype, kind, **self.moving)

    def make(self) -> Relaxation:
        """The optimizer, with its own parameters, in a cycle that has every kind of call once.

        Raises:
            ValueError, RuntimeError: as the optimizer's constructor.
        """
        cls = OPTIMIZERS[self.optimizer]
        quiet = {name: value for name, value in QUIET.items() if name in inspect.signature(cls).parameters}
        own: dict[str, Any] = {**quiet, **self.options, "inner_steps": len(self.kinds), "backend": self.backend}
        return cls(self.parameters(), **own)

    def parameters(self) -> list[Tensor]:
        """Random weights, each with a random gradient."""
        return parameters(self.workload.shapes, self.device, self.dtype)

    def memory(self, peers: bool) -> int:
        """Bytes that a profile keeps: weights, gradients and state, the peers' (which share weights and gradients),
        and the yardstick's buffers."""
        kept = {"w", "g"}
        for kind in self.kinds:
            kept = kept.union(*operands(self.optimizer, self.dtype, kind, **self.moving))
        item = self.dtype.itemsize
        per_element = sum(width(name, self.dtype) for name in kept) + (5 * item if peers else 0)
        buffers = 1 if self.device.type == "cpu" else 2  # of the yardstick
        return per_element * self.workload.elements + buffers * COPY_BYTES[self.device.type]


def yardstick(device: torch.device) -> tuple[str, Step]:
    """What memory allows: a large copy, described in words, and as a function. On a CPU it is a copy in place.

    A CPU fetches a cache line before it overwrites it. torch's copy between two buffers thus moves three bytes where
    two are counted, and is not an upper bound: the kernels write in place or past the caches, and would exceed it. In
    place, every byte that moves is counted.
    """
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    if device.type == "cpu":
        return "a copy in place (with its sign changed)", source.neg_
    target = torch.empty_like(source)
    return "a copy", lambda: target.copy_(source)


def free_memory(device: torch.device) -> int | None:
    """Free bytes on the device; None if the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def check(plan: Plan, peers: bool) -> None:
    """RuntimeError if there is too little memory, before the process is killed for it."""
    need, free = plan.memory(peers), free_memory(plan.device)
    if free is not None and need > free:
        raise RuntimeError(
            f"{plan.workload.name} with {plan.optimizer} takes {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            f"on {plan.device}; try --no-peers, a narrower --dtype or a smaller model"
        )


def profile(plan: Plan, peers: bool = True) -> dict[str, Any]:
    """Run the optimizer, the peers and the copy, and say where the time went.

    Args:
        plan: what to profile.
        peers: also run torch's optimizers.

    Returns:
        Plain values, as the JSON file has them: the plan, the machine, ``copy``, and a row per kind of call
        (``calls``, then their ``average`` over a cycle of L) and per peer. Times in microseconds.

    Raises:
        ValueError: an argument of the optimizer is out of range.
        RuntimeError: the backend does not work here, or the memory does not suffice.
    """
    check(plan, peers)
    opt = plan.make()
    copied_how, copy = yardstick(plan.device)
    others: dict[str, Step] = {}
    shared = plan.parameters() if peers else []
    for name, build in PEERS.items() if peers else ():
        others[name] = build(shared).step
    others["copy"] = copy
    with watched(opt) as watch:
        timer: Timer = HostTimer(watch)
        if plan.device.type == "cuda":
            timer = DeviceTimer(watch, copy)
        samples = sample(opt.step, list(plan.kinds), others, timer, plan.rounds)
    launches = {kind: statistics.median_high(s.launches for s in samples[kind]) for kind in plan.kinds}
    if plan.device.type == "cuda":
        launches = kernels_launched(opt, list(plan.kinds), plan.device)
    return {
        "optimizer": plan.optimizer,
        "options": plan.options,
        "inner_steps": plan.length,
        "workload": plan.workload.name,
        "tensors": len(plan.workload.shapes),
        "elements": plan.workload.elements,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "device": plan.device.type,
        "backend": opt._shared.plans[0].buckets[0].backend.name,
        "rounds": plan.rounds,
        "machine": describe(plan.device),
        "date": date.today().isoformat(),
        "yardstick": copied_how,
        **figures(plan, samples, launches),
    }


def trace(plan: Plan, path: Path) -> None:
    """Write a Chrome trace of two cycles, after one to warm up, of an optimizer made for it.

    Raises:
        OSError: it cannot be written.
    """
    gc.collect()  # the optimizer that was profiled, whose memory may be needed
    opt = plan.make()
    for _ in plan.kinds:
        opt.step()
    write_trace(opt, list(plan.kinds), plan.device, path)


def sample(
    step: Step, kinds: Sequence[str], others: dict[str, Step], timer: Timer, rounds: int
) -> dict[str, list[Sample]]:
    """One sample a round of each kind of call, and of each of the others by name, after a round to warm up.

    Every round has one whole cycle of our optimizer, whose calls are told apart by their order.
    """
    ours: list[Sample] = []
    samples: dict[str, list[Sample]] = {name: [] for name in others}
    calls = [(f"call {i}", timer.timed(step, ours)) for i in range(len(kinds))]
    between = [(name, timer.timed(other, samples[name])) for name, other in others.items()]
    order = [entry for pair in zip_longest(calls, between) for entry in pair if entry is not None]
    alternate(dict(order), rounds)
    return {kind: ours[i :: len(kinds)][1:] for i, kind in enumerate(kinds)} | {
        name: values[1:] for name, values in samples.items()
    }


def figures(plan: Plan, samples: dict[str, list[Sample]], launches: dict[str, int]) -> dict[str, Any]:
    """The rows of a profile from its samples."""
    elements, kinds, length = plan.workload.elements, plan.kinds, plan.length
    copied = 2 * COPY_BYTES[plan.device.type]
    cycles = list(zip(*(samples[kind] for kind in kinds)))
    mean = {
        part: [sum(n * getattr(s, part) for n, s in zip(kinds.values(), cycle)) / length for cycle in cycles]
        for part in ("kernel", "host", "cost")
    }
    moved = {kind: plan.bytes_moved(kind) for kind in kinds}
    moved_mean = sum(n * moved[kind] for kind, n in kinds.items()) / length
    copies = [s.cost for s in samples["copy"]]

    def bandwidth(seconds: list[float], per_element: float) -> dict[str, float]:
        times = {"copy": copies, "this": seconds}
        return {
            "bytes_per_element": per_element,
            "bytes": per_element * elements,
            "gb_per_s": per_element * elements / statistics.median(seconds) / 1e9,
            "of_copy": ratio(times, "copy", "this") * per_element * elements / copied,
        }

    def row(parts: dict[str, list[float]], per_element: float) -> dict[str, float]:
        times = {f"{part}_us": 1e6 * statistics.median(parts[part]) for part in ("kernel", "host", "cost")}
        return times | bandwidth(parts["kernel"], per_element)

    calls = [
        {"kind": kind, "calls_per_cycle": n, "launches": launches[kind]}
        | row({part: [getattr(s, part) for s in samples[kind]] for part in mean}, moved[kind])
        | {"waited": statistics.mean(s.waited for s in samples[kind])}
        for kind, n in kinds.items()
    ]
    average = {"launches": sum(n * launches[kind] for kind, n in kinds.items()) / length} | row(mean, moved_mean)
    on_device = plan.device.type != "cpu"
    rows = []
    for name in PEER_OPERANDS:
        if name not in samples:
            continue
        costs = [s.cost for s in samples[name]]
        rows.append(
            {
                "name": name,
                "cost_us": 1e6 * statistics.median(costs),
                "host_us": 1e6 * statistics.median(s.host for s in samples[name]) if on_device else None,
                **bandwidth(costs, peer_bytes_moved(name, plan.dtype)),
                "ours_by_this": ratio({"ours": mean["cost"], "this": costs}, "ours", "this"),
            }
        )
    copy = {
        "bytes": copied,
        "us": 1e6 * statistics.median(copies),
        "gb_per_s": copied / statistics.median(copies) / 1e9,
    }
    return {"copy": copy, "calls": calls, "average": average, "peers": rows}
