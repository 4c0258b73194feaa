"""Part ``sweep``: Triton's tuner, and the CUDA kernels built with other constants beside those that are installed."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deeprelax import kernels
from deeprelax.kernels import Backend
from gpu_bench.calls import BF16, FP32, RULES, Memory
from gpu_bench.context import Context
from gpu_bench.jobs import ROOT, Job
from gpu_bench.kernels_part import CALLS
from gpu_bench.timing import Contestant, measure, ratios, spread

BUILT = "as built"
PRINTED = 4000  # characters of the tuner's
LEAST = 20.0  # seconds in which the tuner gets somewhere


def run(context: Context, variants: Iterable[tuple[str, Backend]]) -> None:
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


def tune_triton(context: Context, leave: float, tuner: Path = ROOT / "bench" / "tune_triton.py") -> None:
    """Run the tuner, which writes triton_sizes.json into the folder of the results, kind by kind.

    Args:
        context: its budget is the tuner's limit.
        leave: seconds of it that are not the tuner's.
        tuner: the script.
    """
    results = context.record.results("sweep")
    seconds = context.budget.left() - leave
    if "triton" not in context.backends:
        results["left_out"] = f"{tuner.name}: the triton backend does not work here: {kernels.why_not('triton')}"
    elif seconds < LEAST:
        results["left_out"] = f"{tuner.name}: {seconds:.0f} s were left, and it needs {LEAST:.0f} s"
    else:
        results["triton"] = tune(tuner, seconds, context.record.folder / "triton_sizes.json")
        context.record.save()


def tune(tuner: Path, seconds: float, out: Path) -> str:
    """The end of what the tuner prints within so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job([sys.executable, str(tuner), "--out", str(out.resolve())], Path(folder) / "tuner.txt")
        status = job.wait(time.monotonic() + seconds)
        end = "stopped at its limit of time" if status is None else f"exit status {status}"
        return f"{job.printed()[-PRINTED:]}\n({end})"
