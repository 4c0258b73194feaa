"""Part ``kernels``: bandwidth of every kernel, as a fraction of a copy's in the same rounds."""

from __future__ import annotations

import math
import statistics
from typing import Any

from gpu_bench.calls import (
    BF16,
    CONFIGURATIONS,
    COPY_BYTES,
    EXTRAS,
    FP32,
    KINDS,
    PLAIN_CALL,
    RULES,
    Configuration,
    Memory,
    Rule,
)
from gpu_bench.context import Context
from gpu_bench.timing import Contestant, figures, measure, ratios

EXTRA_CONFIGURATIONS, EXTRA_RULE = (FP32, BF16), RULES[0]  # Entropy-SGD without noise

CALLS = 3  # between two events: some 5 ms at 2^28 elements

# Below 2^24 elements a call is short: so many more of them between two events.
TOGETHER, MOST_CALLS = 2**24, 128


def run(context: Context) -> None:
    """Calls of every kind at the full size, their means over a cycle, inner calls over sizes, then the extras."""
    results = context.record.results("kernels")
    results.update(elements=context.scale.elements, rows=[], cycles=[], sizes=[], extras=[])
    memory = Memory(context.scale.elements, context.device)
    for configuration in CONFIGURATIONS:
        for kind in ("inner", "first", "last"):
            with context.record.attempt("kernels", f"{configuration.name}, {kind}"):
                results["rows"] += group(context, memory, configuration, kind)
            context.record.save()
        results["cycles"] += cycles(results["rows"], configuration)
        context.record.save()
    for size in context.scale.sizes:
        if context.budget.left() < 20:
            results["left_out"] = [f"{', '.join(context.backends)}: sizes from {size} on"]
            break
        with context.record.attempt("kernels", f"size {size}"):
            for configuration in (FP32, BF16):
                results["sizes"] += over_sizes(context, memory, configuration, size)
        context.record.save()
    # That of the largest size: a small copy's may be the cache's.
    if copies := {r["elements"]: r["gb_per_s"] for r in results["sizes"] if r["name"] == "copy"}:
        results["copy_gb_per_s"] = copies[max(copies)]
    for configuration in EXTRA_CONFIGURATIONS:
        if context.budget.left() < 20:
            what = f"{', '.join(context.backends)}: extras on {configuration.name}"
            results.setdefault("left_out", []).append(what)
            break
        with context.record.attempt("kernels", f"extras on {configuration.name}"):
            results["extras"] += extras(context, memory, configuration)
        context.record.save()


def label(backend: str, rule: Rule) -> str:
    return f"{rule.name} [{backend}]"


def group(context: Context, memory: Memory, configuration: Configuration, kind: str) -> list[dict[str, Any]]:
    """One row per backend and rule."""
    size = context.scale.elements
    contestants = {"copy": memory.copies(size, CALLS)}
    entries: list[tuple[str, Rule]] = []
    for backend_name, backend in context.backends.items():
        for rule in RULES:
            with context.record.attempt("kernels", f"{label(backend_name, rule)}, {configuration.name}, {kind}"):
                call = rule.call(kind, configuration.weight_decay)
                contestant = memory.contestant(backend, rule, call, configuration.dtype, size, CALLS)
                contestant.enqueue()  # what does not run at all must not take the others with it
                context.synchronize()
                contestants[label(backend_name, rule)] = contestant
                entries.append((backend_name, rule))
    samples = measure(contestants, context.timer, context.scale.rounds)
    rows = []
    for backend_name, rule in entries:
        per_element = configuration.bytes(rule, kind)
        rows.append(
            {
                "backend": backend_name,
                "rule": rule.name,
                "configuration": configuration.name,
                "kind": kind,
                "bytes_per_element": per_element,
                **figures(samples, label(backend_name, rule), per_element * size, COPY_BYTES * size),
            }
        )
    copied = {"gb_per_s": figures(samples, "copy", COPY_BYTES * size, COPY_BYTES * size)["gb_per_s"]}
    return [{**row, "copy_gb_per_s": copied["gb_per_s"]} for row in rows]


