"""How close a step comes to the bandwidth of memory, and how it compares with torch's optimizers, on the CPU.

Contestants run alternately in one process, so that a busy machine slows all of them alike: read the ratios, which are
medians over rounds, not the absolute figures. The bytes are those that the update has to move (README, "Speed").
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax.benchmark.baselines import PEERS, CompiledEntropySGD, EagerEntropySGD, ForeachEntropySGD
from deeprelax.benchmark.shapes import Workload, parameters, resnet50_shapes
from deeprelax.benchmark.timing import Step, alternate
from deeprelax.benchmark.traffic import PEER_OPERANDS, bytes_moved, peer_bytes_moved
from deeprelax.environment import describe, instruction_sets
from deeprelax.files import write_json

# fp32 words that one inner call reads and writes, per element.
ENTROPY_SGD, HJ, HEAT = (bytes_moved(rule, torch.float32, "inner") // 4 for rule in ("EntropySGD", "HJ", "Heat"))
OUTER_PASS = "OuterLoop, its pass with momentum"
WORDS = {
    "EntropySGD": ENTROPY_SGD,
    "EntropySGD, noise": ENTROPY_SGD,
    "HJ": HJ,
    "Heat": HEAT,
    "EntropyAdamW": bytes_moved("EntropyAdamW", torch.float32, "inner") // 4,
    OUTER_PASS: bytes_moved("OuterLoop", torch.float32, "last", momentum=0.67) // 4,
    "C++ loop, streams of EntropySGD": ENTROPY_SGD,
    "C++ loop, streams of HJ and Heat": HJ,
    **{peer: peer_bytes_moved(peer, torch.float32) // 4 for peer in PEER_OPERANDS},
    "EntropySGD, noise, eager torch": ENTROPY_SGD,
    "EntropySGD, noise, torch._foreach": ENTROPY_SGD,
    "EntropySGD, noise, torch.compile": ENTROPY_SGD,
}
COMPILED = "EntropySGD, noise, torch.compile"

# Numbers of small tensors, and the bound on the host time of EntropySGD's and HJ's step() relative to fused SGD's.
HOST = {1: 1.5, 4: 1.5, 30: 1.2, 161: 0.8, 1000: 0.55}
# The bound on the time of a noisy EntropySGD step relative to fused AdamW's, for one large tensor and for ResNet-50's.
NOISY = {"avx512": (1.0, 0.95)}
NOISY_ELSEWHERE = (1.1, 1.1)


def workloads(preset: str) -> list[Workload]:
    """``full`` is the benchmark of record; ``quick`` is small enough to try."""
    large = 2**25 if preset == "full" else 2**22
    return [
        Workload(f"one tensor of 2^{large.bit_length() - 1}", ((large,),)),
        Workload("ResNet-50, 161 tensors", resnet50_shapes()),
        *(Workload(f"{count:,} tensors of 16" if count > 1 else "1 tensor of 16", ((16,),) * count) for count in HOST),
    ]


def is_host(workload: Workload) -> bool:
    """Whether a step is bound by the host, not by memory."""
    return workload.elements < 100_000


def contestants(shapes: Sequence[tuple[int, ...]], preset: str) -> dict[str, Step]:
    """Steps by name; each has its own parameters, with random values. The first call is not an inner one."""
    inner: dict[str, Any] = {"lr": 1e-3, "inner_steps": 10**9}
    entropy_sgd = deeprelax.EntropySGD(parameters(shapes), inner_lr=1e-3, temperature=0.0, **inner)
    hj = deeprelax.HJ(parameters(shapes), **inner)
    steps: dict[str, Step] = {
        "EntropySGD": entropy_sgd.step,
        "EntropySGD, noise": deeprelax.EntropySGD(
            parameters(shapes), inner_lr=1e-3, temperature=1e-8, seed=0, **inner
        ).step,
        "HJ": hj.step,
        "Heat": deeprelax.Heat(parameters(shapes), seed=0, **inner).step,
        "EntropyAdamW": deeprelax.EntropyAdamW(parameters(shapes), inner_steps=10**9).step,
        OUTER_PASS: outer_pass(parameters(shapes)),
        **{name: build(parameters(shapes)).step for name, build in PEERS.items()},
        "EntropySGD, noise, eager torch": EagerEntropySGD(parameters(shapes)).step,
        "EntropySGD, noise, torch._foreach": ForeachEntropySGD(parameters(shapes)).step,
    }
    if len(shapes) == 1 and shapes[0][0] > 1_000_000:
        if preset == "full":
            steps[COMPILED] = CompiledEntropySGD(parameters(shapes)).step
        steps["C++ loop, streams of EntropySGD"] = plain_loop(entropy_sgd, "z", update_w=True)
        steps["C++ loop, streams of HJ and Heat"] = plain_loop(hj, "p", update_w=False)
    return steps


def outer_pass(params: list[Tensor]) -> Step:
    """What ``OuterLoop`` adds to the inner optimizer, once in L steps."""
    return deeprelax.OuterLoop(torch.optim.SGD(params, lr=0.0), inner_steps=1, outer_lr=1e-3).outer.advance


def plain_loop(opt: torch.optim.Optimizer, average: str, update_w: bool) -> Step:
    """The yardstick in csrc/cpu_yardstick.cpp, on the optimizer's own buffers and as many threads as torch uses: where
    buffers lie relative to each other makes a difference of up to a factor of two on some processors."""
    from deeprelax.kernels.cpu import CHUNK, openmp_of_torch

    module = importlib.import_module("deeprelax._cpu")
    p = opt.param_groups[0]["params"][0]
    buffers = [p.grad, opt.state[p]["x"], opt.state[p][average], p]
    addresses, parallel = [b.data_ptr() for b in buffers], openmp_of_torch()
    return lambda: module.yardstick(addresses, update_w, p.numel(), CHUNK, torch.get_num_threads(), parallel)


def measure(
    steps: dict[str, Step], rounds: int, before: Mapping[str, Step] = MappingProxyType({})
) -> dict[str, list[float]]:
    """Seconds per call, the contestants alternating; ``before``: what some do first, which is not timed."""
    times: dict[str, list[float]] = {name: [] for name in steps}

    def timed(name: str) -> Step:
        def call() -> None:
            if name in before:
                before[name]()
            begin = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - begin)
            if name == COMPILED:  # it brings its own OpenMP runtime, whose threads spin on for 200 ms
                time.sleep(0.4)

        return call

    alternate({name: timed(name) for name in steps}, rounds)
    return {name: values[1:] for name, values in times.items()}  # the first warms up


def exchange(params: list[Tensor], others: list[Tensor]) -> Step:
    """Give the parameters the other gradients and their own in turn, as after ``zero_grad(set_to_none=True)``: new
    addresses at every step."""
    sets: list[list[Tensor | None]] = [[p.grad for p in params], [*others]]

    def other() -> None:
        sets.reverse()
        for p, grad in zip(params, sets[0]):
            p.grad = grad

    return other


def ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    """Median over rounds of a's time over b's."""
    return statistics.median(x / y for x, y in zip(times[a], times[b]))


def row(name: str, times: dict[str, list[float]], elements: int) -> dict[str, Any]:
    """One contestant's figures."""
    seconds = statistics.median(times[name])
    bytes_moved = 4 * WORDS[name]
    return {
        "name": name,
        "ns_per_parameter": seconds / elements * 1e9,
        "microseconds": seconds * 1e6,
        "gb_per_s": bytes_moved * elements / seconds / 1e9,
        "bytes_per_parameter": bytes_moved,
        "by_fused_adamw": ratio(times, name, "torch.optim.AdamW(fused=True)"),
        "by_fused_sgd": ratio(times, name, "torch.optim.SGD(fused=True)"),
    }


