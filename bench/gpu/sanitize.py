"""A small run of every rule, dtype, kind of call and path of the kernels, under compute-sanitizer.

python bench/gpu/sanitize.py --backend cuda --tool memcheck     # without --tool it only runs
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from array import array
from pathlib import Path

import torch
from common import KINDS, RULES, Rows, Rule, arguments, gpu
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.kernels import Backend, Flag, Scalars, Table
from deeprelax.optim.bucket import buffers_of, new_buffer

# What is launched on: Triton compiles a kernel for each, so that it gets fewer.
DTYPES = {
    "cuda": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16),
}
SETTINGS = {"cuda": ((0.0, 0), (0.0, 1), (0.01, 0), (0.01, 3)), "triton": ((0.0, 0), (0.0, 1))}
FOUND_ERRORS = 86  # the sanitizer's exit status, set by an option


def at_offset(size: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random elements at the end of their allocation, so that accesses past them are detected."""
    return torch.randn(size + offset, device=device).to(dtype)[offset:]


def run(
    backend: Backend, rule: Rule, call: Scalars, chunk: int, dtype: torch.dtype, offset: int, device: torch.device
) -> None:
    """One call on weights and gradients that begin ``offset`` elements into their memory; one has no gradient."""
    sizes = [0, 1, 5, 64, chunk, chunk + 3, 2 * chunk - 1]  # tails of elements, of packs, several blocks, nothing
    weights = [at_offset(size, offset, dtype, device) for size in sizes]
    grads: list[Tensor | None] = [at_offset(size, offset, dtype, device) for size in sizes]
    grads[3] = None
    # A start in mid-call of Philox takes every element by itself.
    table = Table(weights, list(range(len(weights))), starts=[0, 1, 0, 4, 0, 2, 8])
    rounded = bool(call.flags & Flag.STOCHASTIC_ROUNDING)
    buffers = {name: new_buffer(name, table) for name in buffers_of(rule.kernel, table.compute_dtype != dtype, rounded)}
    addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
    backend.bind(rule.kernel, table, buffers).run(call, grads, addresses)


def everything(backend: Backend, chunk: int, device: torch.device) -> int:
    """All of it; returns the number of calls."""
    count = 0
    for dtype in DTYPES[backend.name]:
        for rule in RULES:
            for kind in KINDS:
                for weight_decay, offset in SETTINGS[backend.name]:
                    rounded = dtype == torch.bfloat16 and rule.kernel.keeps_y
                    for flags in (0, int(Flag.STOCHASTIC_ROUNDING))[: 1 + rounded]:
                        run(backend, rule, rule.call(kind, weight_decay, flags), chunk, dtype, offset, device)
                        count += 1
    return count


def captured_steps(backend: str, device: torch.device) -> int:
    """Two cycles of every capturable optimizer; the gradients of the second step overflow."""
    names = ("EntropySGD", "HJ", "Heat", "EntropyAdamW")
    for name in names:
        params = [torch.nn.Parameter(torch.randn(size, device=device)) for size in (5, 4100)]
        opt = getattr(deeprelax, name)(params, inner_steps=2, capturable=True, backend=backend)
        for step in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.grad_scale = torch.full((), 4.0, device=device)
            opt.found_inf = torch.full((), float(step == 1), device=device)
            opt.step()
    return 4 * len(names)


def program() -> str | None:
    """compute-sanitizer on the PATH or in CUDA's folder."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places = [home / sub / "compute-sanitizer" for home in homes for sub in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next((str(place) for place in places if place.is_file()), None)


def verdict(status: int, printed: str) -> tuple[str, str]:
    """The verdict on a run that ended by itself ("passed", "failed" or "not supported"), and its message."""
    last = [line for line in printed.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    if not last and "Device not supported" in printed:  # under gVisor, for example: nothing is seen then
        return "not supported", "compute-sanitizer says: Device not supported"
    said = last[-1].strip("= ") if last else f"exit status {status}: {printed[-500:]}"
    return "passed" if status == 0 else "failed", said


def main() -> None:
    """Run on the current GPU, with ``--tool`` under that tool of the sanitizer."""
    given = arguments(str(__doc__), ("--tool", {"choices": ("memcheck", "racecheck")}))
    device = gpu()
    if not given.tool:
        backend = kernels.get(given.backend, device)
        chunk = importlib.import_module("deeprelax._cuda").chunk if given.backend == "cuda" else 2048
        count = everything(backend, chunk, device) + captured_steps(given.backend, device)
        torch.cuda.synchronize()
        print(f"{count} calls")
        return
    rows, found = Rows(given.out, "sanitizer", device), program()
    result = "not installed", "looked for compute-sanitizer on the PATH and in CUDA_HOME"
    if found:
        # Calls that fail inside torch or the driver are no fault of these kernels. Every tensor gets its own memory:
        # torch's pool would hide what reaches past the end of one.
        options = [f"--error-exitcode={FOUND_ERRORS}", "--report-api-errors=no"]
        command = [found, "--tool", given.tool, *options, sys.executable, __file__, "--backend", given.backend]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        (given.out / f"{given.tool}-{given.backend}.txt").write_text(done.stdout)
        result = verdict(done.returncode, done.stdout)
    rows.add(tool=given.tool, backend=given.backend, verdict=result[0], said=result[1])


if __name__ == "__main__":
    main()