def cycles(rows: list[dict[str, Any]], configuration: Configuration) -> list[dict[str, Any]]:
    """Bandwidth over a whole cycle of L, where all kinds of call were measured: bytes of the cycle by its time."""
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        for rule in RULES:
            key = (backend, rule.name, configuration.name)
            by_kind = {r["kind"]: r for r in rows if (r["backend"], r["rule"], r["configuration"]) == key}
            if set(by_kind) != set(KINDS):
                continue
            moved = rule.per_cycle({kind: r["bytes_per_element"] for kind, r in by_kind.items()})
            # Each kind's time in copies of its own rounds: bytes by that is the fraction.
            in_copies = {kind: r["bytes_per_element"] / r["of_copy"]["median"] for kind, r in by_kind.items()}
            names = {"backend": backend, "rule": rule.name, "configuration": configuration.name}
            us = rule.per_cycle({kind: r["us"]["median"] for kind, r in by_kind.items()})
            fraction = moved / rule.per_cycle(in_copies)
            found.append({**names, "us": us, "bytes_per_element": moved, "of_copy": fraction})
    return found


def calls_together(size: int) -> int:
    """Calls between two events."""
    return max(CALLS, min(MOST_CALLS, TOGETHER // size))


def over_sizes(context: Context, memory: Memory, configuration: Configuration, size: int) -> list[dict[str, Any]]:
    """Inner calls of ``size`` elements, on so many slices that the cache does not hold them, and copies of as many
    fp32 elements."""
    calls = calls_together(size)
    contestants: dict[str, Contestant] = {"copy": memory.copies(size, calls)}
    moved = {"copy": COPY_BYTES * size}
    for backend_name, backend in context.backends.items():
        for rule in RULES:
            name = label(backend_name, rule)
            with context.record.attempt("kernels", f"{name}, {configuration.name}, {size} elements"):
                call = rule.call("inner", configuration.weight_decay)
                contestant = memory.contestant(backend, rule, call, configuration.dtype, size, calls)
                for _ in range(math.ceil(memory.slices(size, calls) / calls)):
                    contestant.enqueue()  # every slice once: its table is uploaded then
                context.synchronize()
                contestants[name] = contestant
                moved[name] = configuration.bytes(rule, "inner") * size
    samples = measure(contestants, context.timer, context.scale.rounds)
    rows = [
        {
            "name": name,
            "configuration": configuration.name,
            "elements": size,
            **figures(samples, name, moved[name], COPY_BYTES * size),
        }
        for name in contestants
    ]
    return rows


def extras(context: Context, memory: Memory, configuration: Configuration) -> list[dict[str, Any]]:
    """One row per backend and extra: no target is set for them, but each moves the bytes of the plain call."""
    size = context.scale.elements
    contestants = {"copy": memory.copies(size, CALLS)}
    entries: list[tuple[str, str]] = []
    for backend_name, backend in context.backends.items():
        for extra in EXTRAS:
            name = f"{extra.name} [{backend_name}]"
            with context.record.attempt("kernels", f"{name}, {configuration.name}"):
                contestant = memory.repeated(
                    [memory.extra(backend, EXTRA_RULE, extra, configuration.dtype)], size, CALLS
                )
                contestant.enqueue()
                context.synchronize()
                contestants[name] = contestant
                entries.append((backend_name, extra.name))
    samples = measure(contestants, context.timer, context.scale.rounds)
    moved = configuration.bytes(EXTRA_RULE, "inner") * size
    rows = []
    for backend_name, extra_name in entries:
        name, plain = f"{extra_name} [{backend_name}]", f"{PLAIN_CALL.name} [{backend_name}]"
        by_plain = statistics.median(ratios(samples, name, plain)) if plain in samples else None
        names = {"backend": backend_name, "extra": extra_name, "configuration": configuration.name}
        rows.append({**names, "by_plain": by_plain, **figures(samples, name, moved, COPY_BYTES * size)})
    return rows


def compile_ahead(context: Context, shard: int, of: int) -> None:
    """Run what this part will run once, on few elements: the compiler leaves its results on the disk."""
    memory = Memory(2**13, context.device)
    work = [(b, r, c, k) for b in context.backends.values() for c in CONFIGURATIONS for r in RULES for k in KINDS]
    for backend, rule, configuration, kind in work[shard::of]:
        call = rule.call(kind, configuration.weight_decay)
        memory.contestant(backend, rule, call, configuration.dtype, memory.elements, 1).enqueue()
    more = [(b, e, c) for b in context.backends.values() for c in EXTRA_CONFIGURATIONS for e in EXTRAS]
    for backend, extra, configuration in more[shard::of]:
        memory.extra(backend, EXTRA_RULE, extra, configuration.dtype)()
    context.synchronize()