def targets(workload: Workload, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The promises of the README, each with what was measured."""
    sgd, adamw = "torch.optim.SGD(fused=True)", "torch.optim.AdamW(fused=True)"
    momentum = "torch.optim.SGD(momentum, fused=True)"  # moves as many bytes as HJ
    found: list[dict[str, Any]] = []

    def add(promise: str, value: float, bound: float, at_least: bool) -> None:
        met = value >= bound if at_least else value <= bound
        found.append({"promise": promise, "measured": value, "bound": bound, "at_least": at_least, "met": met})

    large = len(workload.shapes) == 1 and not is_host(workload)
    if not is_host(workload):
        noisy = NOISY.get(instruction_sets()[0], NOISY_ELSEWHERE)[0 if large else 1]
        by_adamw = ratio(times, "EntropySGD, noise", adamw)
        add(f"EntropySGD with noise: time relative to fused AdamW, {workload.name}", by_adamw, noisy, False)
        by_momentum = ratio(times, "HJ", momentum)
        add(f"HJ: time relative to fused SGD with momentum, {workload.name}", by_momentum, 1.0, False)
    if large:
        for name, loop in (
            ("EntropySGD", "C++ loop, streams of EntropySGD"),
            ("HJ", "C++ loop, streams of HJ and Heat"),
            (OUTER_PASS, "C++ loop, streams of HJ and Heat"),
        ):
            add(f"{name}: bandwidth relative to a plain C++ loop", ratio(times, loop, name), 0.9, True)
        per_byte = ratio(times, "EntropySGD", sgd) * WORDS[sgd] / WORDS["EntropySGD"]
        add("EntropySGD: time per byte relative to fused SGD", per_byte, 1.0, False)
        add("EntropyAdamW: time relative to fused AdamW", ratio(times, "EntropyAdamW", adamw), 1.0, False)
        by_eager = ratio(times, "EntropySGD, noise, eager torch", "EntropySGD, noise")
        add("EntropySGD with noise: times faster than eager torch with randn_like", by_eager, 9.0, True)
    if is_host(workload) and len(workload.shapes) in HOST:
        for name in ("EntropySGD", "HJ"):
            promise = f"{name}: host time of step() relative to fused SGD, {workload.name}"
            add(promise, ratio(times, name, sgd), HOST[len(workload.shapes)], False)
    return found


def main(preset: str, output: Path | None, threads: int | None) -> None:
    """Run the benchmark, print its tables and write its numbers: all of them, or no file.

    Args:
        preset: "quick" or "full".
        output: the JSON file; None writes none.
        threads: how many torch and the kernels use; default torch's.
    """
    from deeprelax.benchmark.report import show

    if threads is not None:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {
        "machine": describe(),
        "date": date.today().isoformat(),
        "preset": preset,
        "workloads": [],
    }
    planned = workloads(preset)
    for workload in planned:
        rounds = 24 if workload.elements > 10**6 else 200
        times = measure(contestants(workload.shapes, preset), rounds if preset == "full" else rounds // 3)
        result["workloads"].append(
            {
                **asdict(workload),
                "shapes": len(workload.shapes),
                "elements": workload.elements,
                "rounds": len(next(iter(times.values()))),
                "contestants": [row(name, times, workload.elements) for name in times],
                "targets": targets(workload, times),
            }
        )
        try:
            if output is not None and len(result["workloads"]) == len(planned):
                write_json(output, result)
        finally:
            show(result["workloads"][-1], result["machine"], preset)
    if output is not None:
        print(f"written: {output}")
