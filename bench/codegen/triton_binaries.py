"""Compiles the Triton kernels ahead of time, for NVIDIA GPUs that this machine may lack, and examines the binaries.

It compiles what ``run``, ``run_ticked`` and ``tick`` would launch: the same arguments, specialised by the same code.

Run: python bench/codegen/triton_binaries.py

It writes bench/results/triton/registers.json, and tests/kernels/test_triton_ptx.py compares.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from array import array
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from cuda_binaries import Usage
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from deeprelax.kernels import RULES, ClockMemory, Flag, Hyper, Scalars, Table, Tick
from deeprelax.kernels.triton.backend import Launch, Triton
from deeprelax.optim.bucket import buffers_of, new_buffer

RECORD = Path(__file__).parents[1] / "results" / "triton" / "registers.json"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

SHARED: dict[str, float] = {"outer_step": 0.1, "outer_scale": 0.2, "lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
REALS: dict[str, dict[str, float]] = {
    "entropy_sgd": {
        **{"inner_lr": 0.1, "inv_gamma": 2.0, "pull": 0.1, "denominator": 1.1, "alpha": 0.75, "one_minus_alpha": 0.25},
        **{"noise_scale": 0.01, "inner_momentum": 0.9},
    },
    "elastic_sgd": {
        **{"inner_lr": 0.1, "inv_gamma": 2.0, "pull": 0.1, "denominator": 1.1, "noise_scale": 0.01},
        **{"inner_momentum": 0.9},
    },
    "outer": {"alpha": 0.75, "one_minus_alpha": 0.25},
    "hj": {"gamma": 0.1, "alpha": 0.75, "one_minus_alpha": 0.25},
    "heat": {"noise_scale": 0.1},
    "entropy_adamw": {
        **{"inner_lr": 0.1, "inv_gamma": 2.0, "alpha": 0.75, "one_minus_alpha": 0.25, "noise_scale": 0.01},
        **{"beta1": 0.9, "one_minus_beta1": 0.1, "beta2": 0.95, "one_minus_beta2": 0.05, "epsilon": 1e-8},
        **{"decay": 0.99, "step_size": 0.1, "inv_root_bias2": 1.1, "wide_rate": 0.1, "count": 2.0},
    },
}
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FIRST, LAST, IMPLICIT, ROUNDING = Flag.FIRST, Flag.LAST, Flag.IMPLICIT, Flag.STOCHASTIC_ROUNDING


def scalars(rule: str, flags: int = 0, **changes: float) -> Scalars:
    """Those of an inner call with every optional term, and these changes."""
    reals = {**SHARED, **REALS[rule], "inv_scale": 1.0, **changes}
    flags |= Flag.MAXIMIZE | Flag.NESTEROV
    if reals.get("noise_scale"):
        flags |= Flag.NOISE
    return Scalars(**reals, flags=int(flags), key0=1, step=2)


ENTROPY_SGD, HJ, HEAT = (scalars(rule) for rule in ("entropy_sgd", "hj", "heat"))
BOTH = Flag.PULL | Flag.AVERAGE
QUIET = scalars("entropy_sgd", noise_scale=0.0, inner_momentum=0.0)
SNOO = scalars("entropy_adamw", noise_scale=0.0, alpha=0.0, inv_gamma=0.0)

# name: (rule, scalars, dtype, compute capability)
KERNELS: dict[str, tuple[str, Scalars, torch.dtype, int]] = {
    "entropy_sgd inner": ("entropy_sgd", ENTROPY_SGD, F32, 90),
    "entropy_sgd inner, sm_80": ("entropy_sgd", ENTROPY_SGD, F32, 80),
    "entropy_sgd inner, sm_100": ("entropy_sgd", ENTROPY_SGD, F32, 100),
    "entropy_sgd without noise": ("entropy_sgd", QUIET, F32, 90),
    "entropy_sgd first": ("entropy_sgd", scalars("entropy_sgd", FIRST | Flag.FRESH_VELOCITY), F32, 90),
    "entropy_sgd last": ("entropy_sgd", scalars("entropy_sgd", LAST), F32, 90),
    "entropy_sgd implicit": ("entropy_sgd", scalars("entropy_sgd", IMPLICIT), F32, 90),
    "entropy_sgd bf16": ("entropy_sgd", ENTROPY_SGD, BF16, 90),
    "entropy_sgd bf16, sm_80": ("entropy_sgd", ENTROPY_SGD, BF16, 80),
    "entropy_sgd bf16 stochastic": ("entropy_sgd", scalars("entropy_sgd", ROUNDING), BF16, 90),
    "entropy_sgd fp16 last": ("entropy_sgd", scalars("entropy_sgd", LAST), F16, 90),
    "entropy_sgd implicit float64": ("entropy_sgd", scalars("entropy_sgd", IMPLICIT), F64, 90),
    "hj first": ("hj", scalars("hj", FIRST), F32, 90),
    "hj inner": ("hj", HJ, F32, 90),
    "hj last bf16": ("hj", scalars("hj", LAST), BF16, 90),
    "hj inner bf16, sm_100": ("hj", HJ, BF16, 100),
    "heat first": ("heat", scalars("heat", FIRST | Flag.TAKE_PARAM), F32, 80),
    "heat inner": ("heat", HEAT, F32, 90),
    "heat last bf16": ("heat", scalars("heat", LAST), BF16, 90),
    "heat inner bf16, sm_100": ("heat", HEAT, BF16, 100),
    "heat inner float64": ("heat", HEAT, F64, 90),
    "elastic_sgd inner": ("elastic_sgd", scalars("elastic_sgd"), F32, 90),
    "elastic_sgd bf16": ("elastic_sgd", scalars("elastic_sgd"), BF16, 90),
    "outer last": ("outer", scalars("outer", Flag.AVERAGE | LAST), F32, 90),
    "outer last bf16": ("outer", scalars("outer", LAST), BF16, 90),
    "entropy_adamw inner": ("entropy_adamw", scalars("entropy_adamw", BOTH), F32, 90),
    "entropy_adamw first": ("entropy_adamw", scalars("entropy_adamw", BOTH | FIRST), F32, 80),
    "entropy_adamw last": ("entropy_adamw", scalars("entropy_adamw", BOTH | LAST), F32, 90),
    "entropy_adamw without pull": ("entropy_adamw", SNOO, F32, 90),
    "entropy_adamw without pull bf16": ("entropy_adamw", SNOO, BF16, 90),
    "entropy_adamw bf16 stochastic": ("entropy_adamw", scalars("entropy_adamw", BOTH | ROUNDING), BF16, 100),
    "entropy_adamw last float64": ("entropy_adamw", scalars("entropy_adamw", BOTH | LAST), F64, 90),
}


def hyper(rule: str, flags: int = 0, **changes: float) -> Hyper:
    """Hyper-parameters with every optional term, and these changes."""
    flags |= Flag.MAXIMIZE | Flag.NESTEROV
    values = {"keep": 0.9, "momentum": 0.9, "weight_decay": 0.01}
    if rule != "heat":
        values["alpha"] = 0.75
    if rule == "hj":
        flags |= Flag.WARM_START
    if rule == "entropy_sgd":
        values |= {"temperature": 1e-3, "inner_momentum": 0.9}
    if rule == "entropy_adamw":
        values |= {"temperature": 1e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
    return Hyper(inner_steps=4, flags=int(flags), **(values | changes))


STILL = hyper("entropy_sgd", IMPLICIT, temperature=0.0)
# name: (rule, hyper-parameters, dtype, compute capability); all four places in the cycle
TICKED: dict[str, tuple[str, Hyper, torch.dtype, int]] = {
    "entropy_sgd ticked": ("entropy_sgd", hyper("entropy_sgd"), F32, 90),
    "entropy_sgd ticked bf16": ("entropy_sgd", hyper("entropy_sgd"), BF16, 90),
    "entropy_sgd ticked without noise, sm_100": ("entropy_sgd", hyper("entropy_sgd", temperature=0.0), F32, 100),
    "entropy_sgd ticked implicit float64, sm_80": ("entropy_sgd", STILL, F64, 80),
    "hj ticked, sm_120": ("hj", hyper("hj"), F32, 120),
    "hj ticked bf16, sm_80": ("hj", hyper("hj"), BF16, 80),
    "heat ticked, sm_120": ("heat", hyper("heat"), F32, 120),
    "heat ticked fp16, sm_100": ("heat", hyper("heat"), F16, 100),
    "entropy_adamw ticked": ("entropy_adamw", hyper("entropy_adamw"), F32, 90),
    "entropy_adamw ticked bf16": ("entropy_adamw", hyper("entropy_adamw", temperature=0.0, alpha=0.0), BF16, 90),
}

# name: (rule, compute capability)
TICKS: dict[str, tuple[str, int]] = {
    "tick of entropy_sgd": ("entropy_sgd", 90),
    "tick of entropy_sgd, sm_120": ("entropy_sgd", 120),
    "tick of hj, sm_80": ("hj", 80),
    "tick of heat, sm_100": ("heat", 100),
    "tick of entropy_adamw": ("entropy_adamw", 90),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    ptx: str
    cubin: bytes


def bind(launch: Launch, target: GPUTarget) -> tuple[Any, Any, Any]:
    """The steps of ``JITFunction.run`` for a target of our choice: backend, arguments, specialization."""
    backend, kernel = make_backend(target), launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(**launch.arguments, **launch.options)
    return backend, bound, specialization


def compile_ahead(launch: Launch, capability: int) -> Compiled:
    """What ``JITFunction.run`` would compile on a GPU of that compute capability."""
    target = GPUTarget("cuda", capability, 32)
    kernel = launch.kernel
    backend, bound, specialization = bind(launch, target)
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(launch.options), bound, specialization, None
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return Compiled(compiled.asm["ptx"], compiled.asm["cubin"])


def new_tick(rule: str, hyper: Hyper) -> Tick:
    """Of a group with a scaler, at its first call."""
    one = torch.ones(1)
    return Tick(RULES[rule], hyper, ClockMemory(torch.device("cpu")), one, one.double(), one, one)


def launch_of(name: str) -> tuple[Launch, int]:
    """What would be launched, and the compute capability."""
    backend = Triton()
    if name in TICKS:
        rule, capability = TICKS[name]
        return backend.launch_tick(new_tick(rule, hyper(rule))), capability
    rule, what, dtype, capability = KERNELS[name] if name in KERNELS else TICKED[name]
    weight = torch.zeros(2048, dtype=dtype)
    table = Table([weight], [0])
    wide = dtype != table.compute_dtype
    names = [*buffers_of(RULES[rule], wide, bool(what.flags & ROUNDING)), *(b for _, b in RULES[rule].optional)]
    update = backend.bind(RULES[rule], table, {name: new_buffer(name, table) for name in names})
    addresses = array("q", [weight.data_ptr()])
    if isinstance(what, Scalars):
        return update.launch(what, addresses), capability
    return update.launch_ticked(new_tick(rule, what), addresses), capability


@cache
def kernel(name: str) -> Compiled:
    """A key of ``KERNELS``, ``TICKED`` or ``TICKS``, compiled."""
    return compile_ahead(*launch_of(name))


def dump(cubin: bytes, option: str) -> str:
    """The output of the cuobjdump in Triton's package."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([CUOBJDUMP, option, path], capture_output=True, text=True, check=True).stdout


@cache
def usage(name: str) -> Usage:
    used = Usage.of(dump(kernel(name).cubin, "--dump-resource-usage"))
    assert used
    return used


def sass(name: str) -> str:
    """The kernel's machine code."""
    return dump(kernel(name).cubin, "-sass")


def record() -> dict[str, Any]:
    """Registers by kernel, with the compiler's version."""
    return {
        "triton": triton.__version__,
        "registers": {name: usage(name).registers for name in sorted([*KERNELS, *TICKED, *TICKS])},
    }


def main() -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record(), indent=1) + "\n")


if __name__ == "__main__":
    main()
