"""Tries other constants on inner calls, next to the installed ones.

python bench/gpu/tune.py --backend triton    # what one program does; prints lines for kernels/triton/sizes.py
python bench/gpu/tune.py --backend cuda      # macros of csrc/; each variant is built first, all of them at a time
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from itertools import product
from pathlib import Path
from typing import Any

import common
from common import DTYPES, GPU, OUT, ROOT, RULES, TRACEBACK, Rows, Rule, arguments, compare, copies, inner

from deeprelax import kernels
from deeprelax.benchmark.timing import Timer
from deeprelax.kernels import Backend
from deeprelax.kernels.cuda import Cuda

ELEMENTS, ROUNDS, CALLS = 2**26, 15, 3
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
    per_threads = sorted({4, widest}) if noise else (widest,)
    for per_thread, warps, accesses, passes in product(per_threads, (2, 4, 8), (1, 2), (1, 2)):
        yield Sizes(32 * warps * widest * accesses, per_thread, warps, passes)


def triton_backends(rule: Rule, dtype: str) -> dict[str, Backend]:
    """By the sizes, the present ones first."""
    from deeprelax.kernels.triton.backend import Triton
    from deeprelax.kernels.triton.sizes import SIZES

    kind = rule.kernel.name, DTYPES[dtype].itemsize, rule.noise
    every = dict.fromkeys([SIZES[kind], *candidates(kind[1], kind[2])])
    return {str(sizes): Triton({**SIZES, kind: sizes}) for sizes in every}


def cuda_backend(out: Path, flags: str) -> Backend:
    """The CUDA kernels with these flags, built by setup.py in a folder whose name becomes part of the module's."""
    environment = {**os.environ, "NVCC_APPEND_FLAGS": flags, "DEEPRELAX_CPU": "0", "DEEPRELAX_CUDA": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={out}", f"--build-temp={out}/temp"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{flags}: {done.stderr[-TRACEBACK:]}")
    (path,) = out.glob("deeprelax/_cuda.*")
    loader = ExtensionFileLoader(f"{out.name}._cuda", str(path))
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=loader.path))
    loader.exec_module(module)
    return Cuda(module)


def cuda_backends(folder: Path) -> dict[str, Backend]:
    """By the name of the variant; all are built at a time."""
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        outs = [folder / f"variant{k}" for k in range(len(VARIANTS))]
        return dict(zip(VARIANTS, pool.map(cuda_backend, outs, VARIANTS.values())))


def try_all(rows: Rows, backends: dict[str, Backend], rule: Rule, dtype: str, size: int, timer: Timer) -> str:
    """Add a row for each that runs; the first is what is installed. Returns the fastest, or the first if the fastest
    gains no more than noise."""
    contestants = {"copy": copies(size, CALLS, rows.device)}
    for name, backend in backends.items():
        with rows.attempt(f"{name}: {rule.name}, {dtype}"):
            contestants[name] = inner(rule, backend, DTYPES[dtype], size, CALLS, rows.device)
    found = compare(contestants, timer, ROUNDS, "copy")
    for name, figures in found.items():
        rows.add(variant=name, rule=rule.name, dtype=dtype, **figures)
    reached = {name: found[name]["bandwidth_ratio"]["median"] for name in backends if name in found}
    best, present = max(reached, key=reached.__getitem__), next(iter(backends))
    return best if reached[best] >= NOISE * reached.get(present, 0.0) else present


def line(rule: Rule, dtype: str, sizes: str) -> str:
    """Of ``TUNED`` in kernels/triton/sizes.py."""
    return f"    {(rule.kernel.name, DTYPES[dtype].itemsize, rule.noise)}: {sizes},"


def main() -> None:
    given = arguments(str(__doc__))
    rows = Rows(OUT, "tune", GPU)
    with tempfile.TemporaryDirectory() as folder:
        built: dict[str, Backend] = {BUILT: kernels.get(given.backend, GPU)}
        if given.backend == "cuda":
            built |= cuda_backends(Path(folder))
        timer = common.timer_of(ELEMENTS, GPU)
        for dtype in DTYPES:
            for rule in RULES:
                with rows.attempt(f"{rule.name}, {dtype}"):
                    backends = built if given.backend == "cuda" else triton_backends(rule, dtype)
                    best = try_all(rows, backends, rule, dtype, ELEMENTS, timer)
                    print(line(rule, dtype, best) if given.backend == "triton" else f"{rule.name}, {dtype}: {best}")
                gc.collect()  # optimizers and their memory are in reference cycles


if __name__ == "__main__":
    main()
