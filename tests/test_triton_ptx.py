"""What the Triton kernels compile to, ahead of time, for NVIDIA GPUs that need not be there.

Compiled is what ``Triton.run``, ``run_ticked`` and ``tick`` would launch: the same arguments, specialised by the same
code.
"""

import os
import re
import subprocess
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprelax.kernels import Call, Clock, EntropySGDCall, HeatCall, HJCall, Outer, Stream, Table, Tick
from deeprelax.kernels.settings import AnySettings, EntropySGDSettings, HeatSettings, HJSettings

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton's compiler, and TRITON_INTERPRET=1 is set", allow_module_level=True)

from ahead import bind  # noqa: E402
from ptx import conditions  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from deeprelax.kernels.triton_backend import Launch, Triton  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
OUTER = Outer(step=0.1, scale=0.2, lr=0.3, momentum=0.9, nesterov=True)
ENTROPY_SGD = EntropySGDCall(
    first=False,
    last=False,
    inner_lr=0.1,
    inv_gamma=2.0,
    pull=0.1,
    denominator=1.1,
    alpha=0.75,
    one_minus_alpha=0.25,
    noise_scale=0.01,
    weight_decay=0.01,
    maximize=True,
    implicit=False,
    inner_momentum=0.9,
    inner_nesterov=True,
    fresh_velocity=False,
    stochastic_rounding=False,
    outer=OUTER,
    stream=Stream(1, 2),
)
HJ = HJCall(False, False, False, 0.1, 0.75, 0.25, 0.01, True, False, OUTER)
HEAT = HeatCall(False, False, False, 0.1, 0.01, True, OUTER, Stream(1, 2))
BUFFERS = {call.rule: call.buffers for call in (EntropySGDCall, HJCall, HeatCall)}
FIRST, LAST = {"first": True}, {"last": True}

# name: (call, dtype, compute capability)
KERNELS: dict[str, tuple[Call, torch.dtype, int]] = {
    "entropy_sgd inner": (ENTROPY_SGD, torch.float32, 90),
    "entropy_sgd inner, sm_80": (ENTROPY_SGD, torch.float32, 80),
    "entropy_sgd inner, sm_100": (ENTROPY_SGD, torch.float32, 100),
    "entropy_sgd without noise": (replace(ENTROPY_SGD, noise_scale=0.0, inner_momentum=0.0), torch.float32, 90),
    "entropy_sgd first": (replace(ENTROPY_SGD, fresh_velocity=True, **FIRST), torch.float32, 90),
    "entropy_sgd last": (replace(ENTROPY_SGD, **LAST), torch.float32, 90),
    "entropy_sgd implicit": (replace(ENTROPY_SGD, implicit=True), torch.float32, 90),
    "entropy_sgd bf16": (ENTROPY_SGD, torch.bfloat16, 90),
    "entropy_sgd bf16, sm_80": (ENTROPY_SGD, torch.bfloat16, 80),
    "entropy_sgd bf16 stochastic": (replace(ENTROPY_SGD, stochastic_rounding=True), torch.bfloat16, 90),
    "entropy_sgd fp16 last": (replace(ENTROPY_SGD, **LAST), torch.float16, 90),
    "entropy_sgd implicit float64": (replace(ENTROPY_SGD, implicit=True), torch.float64, 90),
    "hj first": (replace(HJ, **FIRST), torch.float32, 90),
    "hj inner": (HJ, torch.float32, 90),
    "hj last bf16": (replace(HJ, **LAST), torch.bfloat16, 90),
    "hj inner bf16, sm_100": (HJ, torch.bfloat16, 100),
    "heat first": (replace(HEAT, take_param=True, **FIRST), torch.float32, 80),
    "heat inner": (HEAT, torch.float32, 90),
    "heat last bf16": (replace(HEAT, **LAST), torch.bfloat16, 90),
    "heat inner bf16, sm_100": (HEAT, torch.bfloat16, 100),
    "heat inner float64": (HEAT, torch.float64, 90),
}

SHARED: dict[str, Any] = {
    "inner_steps": 4,
    "keep": 0.9,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.01,
    "maximize": True,
}
ENTROPY_SGD_SETTINGS = EntropySGDSettings(
    **SHARED,
    alpha=0.75,
    temperature=1e-3,
    implicit=False,
    absorb_gamma=False,
    inner_momentum=0.9,
    carry_inner_momentum=False,
    stochastic_rounding=False,
)
HJ_SETTINGS = HJSettings(**SHARED, alpha=0.75, warm_start=True)
HEAT_SETTINGS = HeatSettings(**SHARED)

