"""The ``cpu`` and ``cuda`` backends return the bits of the ``eager`` reference, update by update."""

import functools
import importlib
import itertools
from dataclasses import replace

import pytest
import torch
from updates import CALLS, DRAW, DTYPES, SIZES, Call, Calls, Case, entropy_adamw_calls, entropy_sgd_calls, same_bits

from deeprelax.kernels import Flag
from deeprelax.kernels.reference import Eager

_cpu = pytest.importorskip("deeprelax._cpu")
from deeprelax.kernels.cpu import NativeCPU  # noqa: E402
from deeprelax.kernels.cuda import Cuda  # noqa: E402

EAGER = Eager()
try:  # the CUDA kernels' code, run on the host thread by thread
    EMULATED: Cuda | None = Cuda(importlib.import_module("deeprelax._cuda"), emulated=True)
except ImportError:
    EMULATED = None

SETS = _cpu.instruction_sets()
# Instruction set, chunk, threads: the default chunk, and chunks that cut vectors and Philox calls.
VARIANTS = [(name, chunk, threads) for name in SETS for chunk, threads in [(16384, 1), (21, 1), (64, 1)]]
pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def native(name: str, chunk: int, threads: int, past_cache_from: int) -> NativeCPU:
    """One backend for all tests: it takes milliseconds to find torch's threads."""
    return NativeCPU(_cpu, name, chunk, threads, past_cache_from)


def check(call: Call, dtype: torch.dtype, seed: int, sizes: list[int], special: bool, offset: int, variants) -> None:
    case = Case.make(call, dtype, seed, sizes, special, offset)
    expected = case.run(EAGER, call)
    for name, chunk, threads in variants:
        # Stores past the cache are for large tensors; seed % 2 has the small ones of these tests take them too.
        found = case.run(native(name, chunk, threads, 0 if seed % 2 else 1 << 22), call)
        for i, (a, b) in enumerate(zip(expected, found)):
            assert same_bits(a, b), (name, chunk, threads, i, call)
    if EMULATED is not None:
        for i, (a, b) in enumerate(zip(expected, case.run(EMULATED, call))):
            assert same_bits(a, b), ("cuda", i, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_every_call_gives_the_bits_of_the_reference(calls: Calls, dtype: torch.dtype) -> None:
    """At offsets of 0 to 7 elements; one call in three also on NaNs, infinities and denormals."""
    for seed, call in enumerate(calls(dtype)):
        variants = VARIANTS[seed // 3 % 3 :: 3]
        check(call, dtype, seed, SIZES, special=seed % 3 == 0, offset=seed // 5 % 8, variants=variants)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_chunk_sizes_threads_and_instruction_sets_do_not_change_the_bits(calls: Calls, dtype: torch.dtype) -> None:
    every = itertools.product(SETS, [7, 100, 4096, 16384], [1, 2, 5])
    sizes = [33, 16384 + 5, 3 * 4096, 1]
    chosen = list(calls(dtype))[37::60]
    for call, offset in zip(chosen, (0, 1, 3)):
        check(call, dtype, 2, sizes, special=False, offset=offset, variants=every)
        every = itertools.product(SETS, [5, 16384], [1, 3])


@pytest.mark.skipif(EMULATED is None, reason="needs the CUDA kernels (nvcc)")
def test_more_tensors_than_one_launch_takes_give_the_same_bits() -> None:
    assert EMULATED is not None
    count = 2 * EMULATED.module.tensors + 3
    for calls in (entropy_sgd_calls, entropy_adamw_calls):  # the second has a count for each tensor
        call = list(calls(torch.float32))[21]
        check(call, torch.float32, 1, [5, 0, 9] * (count // 3), special=False, offset=0, variants=[])


@pytest.mark.skipif(EMULATED is None, reason="needs the CUDA kernels (nvcc)")
def test_a_bfloat16_flag_makes_no_wide_access_to_unaligned_float32() -> None:
    """Emulated, an access of 16 bytes at another address raises."""
    for call in entropy_sgd_calls(torch.float32):
        if not call.has(Flag.NOISE):
            rounded = call.changed(on=Flag.STOCHASTIC_ROUNDING)
            check(rounded, torch.float32, 1, [259, 64, 5], special=False, offset=1, variants=[])


def test_only_the_named_step_draws_this_noise() -> None:
    """A comparison of two constants would agree as well."""
    call = next(c for c in entropy_sgd_calls(torch.float32) if c.has(Flag.NOISE) and not c.has(Flag.LAST))
    case = Case.make(call, torch.float32, 0, SIZES, special=False, offset=0)
    cpu = NativeCPU(_cpu)
    before = case.run(cpu, call)
    for other in (replace(DRAW, seed=1), replace(DRAW, replica=1), replace(DRAW, step=1)):
        after = case.run(cpu, call.with_draw(other))
        assert any(not same_bits(a, b) for a, b in zip(before, after))
