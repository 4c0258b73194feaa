"""Bandwidth of every kernel as a fraction of a copy's in the same rounds: kinds of call, sizes, common settings.

python bench/gpu/bandwidth.py --backend cuda
"""

from __future__ import annotations

from typing import Any

import torch
from common import DTYPES, GPU, OUT, RULES, Contestant, Memory, Rows, Rule, arguments, compare

from deeprelax import kernels
from deeprelax.benchmark.timing import Timer
from deeprelax.kernels import Backend

ELEMENTS, ROUNDS = 2**28, 15
SIZES = tuple(2**n for n in range(26, 15, -2))  # besides ELEMENTS
CALLS = 3  # between two events: some 5 ms at 2^28 elements
TOGETHER, MOST_CALLS = 2**24, 128  # below that many elements a call is short: more of them, at most so many


def calls_of(size: int) -> int:
    """The calls of a step, of so many elements each."""
    return max(CALLS, min(MOST_CALLS, TOGETHER // size))


def measure(rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int = ROUNDS) -> None:
    """The largest size first, then the others, then the extras; each row is written as soon as it is measured."""
    work = [(dtype, kind, memory.elements) for dtype in DTYPES for kind in ("inner", "first", "last")]
    work += [(dtype, "inner", size) for size in SIZES for dtype in DTYPES]
    for dtype, kind, size in work:
        with rows.attempt(f"{dtype}, {kind}, {size} elements"):
            group(rows, memory, backend, timer, rounds, dtype, kind, size)
    for dtype in DTYPES:
        with rows.attempt(f"{dtype}, extras"):
            extras(rows, memory, backend, timer, rounds, dtype)


def group(
    rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int, dtype: str, kind: str, size: int
) -> None:
    """A row for each rule and the copy: calls of ``size`` elements."""
    contestants = {"copy": memory.copies(size, calls_of(size))}
    for rule in RULES:
        with rows.attempt(f"{rule.name} [{backend.name}], {dtype}, {kind}, {size} elements"):
            contestants[rule.name] = memory.calls(backend, rule, DTYPES[dtype], size, calls_of(size), kind=kind)
    for name, figures in compare(contestants, timer, rounds, "copy").items():
        rows.add(rule=name, backend=backend.name, dtype=dtype, kind=kind, elements=size, **figures)


def extras(rows: Rows, memory: Memory, backend: Backend, timer: Timer, rounds: int, dtype: str) -> None:
    """The plain inner call of Entropy-SGD, and settings that move no more bytes than it."""
    plain, noisy = RULES[:2]

    def calls(rule: Rule, **options: Any) -> Contestant:
        return memory.calls(backend, rule, DTYPES[dtype], memory.elements, CALLS, **options)

    contestants = {
        "plain": calls(plain),
        "gradient unaligned": calls(plain, unaligned="g"),
        "weight unaligned": calls(plain, unaligned="w"),
        "noise": calls(noisy),
        "noise, weight unaligned": calls(noisy, unaligned="w"),
        "weight decay": calls(plain, call=plain.call("inner", weight_decay=1e-4)),
        "captured, GradScaler": calls(plain, call=plain.tick(backend, memory.device)),
    }
    for name, figures in compare(contestants, timer, rounds, "plain").items():
        rows.add(extra=name, backend=backend.name, dtype=dtype, **figures)


def main() -> None:
    given = arguments(str(__doc__))
    torch.manual_seed(0)
    rows = Rows(OUT, "bandwidth", GPU)
    memory = Memory(ELEMENTS, rows.device)
    with rows.loaded():
        measure(rows, memory, kernels.get(given.backend, rows.device), memory.timer())


if __name__ == "__main__":
    main()