# name: (settings, dtype, compute capability); all four places in the cycle
TICKED: dict[str, tuple[AnySettings, torch.dtype, int]] = {
    "entropy_sgd ticked": (ENTROPY_SGD_SETTINGS, torch.float32, 90),
    "entropy_sgd ticked bf16": (ENTROPY_SGD_SETTINGS, torch.bfloat16, 90),
    "entropy_sgd ticked without noise, sm_100": (replace(ENTROPY_SGD_SETTINGS, temperature=0.0), torch.float32, 100),
    "entropy_sgd ticked implicit float64, sm_80": (
        replace(ENTROPY_SGD_SETTINGS, implicit=True, temperature=0.0),
        torch.float64,
        80,
    ),
    "hj ticked, sm_120": (HJ_SETTINGS, torch.float32, 120),
    "hj ticked bf16, sm_80": (HJ_SETTINGS, torch.bfloat16, 80),
    "heat ticked, sm_120": (HEAT_SETTINGS, torch.float32, 120),
    "heat ticked fp16, sm_100": (HEAT_SETTINGS, torch.float16, 100),
}

# name: (settings, compute capability)
TICKS: dict[str, tuple[AnySettings, int]] = {
    "tick of entropy_sgd": (ENTROPY_SGD_SETTINGS, 90),
    "tick of entropy_sgd, sm_120": (ENTROPY_SGD_SETTINGS, 120),
    "tick of hj, sm_80": (HJ_SETTINGS, 80),
    "tick of heat, sm_100": (HEAT_SETTINGS, 100),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    ptx: str
    cubin: bytes


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


def new_tick(settings: AnySettings) -> Tick:
    one = torch.ones(1)
    return Tick(settings, Clock(torch.device("cpu")), one, one.double(), one, one, missing=False)


def launch_of(name: str) -> tuple[Launch, int]:
    """What would be launched, and the compute capability."""
    backend = Triton()
    if name in TICKS:
        settings, capability = TICKS[name]
        return backend.launch_tick(new_tick(settings)), capability
    what, dtype, capability = KERNELS[name] if name in KERNELS else TICKED[name]
    weight = torch.zeros(2048, dtype=dtype)
    table = Table([weight], [0])
    buffers = {name: table.new_buffer() for name in BUFFERS[what.rule]}
    if dtype == table.compute_dtype or getattr(what, "stochastic_rounding", False):
        buffers.pop("y", None)
    addresses = array("q", [weight.data_ptr()])
    if isinstance(what, Call):
        return backend.launch(what, table, addresses, buffers), capability
    return backend.launch_ticked(new_tick(what), table, addresses, buffers), capability


CACHE: dict[str, Compiled] = {}


def kernel(name: str) -> Compiled:
    if name not in CACHE:
        CACHE[name] = compile_ahead(*launch_of(name))
    return CACHE[name]


@pytest.fixture(params=[*KERNELS, *TICKED, *TICKS])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    return kernel(request.param)


def test_nothing_is_fused_or_approximate(compiled: Compiled) -> None:
    assert not re.findall(r"\b(?:fma|mad)\.rn\S*|\b(?:div|sqrt|rcp)\.(?:approx|full)\S*|\.ftz\b", compiled.ptx)
    for operation in re.findall(r"\b(?:div|sqrt)\.\S*f(?:32|64)", compiled.ptx):
        assert re.fullmatch(r"(?:div|sqrt)\.rn\.f(?:32|64)", operation)


def accesses(compiled: Compiled, access: str) -> tuple[int, int]:
    """Bytes that a thread moves 16 at a time, and behind a mask, element by element; nothing is stored otherwise."""
    fast = re.findall(rf"\b{access}\.global\.(?:v4\.b32|v2\.b64)", compiled.ptx)
    masked = re.findall(rf"@%p\d+ {access}\.global\.b(\d+)", compiled.ptx)
    if access == "st":
        assert len(re.findall(r"\bst\.global", compiled.ptx)) == len(fast) + len(masked)
    return 16 * len(fast), sum(int(bits) // 8 for bits in masked)


@pytest.mark.parametrize("access", ["ld", "st"])
@pytest.mark.parametrize("name", [*KERNELS, *TICKED])
def test_every_operand_moves_in_16_byte_accesses(name: str, access: str) -> None:
    """What the masked path moves element by element, the fast path moves 16 bytes at a time."""
    fast, masked = accesses(kernel(name), access)
    assert fast
    # Stores that two places in the cycle have in common are merged in the fast path only.
    assert fast == masked or (name in TICKED and access == "st" and fast < masked)


@pytest.mark.parametrize("name", [*KERNELS, *TICKED])
def test_only_its_own_alignment_decides_how_an_operand_moves(name: str) -> None:
    """An unaligned gradient, as in the buckets of a collective, leaves 16-byte accesses to weights and state."""
    found = conditions(kernel(name).ptx)
    for access, operands, alignments in found:
        assert alignments == operands & {"weights", "grads"}, f"{access} of {operands}"
    named = {(access, *operands) for access, operands, _ in found}
    assert {("ld", "grads"), ("st", "weights")} <= named


def test_nothing_spills(compiled: Compiled, tmp_path: Path) -> None:
    assert not re.search(r"\b(?:ld|st)\.local|\.local\s", compiled.ptx)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.cubin)
    usage = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    assert "STACK:0" in usage
    assert "LOCAL:0" in usage
    registers = re.search(r"REG:(\d+)", usage)
    assert registers
    assert int(registers.group(1)) <= 128  # 512 threads on a multiprocessor of 65536 registers
