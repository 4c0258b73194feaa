"""Bandwidth of every kernel as a fraction of a copy's in the same rounds: kinds of call, sizes, common settings.

python bench/gpu/bandwidth.py --backend cuda
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import common
from common import DTYPES, KINDS, OUT, RULES, Contestant, Rows, Rule, compare, copies, inner

from deeprelax import kernels
from deeprelax.kernels import Backend

ELEMENTS, ROUNDS = 2**28, 15  # of the kinds of call
SIZES = tuple(2**n for n in range(26, 15, -2))  # of inner calls; the settings are compared at the first
CALLS = 3  # between two events, and more where they are short: as many as TOGETHER elements take
TOGETHER, MOST_CALLS = 2**24, 64


def measure(rows: Rows, backend: Backend) -> None:
    """Each row is written as soon as it is measured, the targets' first."""
    work = {f"{rule.name}, {d}": partial(kinds, rows, backend, d, rule) for d in DTYPES for rule in RULES}
    work |= {f"{size}, {d}": partial(inner_calls, rows, backend, d, size) for size in SIZES for d in DTYPES}
    work |= {f"settings, {d}": partial(settings, rows, backend, d) for d in DTYPES}
    for what, run in work.items():
        with rows.attempt(f"{what} [{backend.name}]"):
            run()
        gc.collect()  # optimizers and their memory are in reference cycles


def kinds(rows: Rows, backend: Backend, dtype: str, rule: Rule) -> None:
    """A row for each kind of call, in short cycles."""
    opt = replace(rule, length=len(KINDS)).make([common.parameter(ELEMENTS, dtype)], backend)
    calls = {kind: Contestant(opt.step, 1, rule.bytes(dtype, kind) * ELEMENTS) for kind in KINDS}
    found = compare({"copy": copies(ELEMENTS, 1), **calls}, ROUNDS, "copy", KINDS)
    for kind in KINDS:
        rows.add(rule=rule.name, backend=backend.name, dtype=dtype, elements=ELEMENTS, kind=kind, **found[kind])


def inner_calls(rows: Rows, backend: Backend, dtype: str, size: int) -> None:
    """A row for each rule and the copy."""
    calls = max(CALLS, min(MOST_CALLS, TOGETHER // size))
    contestants = {"copy": copies(size, calls)}
    for rule in RULES:
        with rows.attempt(f"{rule.name} [{backend.name}], {dtype}, {size} elements"):
            contestants[rule.name] = inner(rule, backend, dtype, size, calls)
    for name, found in compare(contestants, ROUNDS, "copy").items():
        rows.add(rule=name, backend=backend.name, dtype=dtype, elements=size, **found)


def settings(rows: Rows, backend: Backend, dtype: str) -> None:
    """A row for the inner call of Entropy-SGD, and for each setting that moves no more bytes than it."""
    plain, noisy = (partial(inner, rule, backend, dtype, SIZES[0], CALLS) for rule in RULES[:2])
    contestants = {
        "plain": plain(),
        "gradient unaligned": plain("g"),
        "weight unaligned": plain("w"),
        "noise": noisy(),
        "noise, weight unaligned": noisy("w"),
        "weight decay": plain(weight_decay=1e-4),
        "capturable, GradScaler": plain(capturable=True),
    }
    for name, found in compare(contestants, ROUNDS, "plain").items():
        rows.add(setting=name, backend=backend.name, dtype=dtype, **found)


def main() -> None:
    rows, backend = Rows(OUT, "bandwidth"), common.arguments(str(__doc__)).backend
    with rows.loaded():
        measure(rows, kernels.get(backend, common.GPU))


if __name__ == "__main__":
    main()
