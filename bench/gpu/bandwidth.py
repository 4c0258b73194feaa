"""Bandwidth of every kernel as a fraction of a copy's in the same rounds: kinds of call, sizes, common settings.

    python bench/gpu/bandwidth.py --backend triton [--compile 0/4]

``--compile k/n`` measures nothing: it runs every n-th kernel once, which fills Triton's cache on the disk.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from common import COPY_BYTES, DTYPES, KINDS, RULES, Memory, Rows, arguments, figures, gpu, ratios, sample, timer_of

from deeprelax import kernels
from deeprelax.benchmark.timing import Step, Timer
from deeprelax.kernels import Backend

ELEMENTS, ROUNDS = 2**28, 15
SIZES = tuple(2**n for n in range(16, 29, 2))
CALLS = 3  # between two events: some 5 ms at 2^28 elements
TOGETHER, MOST_CALLS = 2**24, 128  # below that many elements a call is short: more of them, at most so many


def measure(rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int = ROUNDS) -> None:
    """The largest size first, then the others, then the extras; each row is written as soon as it is measured."""
    for dtype in DTYPES:
        for kind in ("inner", "first", "last"):
            with rows.attempt(f"{dtype}, {kind}"):
                group(rows, memory, backend, timer, rounds, dtype, kind, memory.elements)
    for size in sorted((size for size in SIZES if size < memory.elements), reverse=True):
        for dtype in DTYPES:
            with rows.attempt(f"{dtype}, {size} elements"):
                group(rows, memory, backend, timer, rounds, dtype, "inner", size)
    for dtype in DTYPES:
        with rows.attempt(f"{dtype}, extras"):
            extras(rows, memory, backend, timer, rounds, dtype)


def group(
    rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int, dtype: str, kind: str, size: int
) -> None:
    """One row a rule: calls of ``size`` elements, and copies of as many."""
    calls = max(CALLS, min(MOST_CALLS, TOGETHER // size))
    contestants: dict[str, Step] = {"copy": memory.copies(size, calls)}
    for rule in RULES:
        with rows.attempt(f"{rule.name} [{backend.name}], {dtype}, {kind}, {size} elements"):
            contestants[rule.name] = memory.calls(backend, rule, rule.call(kind), DTYPES[dtype], size, calls)
    samples = sample(contestants, timer, rounds)
    copied = COPY_BYTES * size
    common: dict[str, Any] = {"backend": backend.name, "dtype": dtype, "kind": kind, "elements": size}
    common["copy_gb_per_s"] = figures(samples, "copy", calls, copied)["gb_per_s"]
    for rule in RULES:
        if rule.name in contestants:
            each = rule.bytes(DTYPES[dtype], kind)
            rows.add(rule=rule.name, **common, bytes=each, **figures(samples, rule.name, calls, each * size, copied))


def extras(rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int, dtype: str) -> None:
    """The plain inner call of Entropy-SGD, and settings that move no more bytes than it."""
    rule, kind, size = RULES[0], DTYPES[dtype], memory.elements
    call = rule.call("inner")
    contestants = {"plain": memory.calls(backend, rule, call, kind, size, CALLS)}
    contestants["gradient unaligned"] = memory.calls(backend, rule, call, kind, size, CALLS, "g")
    contestants["weight unaligned"] = memory.calls(backend, rule, call, kind, size, CALLS, "w")
    noisy = RULES[1].call("inner")
    contestants["noise"] = memory.calls(backend, RULES[1], noisy, kind, size, CALLS)
    contestants["noise, weight unaligned"] = memory.calls(backend, RULES[1], noisy, kind, size, CALLS, "w")
    contestants["weight decay"] = memory.calls(backend, rule, rule.call("inner", 1e-4), kind, size, CALLS)
    contestants["captured, GradScaler"] = memory.captured(backend, rule, kind, CALLS)
    samples = sample(contestants, timer, rounds)
    for name in contestants:
        by_plain = statistics.median(ratios(samples, name, "plain"))
        found = figures(samples, name, CALLS, rule.bytes(kind, "inner") * size)
        rows.add(extra=name, backend=backend.name, dtype=dtype, by_plain=by_plain, **found)


def compile_share(memory: Memory, backend: Backend, share: str) -> None:
    """Run this process's share of the kernels."""
    k, _, n = share.partition("/")
    work = [(rule, rule.call(kind), dtype) for dtype in DTYPES for rule in RULES for kind in KINDS]
    work += [(RULES[0], RULES[0].call("inner", 1e-4), dtype) for dtype in DTYPES]
    for rule, call, dtype in work[int(k) :: int(n)]:
        memory.calls(backend, rule, call, DTYPES[dtype], memory.elements, 1)


def main() -> None:
    """On the current GPU."""
    given = arguments(str(__doc__), ("--compile", {"metavar": "K/N"}))
    device = gpu()
    backend = kernels.get(given.backend, device)
    if given.compile:
        compile_share(Memory(2**13, device), backend, given.compile)
        return
    torch.manual_seed(0)
    rows, memory = Rows(given.out, "bandwidth", device), Memory(ELEMENTS, device)
    with rows.loaded():
        measure(rows, memory, backend, timer_of(memory))


if __name__ == "__main__":
    main()
