"""Part ``sweep``: the CUDA kernels built with other constants beside those that are installed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from deeprelax.kernels import Backend
from gpu_bench.calls import BF16, FP32, RULES, Configuration, Memory, Rule
from gpu_bench.context import Context
from gpu_bench.kernels_part import CALLS
from gpu_bench.timing import Contestant, measure, ratios, spread

BUILT = "as built"


def run(context: Context, variants: Iterable[tuple[str, Callable[[], Backend]]]) -> None:
    """Inner calls of every rule at the full size, all variants in one rotation; one that does not work is noted, and
    the others are measured."""
    results = context.record.results("sweep")
    results["rows"] = []
    backends: dict[str, Backend] = {BUILT: context.backends["cuda"]}
    for name, load in variants:
        with context.record.attempt("sweep", f"{name}: building it"):
            backends[name] = load()
    memory = Memory(context.scale.elements, context.device)
    for configuration in (FP32, BF16):
        for rule in RULES:
            with context.record.attempt("sweep", f"{rule.name}, {configuration.name}"):
                results["rows"] += group(context, memory, backends, rule, configuration)
            context.record.save()


def group(
    context: Context, memory: Memory, backends: dict[str, Backend], rule: Rule, configuration: Configuration
) -> list[dict[str, Any]]:
    """One row per variant that runs."""
    call = rule.call("inner")
    contestants: dict[str, Contestant] = {}
    for name, backend in backends.items():
        with context.record.attempt("sweep", f"{name}: {rule.name}, {configuration.name}"):
            contestant = memory.contestant(backend, rule, call, configuration.dtype, memory.elements, CALLS)
            contestant.enqueue()  # what does not run at all must not take the others with it
            context.synchronize()
            contestants[name] = contestant
    samples = measure(contestants, context.timer, context.scale.rounds)
    common = {"rule": rule.name, "configuration": configuration.name}
    return [
        {
            "variant": name,
            **common,
            "us": spread([1e6 * s.seconds for s in samples[name]]),
            "by_built": statistics.median(ratios(samples, name, BUILT)),
        }
        for name in contestants
    ]
