"""What the Triton kernels compile to, ahead of time, for NVIDIA GPUs that need not be there.

Compiled is what ``Triton.run`` would launch: the same arguments, specialised by the same code.
"""

import os
import re
import subprocess
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from deeprelax.kernels import Call, EntropySGDCall, HeatCall, HJCall, Outer, Stream, Table

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton's compiler, and TRITON_INTERPRET=1 is set", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

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


@dataclass(frozen=True, slots=True)
class Compiled:
    ptx: str
    cubin: bytes


def compile_ahead(launch: Launch, capability: int) -> Compiled:
    """Through the steps of ``JITFunction.run`` but with a target of our choice."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(launch.options), bound, specialization, None
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return Compiled(compiled.asm["ptx"], compiled.asm["cubin"])


@pytest.fixture(scope="module", params=KERNELS.values(), ids=KERNELS.keys())
def compiled(request: pytest.FixtureRequest) -> Compiled:
    call, dtype, capability = request.param
    weight = torch.zeros(2048, dtype=dtype)
    table = Table([weight], [0])
    buffers = {name: table.new_buffer() for name in call.buffers}
    if dtype == table.compute_dtype or getattr(call, "stochastic_rounding", False):
        buffers.pop("y", None)
    launch = Triton().launch(call, table, array("q", [weight.data_ptr()]), buffers)
    return compile_ahead(launch, capability)


def test_nothing_is_fused_or_approximate(compiled: Compiled) -> None:
    assert not re.findall(r"\b(?:fma|mad)\.rn\S*|\b(?:div|sqrt|rcp)\.(?:approx|full)\S*|\.ftz\b", compiled.ptx)
    for operation in re.findall(r"\b(?:div|sqrt)\.\S*f(?:32|64)", compiled.ptx):
        assert re.fullmatch(r"(?:div|sqrt)\.rn\.f(?:32|64)", operation)


@pytest.mark.parametrize("access", ["ld", "st"])
def test_every_operand_moves_in_16_byte_accesses(compiled: Compiled, access: str) -> None:
    """What the masked path moves element by element, the fast path moves 16 bytes at a time."""
    fast = re.findall(rf"\b{access}\.global\.(?:v4\.b32|v2\.b64)", compiled.ptx)
    masked = re.findall(rf"@%p\d+ {access}\.global\.b(\d+)", compiled.ptx)
    assert fast
    assert 16 * len(fast) == sum(int(bits) // 8 for bits in masked)


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
    assert int(registers.group(1)) <= 128  # 4 programs of 128 threads on a multiprocessor of 65536 registers
