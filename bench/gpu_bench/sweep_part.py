"""Part ``sweep``: the CUDA kernels built with other constants beside those that are installed, and Triton's tuner."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deeprelax.kernels import Backend
from gpu_bench.calls import BF16, FP32, RULES, Memory
from gpu_bench.context import Context
from gpu_bench.jobs import ROOT, Job
from gpu_bench.kernels_part import CALLS
from gpu_bench.timing import Contestant, measure, ratios, spread

BUILT = "as built"
PRINTED = 4000  # characters of the tuner's


def run(
    context: Context, variants: Iterable[tuple[str, Backend]], tuner: Path = ROOT / "bench" / "tune_triton.py"
) -> None:
    """Inner calls of every rule at the full size, all variants in one rotation."""
    results = context.record.results("sweep")
    results["rows"] = []
    backends: dict[str, Backend] = {BUILT: context.backends["cuda"]}
    with context.record.attempt("sweep", "building the variants"):
        for name, backend in variants:
            backends[name] = backend
    memory = Memory(context.scale.elements, context.device)
    for configuration in (FP32, BF16):
        for rule in RULES:
            call = rule.call("inner")
            contestants: dict[str, Contestant] = {
                name: memory.contestant(backend, rule, call, configuration.dtype, memory.elements, CALLS)
                for name, backend in backends.items()
            }
            with context.record.attempt("sweep", f"{rule.name}, {configuration.name}"):
                samples = measure(contestants, context.timer, context.scale.rounds)
                for name in contestants:
                    row: dict[str, Any] = {"variant": name, "rule": rule.name, "configuration": configuration.name}
                    row["us"] = spread([1e6 * s.seconds for s in samples[name]])
                    row["by_built"] = statistics.median(ratios(samples, name, BUILT))
                    results["rows"].append(row)
    context.record.save()
    if not tuner.exists():
        results["left_out"] = f"{tuner.name}: there is none"
    elif context.budget.left() < 30:
        results["left_out"] = f"{tuner.name}: {context.budget.left():.0f} s were left"
    else:
        results["triton"] = tune(tuner, context.budget.left() - 10)


def tune(tuner: Path, seconds: float) -> str:
    """The end of what the tuner prints within so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job([sys.executable, str(tuner)], Path(folder) / "tuner.txt")
        status = job.wait(time.monotonic() + seconds)
        end = "stopped at its limit of time" if status is None else f"exit status {status}"
        return f"{job.printed()[-PRINTED:]}\n({end})"
