"""Bandwidth of every kernel as a fraction of a copy's in the same rounds: kinds of call, sizes, common settings.

python bench/gpu/bandwidth.py --backend cuda
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import common
import torch
from common import DTYPES, GPU, KINDS, OUT, RULES, Contestant, Rows, Rule, compare, copies, inner

from deeprelax import kernels
from deeprelax.benchmark.profiler import sample
from deeprelax.benchmark.timing import Timer
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.kernels import Backend

ELEMENTS, ROUNDS = 2**28, 15  # of the kinds of call
SIZES = tuple(2**n for n in range(26, 15, -2))  # of inner calls; the settings are compared at the first
CALLS = 3  # between two events, and more where they are short: as many as TOGETHER elements take
TOGETHER, MOST_CALLS = 2**24, 64


def measure(rows: Rows, backend: Backend, timer: Timer) -> None:
    """Each row is written as soon as it is measured, the targets' first."""
    work = {f"{r.name}, {d}": partial(kinds, rows, r, backend, d, ELEMENTS, timer) for d in DTYPES for r in RULES}
    for size in SIZES:
        work |= {f"{size}, {dtype}": partial(inner_calls, rows, backend, dtype, size, timer) for dtype in DTYPES}
    work |= {f"settings, {dtype}": partial(settings, rows, backend, dtype, SIZES[0], timer) for dtype in DTYPES}
    for what, run in work.items():
        with rows.attempt(f"{what} [{backend.name}]"):
            run()
        gc.collect()  # optimizers and their memory are in reference cycles


def kinds(rows: Rows, rule: Rule, backend: Backend, dtype: str, size: int, timer: Timer) -> None:
    """A row for each kind of call, told apart by their order in short cycles."""
    opt = replace(rule, length=len(KINDS)).make([common.parameter(size, DTYPES[dtype], rows.device)], backend)
    contestants = {"copy": copies(size, 1, rows.device)}
    for kind in KINDS:
        contestants[kind] = Contestant(opt.step, 1, bytes_moved(rule.optimizer, DTYPES[dtype], kind) * size)
    samples = sample(opt.step, KINDS, {"copy": contestants["copy"].step}, timer, ROUNDS)
    for kind in KINDS:
        found = common.figures(samples, contestants, kind, "copy")
        rows.add(rule=rule.name, backend=backend.name, dtype=dtype, elements=size, kind=kind, **found)


def inner_calls(rows: Rows, backend: Backend, dtype: str, size: int, timer: Timer) -> None:
    """A row for each rule and the copy."""
    calls = max(CALLS, min(MOST_CALLS, TOGETHER // size))
    contestants = {"copy": copies(size, calls, rows.device)}
    for rule in RULES:
        with rows.attempt(f"{rule.name} [{backend.name}], {dtype}, {size} elements"):
            contestants[rule.name] = inner(rule, backend, DTYPES[dtype], size, calls, rows.device)
    for name, found in compare(contestants, timer, ROUNDS, "copy").items():
        rows.add(rule=name, backend=backend.name, dtype=dtype, elements=size, **found)


def settings(rows: Rows, backend: Backend, dtype: str, size: int, timer: Timer) -> None:
    """A row for the inner call of Entropy-SGD, and for each setting that moves no more bytes than it."""
    plain, noisy = RULES[:2]
    calls = partial(inner, backend=backend, dtype=DTYPES[dtype], size=size, calls=CALLS, device=rows.device)
    contestants = {
        "plain": calls(plain),
        "gradient unaligned": calls(plain, unaligned="g"),
        "weight unaligned": calls(plain, unaligned="w"),
        "noise": calls(noisy),
        "noise, weight unaligned": calls(noisy, unaligned="w"),
        "weight decay": calls(plain, weight_decay=1e-4),
        "capturable, GradScaler": calls(plain, capturable=True),
    }
    for name, found in compare(contestants, timer, ROUNDS, "plain").items():
        rows.add(setting=name, backend=backend.name, dtype=dtype, **found)


def main() -> None:
    given = common.arguments(str(__doc__))
    torch.manual_seed(0)
    rows = Rows(OUT, "bandwidth", GPU)
    with rows.loaded():
        measure(rows, kernels.get(given.backend, GPU), common.timer_of(ELEMENTS, GPU))


if __name__ == "__main__":
    main()
