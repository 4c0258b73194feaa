"""What nvcc makes of the CUDA kernels, for GPUs that need not be there: checked in the module that setup.py built."""

import ast
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprelax.benchmark.traffic import operands

ROOT = Path(__file__).parent.parent.parent
import cuda_binaries as binaries  # noqa: E402

BUILT = importlib.util.find_spec("deeprelax._cuda") is not None
needs_module = pytest.mark.skipif(
    not BUILT or binaries.cuobjdump() is None, reason="needs the CUDA kernels (nvcc) and cuobjdump"
)


def nvcc_flags() -> list[str]:
    """``NVCC_FLAGS`` of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "NVCC_FLAGS":
            return list(ast.literal_eval(node.value))
    raise ValueError("setup.py has no NVCC_FLAGS")


def default_architectures() -> list[str]:
    """``CUDA_ARCHITECTURES`` of setup.py, as "sm_90"."""
    found = re.search(r'CUDA_ARCHITECTURES = "([\d;]+)"', (ROOT / "setup.py").read_text())
    assert found
    return [f"sm_{a}" for a in found[1].split(";")]


def built_architectures() -> list[str]:
    return [f"sm_{a}" for a in binaries.module().architectures.split(";")] if BUILT else []


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_the_cuda_kernels_are_built_if_there_is_nvcc() -> None:
    info: Any = importlib.import_module("deeprelax._build_info")
    assert BUILT or "DEEPRELAX_CUDA=0" in info.CUDA_PROBLEM, info.CUDA_PROBLEM


# For all options: 4 dtypes a rule, and EntropySGD and EntropyAdamW in bfloat16 also rounded. Without: float32 and
# bfloat16, these two with and without noise, in bfloat16 also rounded.
INSTANCES, CLOCKS = (5 + 4 + 4 + 5 + 4 + 5) + (6 + 2 + 2 + 6 + 2 + 6), 6


@needs_module
def test_every_kernel_is_there_for_every_architecture() -> None:
    found = binaries.usage()
    if binaries.module().architectures == ";".join(a.removeprefix("sm_") for a in default_architectures()):
        assert set(default_architectures()) <= set(found)
    for architecture in built_architectures():
        kernels = {binaries.kernel(symbol) for symbol in found[architecture]} - {None}
        assert len(kernels) == INSTANCES
        assert len(found[architecture]) == len(kernels) + CLOCKS


@needs_module
def test_nothing_spills_and_nothing_is_in_local_memory() -> None:
    for architecture, symbols in binaries.usage().items():
        for symbol, used in symbols.items():
            assert (used.stack, used.local) == (0, 0), (architecture, symbol, used)
            # Two blocks of 256 threads on a multiprocessor; EntropyAdamW in float64, which moves 9 operands, has one.
            most = 255 if "updateIddNS0_12EntropyAdamW" in symbol else 128
            assert used.registers <= most, (architecture, symbol, used)


@needs_module
def test_the_record_of_registers_and_loops_is_of_this_code() -> None:
    """Written by bench/codegen/cuda_binaries.py; another compiler may well allocate others."""
    recorded, found = json.loads(binaries.RECORD.read_text()), binaries.record()
    for what in ("registers", "loops"):
        assert recorded[what].keys() == found[what].keys()
        if recorded["nvcc"] == found["nvcc"]:
            built = {
                kernel: {a: value for a, value in each.items() if a in built_architectures()}
                for kernel, each in recorded[what].items()
            }
            assert built == found[what]


def not_as_written(code: str) -> list[str]:
    """Operations in PTX that round elsewhere than the reference does, or may be made to: without ``.rn`` a product and
    a sum can still be fused, by a driver that compiles the PTX for a GPU of later years. The steps from an approximate
    root to the exact one are fused on purpose: test_root.py."""
    approximate = r"rsqrt\.approx\.ftz\.f32"
    roots, code = len(re.findall(approximate, code)), re.sub(approximate, "", code)
    fused = re.findall(r"\b(?:fma|mad)\.r[nzmp]\S*|\b(?:div|r?sqrt|rcp)\.(?:approx|full)\S*|\.ftz\b", code)
    if fused == ["fma.rn.f32"] * 5 * roots:  # root_from in csrc/scalar.h
        fused = []
    bare = re.findall(r"\b(?:mul|add|sub)\.(?:b?f\d+)\S*", code)
    operations = re.findall(r"\b(?:div|sqrt|rcp)\.\S*f(?:32|64)", code)
    return [*fused, *bare, *(op for op in operations if not re.fullmatch(r"(?:div|sqrt|rcp)\.rn\.f(?:32|64)", op))]


@needs_module
def test_the_ptx_in_the_module_fuses_and_approximates_nothing() -> None:
    """It holds PTX of the newest virtual architecture alone, for GPUs to come."""
    code = binaries.dump("-ptx")
    assert code.count(".visible .entry") == INSTANCES + CLOCKS
    newest = built_architectures()[-1]
    assert set(re.findall(r"^\.target (\w+)", code, re.MULTILINE)) == {newest}
    assert re.search(r"\bmul\.rn\.f32", code)
    assert not not_as_written(code)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize(
    ("architecture", "rule"), list(zip(default_architectures()[:-1], itertools.cycle(["Heat", "HJ"]), strict=False))
)
def test_other_architectures_ptx_fuses_and_approximates_nothing(architecture: str, rule: str, tmp_path: Path) -> None:
    """Every architecture's code comes from its own PTX, which is not in the module. Heat has the noise and the outer
    update, HJ the averages; Entropy-SGD, which shares them, would take half a minute."""
    made, file = tmp_path / "made.ptx", ROOT / "csrc" / "cuda_rule.cu"
    flags = [f"-DDR_RULE={rule}", f'-DDR_HEADER="{rule.lower()}.h"', f"-arch={architecture.replace('sm_', 'compute_')}"]
    subprocess.run(["nvcc", *nvcc_flags(), *flags, "-ptx", "-o", made, file], check=True)
    code = made.read_text()
    assert f".target {architecture}" in code
    assert "mul.rn.f" in code
    assert not not_as_written(code)


@pytest.mark.parametrize(
    "code", ["mul.f32 %f1", "add.f64 %f1", "sub.bf16 %f1", "fma.rn.f32 %f1", "sqrt.approx.f32 a", "mul.rn.ftz.f32 a"]
)
def test_instructions_that_round_differently_are_found(code: str) -> None:
    assert not_as_written(f"\tld.global.f32 a;\n\t{code}, b;\n")
    root = "\trsqrt.approx.ftz.f32 a, b;\n" + 5 * "\tfma.rn.f32 a, b;\n"
    assert not not_as_written(root)
    assert not_as_written(f"{root}\t{code}, b;\n")
    assert not not_as_written("\tmul.rn.f32 a, b;\n\tadd.rn.f64 a, b;\n\tdiv.rn.f32 a, b;\n\tadd.s32 a, b;\n")


def lines(kernel: binaries.Kernel, name: str) -> int:
    """Accesses of 16 bytes that a thread makes for its pack of one operand."""
    dtype = getattr(torch, kernel.dtype)
    pack = 8 if dtype.itemsize == 2 else 4
    itemsize = dtype.itemsize if name in "wg" else max(4, dtype.itemsize)
    return pack * itemsize // 16


def expected(kernel: binaries.Kernel) -> list[tuple[int, int]]:
    """Wide loads and stores of the three kinds of call; for all the other options, one body serves all kinds."""
    options = {"alpha": 0.5} if kernel.rule == "Outer" else {"stochastic_rounding": kernel.rounding}
    name = {"Outer": "OuterLoop"}.get(kernel.rule, kernel.rule)
    kinds = [operands(name, getattr(torch, kernel.dtype), kind, **options) for kind in ("first", "inner", "last")]
    if not kernel.fast:
        kinds = [(set().union(*(k[0] for k in kinds)), set().union(*(k[1] for k in kinds)))]
    return [(sum(lines(kernel, s) for s in reads), sum(lines(kernel, s) for s in writes)) for reads, writes in kinds]


@needs_module
@pytest.mark.parametrize("architecture", built_architectures())
def test_packs_move_in_accesses_of_128_bits_to_global_memory(architecture: str) -> None:
    seen = 0
    for symbol, text in binaries.code(architecture):
        kernel = binaries.kernel(symbol)
        if kernel is None:
            continue
        seen += 1
        count = binaries.accesses(text)
        wide = [sum(n for op, n in count.items() if op.startswith(way) and ".128" in op) for way in ("LDG", "STG")]
        loads, stores = (sum(kind) for kind in zip(*expected(kernel)))
        assert wide[0] >= loads, (str(kernel), wide, loads)
        assert wide[1] >= stores, (str(kernel), wide, stores)
        assert not [op for op in count if re.match(r"(LD|ST)(L|\.|$)", op)], (str(kernel), count)  # local or generic
    assert seen == INSTANCES


# In the last call of a cycle it waits once, for the first four of six loads: it has no register to spare.
WAITS = [("sm_80", "EntropySGD bfloat16, stochastic rounding")]


@needs_module
@pytest.mark.parametrize("architecture", built_architectures())
def test_a_pass_of_a_fast_loop_makes_all_its_loads_before_it_waits_for_one(architecture: str) -> None:
    """Where all is aligned: one loop for each kind of call. What it loads on top is momentum or Heat's weight decay."""
    for symbol, text in binaries.code(architecture):
        kernel = binaries.kernel(symbol)
        if kernel is None or not kernel.fast:
            continue
        every = binaries.loops(text)
        aligned, others = ([loop for loop in every if loop.aligned is is_aligned] for is_aligned in (True, False))
        if kernel.rule == "Outer":  # which reads no gradient
            aligned, others = aligned[:3], aligned[3:]
        assert len(aligned) == len(others) == 3, (str(kernel), aligned, others)
        # An unaligned gradient leaves the wide accesses of the weight and the state; a call that draws no noise takes
        # no packs of an unaligned weight. Where the compiler knows that, the gradient has no wide load in these loops.
        if not (kernel.noise or kernel.rounding):
            assert all(loop.stores_aligned for loop in every), (str(kernel), every)
            narrow = 0 if kernel.rule == "Outer" else 16 // getattr(torch, kernel.dtype).itemsize
            assert all(loop.narrow_loads == narrow for loop in others), (str(kernel), others)
        made, theirs = (sorted(sum(loop.batches) for loop in loops) for loops in (aligned, others))
        assert all(0 <= a - b <= lines(kernel, "g") for a, b in zip(made, theirs)), (str(kernel), made, theirs)
        assert all(len(loop.batches) == 1 for loop in aligned) or (architecture, str(kernel)) in WAITS, (
            str(kernel),
            aligned,
        )
        least = sorted(loads for loads, _ in expected(kernel))
        assert all(a >= b for a, b in zip(made, least)), (str(kernel), made, least)


SASS = """
        /*0010*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   IMAD.U32 R20, R4, 0x10000, RZ ;
        /*0030*/               @P1 LDG.E.EF.128 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   LDG.E.EF.128 R12, desc[UR4][R2.64+0x20] ;
        /*0050*/                   ISETP.GE.AND P0, PT, R0, R3, PT ;
        /*0060*/                   FADD R21, R20, R15 ;
        /*0070*/               @!P0 BRA 0x10 ;
"""


def test_a_conversion_between_two_loads_is_seen_as_a_wait() -> None:
    assert binaries.loops(SASS) == [binaries.Loop(7, (1, 2), 0, True)]
    assert binaries.loops(SASS.replace("R20, R4,", "R20, R24,")) == [binaries.Loop(7, (3,), 0, True)]
    assert binaries.loops(SASS.replace("@P1 LDG.E.EF.128", "@P1 LDG.E.EF.U16"))[0].aligned is False


def test_no_native_source_includes_torch() -> None:
    csrc = ROOT / "csrc"
    for path in [*csrc.glob("*.h"), *csrc.glob("*.cpp"), *csrc.glob("*.cu")]:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path.name
