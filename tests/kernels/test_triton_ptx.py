"""What Triton makes of its kernels, ahead of time, for NVIDIA GPUs that need not be there: triton_binaries.py."""

import json
import os
import re

import pytest
from ptx import conditions

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton's compiler, and TRITON_INTERPRET=1 is set", allow_module_level=True)


import triton_binaries as binaries  # noqa: E402
from cuda_binaries import accesses  # noqa: E402
from triton_binaries import KERNELS, TICKED, TICKS, Compiled, kernel  # noqa: E402

ALL = [*KERNELS, *TICKED, *TICKS]


@pytest.fixture(params=ALL)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    return kernel(request.param)


def test_nothing_is_fused_or_approximate(compiled: Compiled) -> None:
    assert not re.findall(r"\b(?:fma|mad)\.rn\S*|\b(?:div|sqrt|rcp)\.(?:approx|full)\S*|\.ftz\b", compiled.ptx)
    for operation in re.findall(r"\b(?:div|sqrt)\.\S*f(?:32|64)", compiled.ptx):
        assert re.fullmatch(r"(?:div|sqrt)\.rn\.f(?:32|64)", operation)


def in_ptx(compiled: Compiled, access: str) -> tuple[int, int]:
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
    fast, masked = in_ptx(kernel(name), access)
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
    loads = {("ld", "weights" if name.startswith("outer") else "grads")}  # OuterLoop has no gradient
    assert {("st", "weights")} | loads <= named


@pytest.mark.parametrize("name", [*KERNELS, *TICKED][::4])  # cuobjdump takes as long as the compiler
def test_accesses_of_16_bytes_in_the_ptx_are_so_in_the_sass(name: str) -> None:
    """ptxas may take a wide access apart, where it is not sure of its alignment say."""
    found = accesses(binaries.sass(name))
    for access, instruction in (("ld", "LDG"), ("st", "STG")):
        fast, _ = in_ptx(kernel(name), access)
        assert 16 * sum(n for op, n in found.items() if op.startswith(instruction) and ".128" in op) >= fast
    assert not [op for op in found if re.match(r"(LD|ST)(L|\.|$)", op)]  # local or generic


@pytest.mark.parametrize("name", ALL)
def test_nothing_spills(name: str) -> None:
    assert not re.search(r"\b(?:ld|st)\.local|\.local\s", kernel(name).ptx)
    used = binaries.usage(name)
    assert (used.stack, used.local) == (0, 0)
    assert used.registers <= 128  # 512 threads on a multiprocessor of 65536 registers


def test_the_record_of_registers_is_of_this_code() -> None:
    """Written by bench/codegen/triton_binaries.py; another Triton may well allocate others."""
    recorded = json.loads(binaries.RECORD.read_text())
    assert sorted(recorded["registers"]) == sorted(ALL)
    if recorded["triton"] == triton.__version__:
        assert recorded == binaries.record()
