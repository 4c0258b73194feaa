"""Tries other constants on inner calls, next to the installed ones.

python bench/gpu/tune.py --backend triton    # what one program does; prints lines for kernels/triton/sizes.py
python bench/gpu/tune.py --backend cuda      # macros of csrc/; each variant is built first, all of them at a time
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import (
    COPY_BYTES,
    DTYPES,
    ROOT,
    RULES,
    Memory,
    Rows,
    Rule,
    arguments,
    figures,
    gpu,
    ratios,
    sample,
    timer_of,
)

from deeprelax import kernels
from deeprelax.benchmark.timing import Step, Timer
from deeprelax.kernels import Backend
from deeprelax.kernels.cuda import Cuda

ELEMENTS, ROUNDS, CALLS = 2**27, 15, 3
NOISE = 1.005  # what the fastest has to gain for the present sizes to be changed
BUILT = "as built"
# Macros of csrc/cuda.h and csrc/scalar.h. Four packs a thread and 460 tensors are what the kernels are built with.
VARIANTS: dict[str, str] = {
    "128 threads, 8 KiB of weights": "-DDR_CUDA_THREADS=128 -DDR_CUDA_CHUNK_BYTES=8192",
    "8 KiB of weights (two packs a thread)": "-DDR_CUDA_CHUNK_BYTES=8192",
    "32 KiB of weights (eight packs a thread)": "-DDR_CUDA_CHUNK_BYTES=32768",
    "4,000 tensors a launch": "-DDR_CUDA_TENSORS=4000",
    "plain loads and stores": "-DDR_CUDA_LOAD=__ldca -DDR_CUDA_STORE=__stwb",
    "loads streamed, stores plain": "-DDR_CUDA_STORE=__stwb",
}


def candidates(bytes_each: int, noise: bool) -> Iterator[Any]:
    """Sizes that are tried for weights of so many bytes; without noise, ``per_thread`` is of no consequence."""
    from deeprelax.kernels.triton.sizes import Sizes

    widest = max(4, 16 // bytes_each)
    for per_thread in sorted({4, widest}) if noise else (widest,):
        for warps in (2, 4, 8):
            for accesses in (1, 2):
                for passes in (1, 2):
                    yield Sizes(32 * warps * widest * accesses, per_thread, warps, passes)


def triton_backends(rule: Rule, dtype: str) -> dict[str, Backend]:
    """By the sizes, the present ones first."""
    from deeprelax.kernels.triton.backend import Triton
    from deeprelax.kernels.triton.sizes import SIZES

    kind = rule.kernel.name, DTYPES[dtype].itemsize, rule.noise
    every = dict.fromkeys([SIZES[kind], *candidates(kind[1], kind[2])])
    return {str(sizes): Triton({**SIZES, kind: sizes}) for sizes in every}


def cuda_backends(folder: Path, variants: dict[str, str]) -> dict[str, Backend]:
    """By the name of the variant, built by setup.py with nvcc's own way to append flags; RuntimeError if one fails."""
    running = []
    for k, flags in enumerate(variants.values()):
        out = folder / str(k)
        environment = {**os.environ, "NVCC_APPEND_FLAGS": flags, "DEEPRELAX_CPU": "0", "DEEPRELAX_CUDA": "1"}
        command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={out}", f"--build-temp={out}/temp"]
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
        )
    found: dict[str, Backend] = {}
    for k, (name, build) in enumerate(zip(variants, running)):
        if said := build.communicate()[1] if build.wait() else "":
            raise RuntimeError(f"{name}: {said[-1000:]}")
        (path,) = (folder / str(k)).glob("deeprelax/_cuda.*")
        spec = importlib.util.spec_from_file_location(f"variant{k}._cuda", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[name] = Cuda(module)
    return found


def try_all(
    rows: Rows, memory: Memory, backends: dict[str, Backend], rule: Rule, dtype: str, timer: Timer, rounds: int = ROUNDS
) -> str:
    """Add a row for each that runs; the first is what is installed. Returns the fastest, or the first if the fastest
    gains no more than noise."""
    contestants: dict[str, Step] = {"copy": memory.copies(memory.elements, CALLS)}
    for name, backend in backends.items():
        with rows.attempt(f"{name}: {rule.name}, {dtype}"):
            contestants[name] = memory.calls(backend, rule, rule.call("inner"), DTYPES[dtype], memory.elements, CALLS)
    samples = sample(contestants, timer, rounds)
    present, running = next(iter(backends)), [name for name in contestants if name != "copy"]
    moved = rule.bytes(DTYPES[dtype], "inner") * memory.elements
    for name in running:
        by_present = statistics.median(ratios(samples, name, present)) if present in running else None
        found = figures(samples, name, CALLS, moved, COPY_BYTES * memory.elements)
        rows.add(variant=name, rule=rule.name, dtype=dtype, by_present=by_present, **found)
    best = min(running, key=lambda name: statistics.median(s.cost for s in samples[name]))
    gains = present not in running or statistics.median(ratios(samples, present, best)) >= NOISE
    return best if gains else present


def line(rule: Rule, dtype: str, sizes: str) -> str:
    """Of ``TUNED`` in kernels/triton/sizes.py."""
    return f"    {(rule.kernel.name, DTYPES[dtype].itemsize, rule.noise)}: {sizes},"


def main() -> None:
    """On the current GPU."""
    given = arguments(str(__doc__))
    rows = Rows(given.out, "tune", gpu())
    with tempfile.TemporaryDirectory() as folder:
        built: dict[str, Backend] = {BUILT: kernels.get(given.backend, rows.device)}
        if given.backend == "cuda":
            built |= cuda_backends(Path(folder), VARIANTS)
        memory = Memory(ELEMENTS, rows.device)
        timer = timer_of(memory)
        for dtype in DTYPES:
            for rule in RULES:
                with rows.attempt(f"{rule.name}, {dtype}"):
                    backends = built if given.backend == "cuda" else triton_backends(rule, dtype)
                    best = try_all(rows, memory, backends, rule, dtype, timer)
                    print(line(rule, dtype, best) if given.backend == "triton" else f"{rule.name}, {dtype}: {best}")
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
