"""How near a step comes to what memory allows, and how it compares: DESIGN section 7 on the CPU.

Contestants run alternately in one process, so that a busy machine slows all of them alike: read the ratios, which are
medians over rounds, not the absolute figures. The bytes are those that the update has to move (README, "Speed").
"""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.contestants import EagerEntropySGD, ForeachEntropySGD, compiled_entropy_sgd

# fp32 words that one inner call reads and writes, per element.
WORDS = {
    "EntropySGD": 6,
    "EntropySGD, noise": 6,
    "HJ": 5,
    "Heat": 5,
    "C++ loop, streams of EntropySGD": 6,
    "C++ loop, streams of HJ and Heat": 5,
    "torch.optim.SGD(fused=True)": 3,
    "torch.optim.SGD(momentum, fused=True)": 5,
    "torch.optim.AdamW(fused=True)": 7,
    "EntropySGD, noise, eager torch": 6,
    "EntropySGD, noise, torch._foreach": 6,
    "EntropySGD, noise, torch.compile": 6,
}


@dataclass(frozen=True)
class Workload:
    """A list of parameter shapes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)


def resnet50_shapes() -> tuple[tuple[int, ...], ...]:
    """The 161 parameters of ResNet-50 (He et al. 2016, table 1; batch norm with weight and bias)."""
    shapes: list[tuple[int, ...]] = []

    def convolution(out: int, into: int, size: int) -> None:
        shapes.extend([(out, into, size, size), (out,), (out,)])

    convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    shapes.extend([(1000, 2048), (1000,)])
    return tuple(shapes)


def workloads(preset: str) -> list[Workload]:
    """``full`` is the benchmark of record; ``quick`` is small enough to try."""
    large = 2**25 if preset == "full" else 2**22
    return [
        Workload(f"one tensor of 2^{large.bit_length() - 1}", ((large,),)),
        Workload("ResNet-50, 161 tensors", resnet50_shapes()),
        Workload("1,000 tensors of 16", ((16,),) * 1000),
    ]


Step = Callable[[], object]


def contestants(shapes: Sequence[tuple[int, ...]], preset: str) -> dict[str, Step]:
    """Steps by name, all past their first call; each has parameters of its own, with random values."""

    def parameters() -> list[Tensor]:
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return list(params)

    def relaxed(optimizer: type[deeprelax.HJ | deeprelax.EntropySGD | deeprelax.Heat], **options: Any) -> Step:
        opt = optimizer(parameters(), lr=1e-3, inner_steps=10**9, **options)
        opt.step()
        return opt.step

    steps: dict[str, Step] = {
        "EntropySGD": relaxed(deeprelax.EntropySGD, inner_lr=1e-3, temperature=0.0),
        "EntropySGD, noise": relaxed(deeprelax.EntropySGD, inner_lr=1e-3, temperature=1e-8, seed=0),
        "HJ": relaxed(deeprelax.HJ),
        "Heat": relaxed(deeprelax.Heat, seed=0),
        "torch.optim.SGD(fused=True)": torch.optim.SGD(parameters(), lr=1e-6, fused=True).step,
        "torch.optim.SGD(momentum, fused=True)": torch.optim.SGD(parameters(), lr=1e-6, momentum=0.9, fused=True).step,
        "torch.optim.AdamW(fused=True)": torch.optim.AdamW(parameters(), lr=1e-6, fused=True).step,
        "EntropySGD, noise, eager torch": EagerEntropySGD(parameters()).step,
        "EntropySGD, noise, torch._foreach": ForeachEntropySGD(parameters()).step,
    }
    if preset == "full" and len(shapes) < 500:
        steps["EntropySGD, noise, torch.compile"] = compiled_entropy_sgd(parameters()).step
    if len(shapes) == 1:
        steps["C++ loop, streams of EntropySGD"] = plain_loop(shapes[0], update_w=True)
        steps["C++ loop, streams of HJ and Heat"] = plain_loop(shapes[0], update_w=False)
    return steps


def plain_loop(shape: tuple[int, ...], update_w: bool) -> Step:
    """The yardstick in csrc/cpu_stream.cpp on as many threads as torch uses."""
    from deeprelax.kernels.native import CHUNK, openmp_of_torch

    module = importlib.import_module("deeprelax._cpu")
    buffers = [torch.randn(shape) for _ in range(4)]
    addresses, parallel = [b.data_ptr() for b in buffers], openmp_of_torch()

    def step() -> None:
        assert buffers  # keeps them alive
        module.stream(addresses, update_w, buffers[0].numel(), CHUNK, torch.get_num_threads(), parallel)

    return step


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds per call, contestants alternating, in rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
    return times


def ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    """Median over rounds of a's time by b's."""
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
    sgd, adamw = "torch.optim.SGD(momentum, fused=True)", "torch.optim.AdamW(fused=True)"
    found: list[dict[str, Any]] = []

    def add(promise: str, value: float, bound: float, at_least: bool) -> None:
        met = value >= bound if at_least else value <= bound
        found.append({"promise": promise, "measured": value, "bound": bound, "at_least": at_least, "met": met})

    if len(workload.shapes) == 1:
        for name, loop in (
            ("EntropySGD", "C++ loop, streams of EntropySGD"),
            ("HJ", "C++ loop, streams of HJ and Heat"),
        ):
            add(f"{name}: bandwidth by that of a plain C++ loop", ratio(times, loop, name), 0.9, True)
            per_byte = ratio(times, name, sgd) * WORDS[sgd] / WORDS[name]
            add(f"{name}: time per byte by that of fused SGD with momentum", per_byte, 1.0, False)
        add(
            "EntropySGD with noise: times faster than eager torch with randn_like",
            ratio(times, "EntropySGD, noise, eager torch", "EntropySGD, noise"),
            9.0,
            True,
        )
        add("EntropySGD with noise: time by that of fused AdamW", ratio(times, "EntropySGD, noise", adamw), 1.5, False)
    if workload.elements < 100_000:
        for name in ("EntropySGD", "HJ"):
            host = ratio(times, name, "torch.optim.SGD(fused=True)")
            add(f"{name}: host time of step() by that of fused SGD", host, 1.0, False)
    return found


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    backend = kernels.get("auto", torch.device("cpu"))
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": getattr(backend, "instruction_set", backend.name),
        "torch": torch.__version__,
        "deeprelax": deeprelax.__version__,
        "date": date.today().isoformat(),
    }


def main(preset: str, output: Path | None, threads: int | None) -> None:
    """Run the benchmark, print its tables and write ``cpu.json``.

    Args:
        preset: "quick" or "full".
        output: folder for ``cpu.json``; None writes nothing.
        threads: how many torch and the kernels use; default torch's.
    """
    from deeprelax.benchmark_report import show

    if threads is not None:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {"environment": environment(), "preset": preset, "workloads": []}
    for workload in workloads(preset):
        rounds = 15 if workload.elements > 10**6 else 200
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
        show(result["workloads"][-1], result["environment"])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "cpu.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")
