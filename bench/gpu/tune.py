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
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from itertools import product
from pathlib import Path

import common
from common import DTYPES, OUT, ROOT, RULES, TRACEBACK, Rows, Rule, arguments, compare, copies, inner

from deeprelax import kernels
from deeprelax.kernels import Backend
from deeprelax.kernels.cuda import Cuda
from deeprelax.kernels.triton.sizes import SIZES, Sizes

ELEMENTS, ROUNDS, CALLS = 2**26, 15, 3
NOISE = 1.005  # what the fastest has to gain for the present sizes to be changed
# Macros of csrc/cuda.h and csrc/scalar.h. Four packs a thread and 460 tensors are what the kernels are built with.
VARIANTS: dict[str, str] = {
    "128 threads, 8 KiB of weights": "-DDR_CUDA_THREADS=128 -DDR_CUDA_CHUNK_BYTES=8192",
    "8 KiB of weights (two packs a thread)": "-DDR_CUDA_CHUNK_BYTES=8192",
    "32 KiB of weights (eight packs a thread)": "-DDR_CUDA_CHUNK_BYTES=32768",
    "4,000 tensors a launch": "-DDR_CUDA_TENSORS=4000",
    "plain loads and stores": "-DDR_CUDA_LOAD=__ldca -DDR_CUDA_STORE=__stwb",
    "loads streamed, stores plain": "-DDR_CUDA_STORE=__stwb",
}


def kind(rule: Rule, dtype: str) -> tuple[str, int, bool]:
    """What sizes depend on: the rule, the bytes of a weight, whether noise is drawn."""
    return rule.kernel.name, DTYPES[dtype].itemsize, rule.noise


def candidates(bytes_each: int, noise: bool) -> list[Sizes]:
    """Sizes that are tried for weights of so many bytes; without noise, ``per_thread`` is of no consequence."""
    widest = max(4, 16 // bytes_each)
    each = product({4, widest} if noise else {widest}, (2, 4, 8), (1, 2), (1, 2))
    return [Sizes(32 * warps * widest * accesses, k, warps, passes) for k, warps, accesses, passes in each]


def triton_backends(rule: Rule, dtype: str) -> dict[str, Backend]:
    """By the sizes, the present ones first."""
    from deeprelax.kernels.triton.backend import Triton

    this = kind(rule, dtype)
    return {str(sizes): Triton({**SIZES, this: sizes}) for sizes in (SIZES[this], *candidates(*this[1:]))}


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


def fastest(rows: Rows, backends: dict[str, Backend], rule: Rule, dtype: str) -> str:
    """Add a row for each that runs; the first is what is installed, and what is returned if no other gains more than
    noise."""
    contestants = {"copy": copies(ELEMENTS, CALLS)}
    for name, backend in backends.items():
        with rows.attempt(f"{name}: {rule.name}, {dtype}"):
            contestants[name] = inner(rule, backend, dtype, ELEMENTS, CALLS)
    found = compare(contestants, ROUNDS, "copy")
    for name, figures in found.items():
        rows.add(variant=name, rule=rule.name, dtype=dtype, **figures)
    reached = {name: found[name]["bandwidth_ratio"]["median"] for name in backends if name in found}
    best, present = max(reached, key=reached.__getitem__), next(iter(backends))
    return best if reached[best] >= NOISE * reached.get(present, 0.0) else present


def main() -> None:
    rows, name = Rows(OUT, "tune"), arguments(str(__doc__)).backend
    with tempfile.TemporaryDirectory() as folder:
        built = {"as built": kernels.get(name, common.GPU), **(cuda_backends(Path(folder)) if name == "cuda" else {})}
        for dtype in DTYPES:
            for rule in RULES:
                with rows.attempt(f"{rule.name}, {dtype}"):
                    best = fastest(rows, built if name == "cuda" else triton_backends(rule, dtype), rule, dtype)
                    print(f"    {kind(rule, dtype)}: {best},", flush=True)  # Triton's, of TUNED in triton/sizes.py
                gc.collect()  # optimizers and their memory are in reference cycles


if __name__ == "__main__":
    main()
